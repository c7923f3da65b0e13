//! What a lab is and how far its start has come, in `<cache>/labs/NAME/state.json`.
//!
//! Written before each effect, never after: whatever the file doesn't name does not exist, so `down` after a crash
//! can start from it. A process cannot be written down before it has a number; it is found by its cgroup instead,
//! which it enters before it becomes the program it is to be. The numbers here, with start times because numbers are
//! used again, serve `status`, `logs` and the stories.

use crate::cache;
use crate::site::{self, LABS_MAX, Site};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How far the start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// `up` is at work, or died at it.
    Starting,
    /// `up` ended with every node Ready.
    Up,
    /// `down` is at work, or died at it.
    Stopping,
}

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number on the host.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

/// A running lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    /// Addresses and names.
    pub site: Site,
    /// How far it is.
    pub stage: Stage,
    /// Programs by component name: `etcd`, `node1`, `node1/kubelet`.
    pub processes: BTreeMap<String, ProcessId>,
    /// The node root filesystem it runs on.
    pub base: Option<PathBuf>,
    /// The folder with the Kubernetes programs.
    pub kube: Option<PathBuf>,
    /// The folder with the S3 server.
    #[serde(default)]
    pub s3: Option<PathBuf>,
}

impl Lab {
    /// The folder of all labs.
    pub fn all() -> Result<PathBuf> {
        Ok(cache::root()?.join("labs"))
    }

    /// The folder of the lab called `name`.
    pub fn folder_of(name: &str) -> Result<PathBuf> {
        Site::check_name(name).map_err(anyhow::Error::msg)?;
        Ok(Self::all()?.join(name))
    }

    /// This lab's folder.
    pub fn folder(&self) -> Result<PathBuf> {
        Self::folder_of(&self.site.name)
    }

    /// The lab called `name`, if there is anything of it.
    pub fn load(name: &str) -> Result<Option<Self>> {
        read(&Self::folder_of(name)?.join("state.json"))
    }

    /// The lab called `name`, which must be there.
    pub fn expect(name: &str) -> Result<Self> {
        Self::load(name)?.with_context(|| {
            format!("there is no lab called {name}; `cargo lab up --name {name}` starts it")
        })
    }

    /// Does this component run?
    pub fn runs(&self, component: &str) -> bool {
        let process = self.processes.get(component);
        process.is_some_and(|process| process.is_alive())
    }

    /// Writes the state down: into a new file, then renamed, so a crash leaves the old or the new one.
    pub fn save(&self) -> Result<()> {
        let folder = self.folder()?;
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let (new, path) = (folder.join("state.json.new"), folder.join("state.json"));
        fs::write(
            &new,
            serde_json::to_vec_pretty(self).context("write the lab's state as JSON")?,
        )
        .with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("replace {}", path.display()))
    }

    /// Claims a place for a new lab: the first index that no other lab has and whose bridge nobody else (a lab of
    /// another cache folder, say) has put up. The lock given with it says that somebody is at work on this lab.
    pub fn claim(name: &str, nodes: u8) -> Result<(Self, cache::Lock)> {
        let all = Self::all()?;
        fs::create_dir_all(&all).with_context(|| format!("create {}", all.display()))?;
        let _alone = cache::Lock::take(&all)?;
        let mut taken = Vec::new();
        for entry in fs::read_dir(&all).with_context(|| format!("list {}", all.display()))? {
            let path = entry.context("list the labs")?.path().join("state.json");
            taken.extend(read(&path)?.map(|lab| lab.site.index));
        }
        let has_bridge = |index: &u8| {
            Path::new("/sys/class/net")
                .join(site::bridge_of(*index))
                .exists()
        };
        taken.extend((0..LABS_MAX).filter(has_bridge));
        let Some(index) = free_index(&taken) else {
            bail!(
                "all {LABS_MAX} places for labs on this machine are taken; `cargo lab down --name …` frees one"
            );
        };
        let site = Site {
            name: name.into(),
            index,
            nodes,
        };
        let lab = Self {
            site,
            stage: Stage::Starting,
            processes: BTreeMap::new(),
            base: None,
            kube: None,
            s3: None,
        };
        let folder = lab.folder()?;
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let Some(lock) = cache::Lock::try_take(&folder)? else {
            bail!("another command is at work on lab {name}")
        };
        lab.save()?;
        Ok((lab, lock))
    }
}

fn free_index(taken: &[u8]) -> Option<u8> {
    (0..LABS_MAX).find(|index| !taken.contains(index))
}

fn read(path: &Path) -> Result<Option<Lab>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(
            serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?,
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

impl ProcessId {
    /// The process that has this number now.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("look at process {pid}"))?;
        let started =
            start_time(&stat).with_context(|| format!("read the start time of process {pid}"))?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs: not gone, not waiting to be buried, not another with its number.
    pub fn is_alive(self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            return false;
        };
        start_time(&stat) == Some(self.started) && !matches!(state_letter(&stat), Some('Z' | 'X'))
    }
}

/// The name in the second field may hold spaces and parentheses: count fields from the last parenthesis.
fn after_name(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace())
}

fn state_letter(stat: &str) -> Option<char> {
    after_name(stat)?.next()?.chars().next()
}

fn start_time(stat: &str) -> Option<u64> {
    // Field 22 of proc(5), the 20th after the name.
    after_name(stat)?.nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_lab_gets_the_lowest_index_nobody_has() {
        assert_eq!(free_index(&[]), Some(0));
        assert_eq!(free_index(&[0, 2]), Some(1));
        assert_eq!(free_index(&(0..LABS_MAX).collect::<Vec<_>>()), None);
    }

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(state_letter(stat), Some('S'));
        assert_eq!(start_time(stat), Some(4242));
    }

    #[test]
    fn this_process_is_alive_and_one_with_its_number_but_another_start_is_not() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(
            !ProcessId {
                started: me.started + 1,
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn a_state_file_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site {
            name: "x".into(),
            index: 3,
            nodes: 2,
        };
        let processes = BTreeMap::from([("etcd".to_owned(), ProcessId { pid: 7, started: 9 })]);
        let lab = Lab {
            site,
            stage: Stage::Up,
            processes,
            base: Some("/b".into()),
            kube: None,
            s3: Some("/s".into()),
        };
        let path = folder.path().join("state.json");
        fs::write(&path, serde_json::to_vec(&lab).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), Some(lab));
        assert_eq!(read(&folder.path().join("none.json")).unwrap(), None);
    }
}
