//! One process, as /proc shows it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::mounts::{self, Mount};

/// CAP_SYS_RESOURCE as a bit of a capability mask.
const CAP_SYS_RESOURCE: u64 = 1 << 24;
/// Mark of the file system that message queues live in.
const MQUEUE_MAGIC: u64 = 0x1980_0202;
/// Namespaces in which a process may differ from the container's first one only if CRIU can't dump it.
const NAMESPACES: [&str; 6] = ["user", "pid", "mnt", "net", "ipc", "uts"];

/// What is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: u32,
    /// Its number where the container counts from 1.
    pub inner_pid: u32,
    pub parent: u32,
    pub name: String,
    /// One letter: R, S, D, Z, T (stopped), t (stopped by a tracer).
    pub state: char,
    pub tracer: u32,
    pub uid: u32,
    /// Pages that a dump writes: those of its own and shared ones; files that it maps are opened again.
    pub memory_bytes: u64,
    pub namespaces: Vec<(&'static str, String)>,
    pub files: Vec<OpenFile>,
    /// Names of what it maps.
    pub mappings: Vec<String>,
}

/// An open file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenFile {
    pub number: u32,
    /// What /proc calls it.
    pub target: String,
    pub size: u64,
    pub links: u64,
    pub is_regular: bool,
    pub is_message_queue: bool,
    /// Type of the Kubernetes volume that it is on.
    pub volume: Option<String>,
}

/// Every process in the cgroups of the container whose first one is `init`.
pub(super) fn in_cgroup_of(proc: &Path, init: u32, mounts: &[Mount]) -> Vec<Process> {
    let cgroup = |pid: u32| fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok();
    let Some(own) = cgroup(init) else {
        return Vec::new();
    };
    let Ok(listing) = fs::read_dir(proc) else {
        return Vec::new();
    };
    let pids = listing
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let members = pids
        .filter(|pid| *pid == init || cgroup(*pid).is_some_and(|theirs| is_below(&own, &theirs)));
    members
        .filter_map(|pid| read(&proc.join(pid.to_string()), pid, mounts))
        .collect()
}

/// Is every line of `theirs` the line of `own` or deeper? A container's first process is seldom alone there, and what
/// runs beside the container shares at most the root.
fn is_below(own: &str, theirs: &str) -> bool {
    let paths = |text: &str| {
        text.lines()
            .map(|line| line.splitn(3, ':').nth(2).unwrap_or("").to_owned())
            .collect::<Vec<_>>()
    };
    let (own, theirs) = (paths(own), paths(theirs));
    let deeper = |own: &String, theirs: &String| {
        theirs
            .strip_prefix(own.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || own == "/")
    };
    own.len() == theirs.len()
        && own.iter().any(|path| path != "/")
        && own.iter().zip(&theirs).all(|(a, b)| deeper(a, b))
}

fn read(folder: &Path, pid: u32, mounts: &[Mount]) -> Option<Process> {
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let maps = fs::read_to_string(folder.join("maps")).unwrap_or_default();
    let namespaces = NAMESPACES
        .iter()
        .map(|kind| (*kind, namespace(folder, kind)))
        .collect();
    Some(Process {
        pid,
        namespaces,
        files: files(folder, mounts),
        mappings: mappings(&maps),
        ..parse_status(&status)
    })
}

/// The kernel's name of a namespace; empty when it can't be read.
pub(super) fn namespace(folder: &Path, kind: &str) -> String {
    fs::read_link(folder.join("ns").join(kind))
        .map(text)
        .unwrap_or_default()
}

/// May CRIU raise limits of processes, as it must for those of other users?
pub(super) fn may_raise_limits(status: &str) -> bool {
    let mask = field(status, "CapBnd").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    // Not known is not a reason to refuse.
    mask.is_none_or(|mask| mask & CAP_SYS_RESOURCE != 0)
}

fn parse_status(status: &str) -> Process {
    let number = |name: &str| {
        field(status, name).and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
    };
    let small = |name: &str| {
        number(name)
            .and_then(|value| u32::try_from(value).ok())
            .unwrap_or_default()
    };
    let kib = match (number("RssAnon"), number("RssShmem")) {
        (Some(own), Some(shared)) => own + shared,
        _ => number("VmRSS").unwrap_or_default(),
    };
    Process {
        parent: small("PPid"),
        inner_pid: field(status, "NSpid")
            .and_then(|all| all.split_whitespace().last()?.parse().ok())
            .unwrap_or_default(),
        name: field(status, "Name").unwrap_or_default().to_owned(),
        state: field(status, "State")
            .and_then(|state| state.chars().next())
            .unwrap_or('?'),
        tracer: small("TracerPid"),
        uid: small("Uid"),
        memory_bytes: kib * 1024,
        ..Process::default()
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// Names of the mappings that have one, each once.
fn mappings(maps: &str) -> Vec<String> {
    let names = maps
        .lines()
        .filter_map(|line| Some(line.splitn(6, ' ').nth(5)?.trim().to_owned()));
    let mut names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn files(folder: &Path, mounts: &[Mount]) -> Vec<OpenFile> {
    let Ok(listing) = fs::read_dir(folder.join("fd")) else {
        return Vec::new();
    };
    listing
        .flatten()
        .filter_map(|entry| file(&entry.path(), mounts))
        .collect()
}

fn file(link: &Path, mounts: &[Mount]) -> Option<OpenFile> {
    let number = link.file_name()?.to_str()?.parse().ok()?;
    let target = text(fs::read_link(link).ok()?);
    // Only what is a path can be asked about; the rest tells everything by its name.
    if !target.starts_with('/') {
        return Some(OpenFile {
            number,
            target,
            ..OpenFile::default()
        });
    }
    let facts = fs::metadata(link).ok();
    let volume = mounts::of(&target, mounts)
        .and_then(Mount::volume)
        .map(str::to_owned);
    Some(OpenFile {
        number,
        size: facts.as_ref().map(fs::Metadata::len).unwrap_or_default(),
        links: facts.as_ref().map(MetadataExt::nlink).unwrap_or_default(),
        is_regular: facts.as_ref().is_some_and(fs::Metadata::is_file),
        is_message_queue: rustix::fs::statfs(link)
            .is_ok_and(|facts| facts.f_type as u64 == MQUEUE_MAGIC),
        target,
        volume,
    })
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tmy server\nState:\tT (stopped)\nTgid:\t40\nPPid:\t12\nTracerPid:\t9\nUid:\t1000\t1000\t1000\t1000\n\
        NSpid:\t40\t7\nVmRSS:\t  900 kB\nRssAnon:\t  500 kB\nRssFile:\t  300 kB\nRssShmem:\t  100 kB\nCapBnd:\t000001fffeffffff\n";

    #[test]
    fn a_status_is_read_field_by_field() {
        let process = parse_status(STATUS);
        assert_eq!(
            (
                process.parent,
                process.inner_pid,
                process.tracer,
                process.uid
            ),
            (12, 7, 9, 1000)
        );
        assert_eq!((process.name.as_str(), process.state), ("my server", 'T'));
        assert_eq!(process.memory_bytes, 600 * 1024);
        assert!(!may_raise_limits(STATUS));
        assert!(may_raise_limits("CapBnd:\t000001ffffffffff\n"));
    }

    #[test]
    fn a_process_belongs_to_a_container_when_it_is_in_its_cgroups_or_below() {
        let own = "2:freezer:/pod1/c\n1:memory:/pod1/c\n";
        assert!(is_below(own, own));
        assert!(is_below(own, "2:freezer:/pod1/c\n1:memory:/pod1/c/child\n"));
        assert!(!is_below(own, "2:freezer:/pod1/cc\n1:memory:/pod1/c\n"));
        assert!(!is_below(own, "2:freezer:/pod1/d\n1:memory:/pod1/d\n"));
        assert!(
            !is_below("0::/\n", "0::/x\n"),
            "a container in the root cgroup tells nothing apart"
        );
    }

    #[test]
    fn mappings_are_named_once() {
        let maps = "7f00-7f01 r--p 00000000 08:01 5   /usr/lib/a b.so\n7f01-7f02 r--p 0 08:01 5 /usr/lib/a b.so\n7f03-7f04 rw-p 0 00:00 0 \n";
        assert_eq!(mappings(maps), ["/usr/lib/a b.so"]);
    }

    #[test]
    fn this_very_process_can_be_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone");
        let held = fs::File::create(&path).unwrap();
        held.set_len(5000).unwrap();
        fs::remove_file(&path).unwrap();
        let process = read(Path::new("/proc/self"), std::process::id(), &[]).unwrap();
        assert!(process.memory_bytes > 0);
        let gone = process
            .files
            .iter()
            .find(|file| file.target.ends_with("gone (deleted)"))
            .unwrap();
        assert_eq!((gone.size, gone.links, gone.is_regular), (5000, 0, true));
    }
}
