//! What this node can do, and why not: versions, settings, room.
//!
//! The worker's image holds none of the node's programs, so they are run where they are: the worker starts itself again,
//! changes its root to the node's and becomes the program ([`become_program`]). [`judge`] is pure.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use async_trait::async_trait;
use proto::worker::{Finding, Inventory, Severity};

use crate::{
    cgroup::Cgroups,
    checkpoint::kubelet::{Kubelet, Probe},
    containerd::Containerd,
};

/// First argument of the worker when it should become a program of the node.
pub const BECOME: &str = "become-node-program";
/// Where programs are looked for on the node.
const NODE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// `--version` takes milliseconds.
const PROGRAM_MAX: Duration = Duration::from_secs(5);
/// What runc gives CRIU besides its own options.
const CRIU_SETTINGS: &str = "etc/criu/runc.conf";
/// Folders on the node that a checkpoint passes through: the archive, CRIU's images, the content store.
const PASSED_THROUGH: [&str; 3] = ["var/lib/kubelet", "tmp", "var/lib/containerd"];
/// Older ones don't fit runc's and containerd's calls.
const CRIU_MIN: [u64; 3] = [3, 16, 0];
/// Kernels from 6.16 on changed what SO_PASSCRED means; older CRIUs fail on every socket there.
const KERNEL_PASSCRED: [u64; 3] = [6, 16, 0];
const CRIU_FOR_PASSCRED: [u64; 3] = [4, 2, 0];
/// containerd's setting for the versions that have restore switched off, as letters only.
const RESTORE_SETTING: &str = "enableexperimentalrestoreviacreate";

/// Looks at the node. The second implementation is the simulator's.
#[async_trait]
pub trait Survey: Send + Sync {
    /// Everything that the planner wants to know of this node.
    async fn survey(&self) -> Inventory;
}

/// Looks at the node we run on.
#[derive(Clone, Debug)]
pub struct Surveyor {
    /// The runtime.
    pub containerd: Containerd,
    /// Asked whether it would make checkpoints.
    pub kubelet: Kubelet,
    /// For the version and for pods that are held.
    pub cgroups: Cgroups,
    /// The node's root file system.
    pub node_root: PathBuf,
    /// Where the worker keeps its images.
    pub state_dir: PathBuf,
}

/// What was seen and decides.
#[derive(Clone, Debug)]
struct Seen {
    criu: String,
    kernel: String,
    /// Or why it did not answer.
    containerd: Result<String, String>,
    restore_is_enabled: bool,
    settings: Option<String>,
    kubelet: Option<Probe>,
}

#[async_trait]
impl Survey for Surveyor {
    async fn survey(&self) -> Inventory {
        let criu = self.program("criu").await;
        let oci = self.program("runc").await;
        let uname = rustix::system::uname();
        let seen = Seen {
            criu: criu.as_deref().and_then(version_in).unwrap_or_default(),
            kernel: uname.release().to_string_lossy().into_owned(),
            containerd: self
                .containerd
                .version()
                .await
                .map_err(|error| error.to_string()),
            restore_is_enabled: self
                .containerd
                .details()
                .await
                .is_ok_and(|details| has_restore(&details)),
            settings: tokio::fs::read_to_string(self.node_root.join(CRIU_SETTINGS))
                .await
                .ok(),
            kubelet: Some(self.kubelet.probe().await),
        };
        let cpu = tokio::fs::read_to_string("/proc/cpuinfo")
            .await
            .unwrap_or_default();
        let held = self.cgroups.frozen_pods();
        let (checkpoint, restore) = judge(&seen);
        Inventory {
            criu_version: seen.criu,
            runtime_name: "containerd".to_owned(),
            runtime_version: seen.containerd.unwrap_or_default(),
            oci_runtime: oci
                .as_deref()
                .and_then(version_in)
                .map(|version| format!("runc {version}"))
                .unwrap_or_default(),
            kernel: seen.kernel,
            architecture: architecture().to_owned(),
            cpu_flags: cpu_line(&cpu, &["flags", "Features"])
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            cgroup_version: self.cgroups.version(),
            checkpoint,
            restore,
            free_bytes: self.free_bytes(),
            held_pods: held
                .inspect_err(|error| tracing::warn!(%error, "held pods can't be seen"))
                .unwrap_or_default(),
            cpu_model: cpu_line(&cpu, &["model name", "CPU part"]),
        }
    }
}

impl Surveyor {
    /// What `PROGRAM --version` prints on the node; nothing when it is not there.
    async fn program(&self, name: &str) -> Option<String> {
        let own = std::env::current_exe().ok()?;
        let mut command = tokio::process::Command::new(own);
        command
            .arg(BECOME)
            .arg(&self.node_root)
            .args([name, "--version"]);
        command
            .env("PATH", NODE_PATH)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(PROGRAM_MAX, command.output())
            .await
            .ok()?
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The least of the file systems that a checkpoint passes through.
    fn free_bytes(&self) -> u64 {
        let folders = PASSED_THROUGH
            .iter()
            .map(|folder| self.node_root.join(folder))
            .chain([self.state_dir.clone()]);
        let free = folders
            .filter_map(|folder| rustix::fs::statvfs(&folder).ok())
            .map(|facts| facts.f_bavail * facts.f_frsize);
        free.min().unwrap_or_default()
    }
}

/// Changes the root to the node's and becomes one of its programs; returns only when that failed.
/// `arguments`: the root, the program, its arguments.
pub fn become_program(arguments: &[String]) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    let [root, program, rest @ ..] = arguments else {
        return std::io::Error::other("a root and a program are needed");
    };
    // The root may be ours already, in tests and on a node without containers around its worker.
    if let Err(error) =
        rustix::process::chroot(Path::new(root)).and_then(|()| rustix::process::chdir("/"))
    {
        return error.into();
    }
    std::process::Command::new(program).args(rest).exec()
}

/// Findings for checkpoint, and for restore.
fn judge(seen: &Seen) -> (Vec<Finding>, Vec<Finding>) {
    let mut both = Vec::new();
    judge_criu(seen, &mut both);
    if let Err(why) = &seen.containerd {
        both.push(refuse(
            "RuntimeSilent",
            format!("containerd does not answer: {why}"),
            "start containerd",
        ));
    }
    let mut checkpoint = both.clone();
    let mut restore = both;
    if let Ok(version) = &seen.containerd {
        checkpoint.extend(checkpoint_by(version));
        restore.extend(restore_by(version, seen.restore_is_enabled));
    }
    checkpoint.extend(seen.kubelet.as_ref().and_then(kubelet_says));
    (checkpoint, restore)
}

fn judge_criu(seen: &Seen, findings: &mut Vec<Finding>) {
    let criu = numbers(&seen.criu);
    let install = "install CRIU 4.2 or newer and restart containerd";
    if seen.criu.is_empty() {
        findings.push(refuse(
            "NoCriu",
            "there is no CRIU on the node".to_owned(),
            install,
        ));
    } else if criu < CRIU_MIN {
        findings.push(refuse(
            "CriuTooOld",
            format!("CRIU {} is older than 3.16", seen.criu),
            install,
        ));
    } else if numbers(&seen.kernel) >= KERNEL_PASSCRED && criu < CRIU_FOR_PASSCRED {
        let message = format!(
            "CRIU {} does not work on kernel {}: from 6.16 on it must be 4.2 or newer",
            seen.criu, seen.kernel
        );
        findings.push(refuse("CriuTooOld", message, install));
    }
    let settings = seen.settings.as_deref().unwrap_or_default();
    let has = |setting: &str| {
        settings
            .lines()
            .any(|line| line.split('#').next().unwrap_or_default().trim() == setting)
    };
    if !has("tcp-close") {
        let message = "/etc/criu/runc.conf on the node does not say tcp-close: pods with open connections can neither be \
                       dumped nor restored"
            .to_owned();
        findings.push(refuse(
            "CriuSettings",
            message,
            "write a line tcp-close into /etc/criu/runc.conf on all nodes",
        ));
    } else if !has("skip-in-flight") {
        let message = "/etc/criu/runc.conf on the node does not say skip-in-flight: a connection that is just being made \
                       fails the dump"
            .to_owned();
        let remedy = "write a line skip-in-flight into /etc/criu/runc.conf on all nodes";
        findings.push(finding(Severity::Warn, "CriuSettings", message, remedy));
    }
}

fn checkpoint_by(containerd: &str) -> Option<Finding> {
    let message = format!(
        "containerd {containerd} cannot make checkpoints through the kubelet: from 2.0 on it can"
    );
    (numbers(containerd) < [2, 0, 0])
        .then(|| refuse("RuntimeTooOld", message, "use containerd 2.1"))
}

/// Restoring by image came with 2.1.0, was switched off in 2.2.7 and 2.3.4, and is gone from 2.4 on.
fn restore_by(containerd: &str, is_enabled: bool) -> Option<Finding> {
    let setting = "set enable_experimental_restore_via_create = true in the section \
                   [plugins.\"io.containerd.cri.v1.runtime\"] of containerd's configuration and restart it";
    match numbers(containerd) {
        [0 | 1, ..] | [2, 0, _] => {
            let message =
                format!("containerd {containerd} cannot restore from an image: 2.1 to 2.3 can");
            Some(refuse("RuntimeTooOld", message, "use containerd 2.1"))
        }
        [2, 1, _] | [2, 2, ..=6] | [2, 3, ..=3] => None,
        [2, 2 | 3, _] if is_enabled => None,
        [2, 2 | 3, _] => {
            let message =
                format!("containerd {containerd} has restoring from an image switched off");
            Some(refuse("RestoreSwitchedOff", message, setting))
        }
        [..] => {
            let message = format!(
                "containerd {containerd} cannot restore from an image any more: it went with 2.4"
            );
            Some(refuse(
                "RestoreRemoved",
                message,
                "use containerd 2.1 to 2.3 on this node",
            ))
        }
    }
}

fn kubelet_says(probe: &Probe) -> Option<Finding> {
    match probe {
        Probe::Ready => None,
        Probe::Forbidden => Some(refuse(
            "KubeletForbids",
            "the kubelet does not let the worker make checkpoints".to_owned(),
            "grant create on nodes/checkpoint to the worker's ServiceAccount",
        )),
        Probe::NoSuchCall => Some(refuse(
            "KubeletCannot",
            "the kubelet has no checkpoint call".to_owned(),
            "use Kubernetes 1.30 or newer, and don't switch off the gate ContainerCheckpoint or enableDebuggingHandlers",
        )),
        Probe::Unclear(why) => Some(refuse(
            "KubeletSilent",
            format!("the kubelet's checkpoint call can't be reached: {why}"),
            "",
        )),
    }
}

/// Is the setting on, however the JSON of this version spells it?
fn has_restore(details: &HashMap<String, String>) -> bool {
    let letters: String = details
        .get("config")
        .into_iter()
        .flat_map(|json| json.chars())
        .filter(|c| c.is_alphanumeric() || *c == ':')
        .collect();
    letters
        .to_lowercase()
        .contains(&format!("{RESTORE_SETTING}:true"))
}

/// The first three numbers of a version; what is missing is 0.
fn numbers(version: &str) -> [u64; 3] {
    let mut numbers = version
        .split(['.', '-', '+', '~'])
        .map(|part| part.parse().unwrap_or_default());
    std::array::from_fn(|_| numbers.next().unwrap_or_default())
}

/// The first word that looks like a version: `Version: 4.2.1`, `runc version 1.3.6`.
fn version_in(printed: &str) -> Option<String> {
    let mut words = printed
        .split_whitespace()
        .map(|word| word.trim_start_matches('v'));
    words
        .find(|word| word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit()))
        .map(str::to_owned)
}

fn cpu_line(cpuinfo: &str, names: &[&str]) -> String {
    let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(name, _)| names.contains(&name.trim()))
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

/// Kubernetes' word for the machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn refuse(code: &str, message: String, remedy: &str) -> Finding {
    finding(Severity::Refuse, code, message, remedy)
}

fn finding(severity: Severity, code: &str, message: String, remedy: &str) -> Finding {
    Finding {
        severity: severity.into(),
        code: code.to_owned(),
        message,
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Seen {
        Seen {
            criu: "4.2.1".into(),
            kernel: "6.18.44-x".into(),
            containerd: Ok("2.1.9".into()),
            restore_is_enabled: false,
            settings: Some("# ours\ntcp-close\nskip-in-flight  # both\n".into()),
            kubelet: Some(Probe::Ready),
        }
    }

    fn codes(seen: &Seen) -> (Vec<String>, Vec<String>) {
        let (checkpoint, restore) = judge(seen);
        let codes =
            |findings: Vec<Finding>| findings.into_iter().map(|finding| finding.code).collect();
        (codes(checkpoint), codes(restore))
    }

    #[test]
    fn a_good_node_has_no_findings() {
        assert_eq!(judge(&good()), (vec![], vec![]));
    }

    #[test]
    fn each_containerd_is_judged_by_what_it_can_do() {
        let table = [
            ("1.7.27", false, "RuntimeTooOld"),
            ("2.0.5", true, "RuntimeTooOld"),
            ("2.1.0", false, ""),
            ("2.1.9~ds1", false, ""),
            ("2.2.6", false, ""),
            ("2.2.7", false, "RestoreSwitchedOff"),
            ("2.2.7", true, ""),
            ("2.3.3", false, ""),
            ("2.3.4", false, "RestoreSwitchedOff"),
            ("2.3.4", true, ""),
            ("2.4.0-beta.0", true, "RestoreRemoved"),
            ("3.0.0", true, "RestoreRemoved"),
        ];
        for (version, enabled, code) in table {
            let found = restore_by(version, enabled)
                .map(|finding| finding.code)
                .unwrap_or_default();
            assert_eq!(found, code, "{version}");
        }
    }

    #[test]
    fn criu_is_judged_together_with_the_kernel() {
        for (criu, kernel, code) in [
            ("", "6.1.0", Some("NoCriu")),
            ("3.15", "6.1.0", Some("CriuTooOld")),
            ("3.17.1", "6.1.0", None),
            ("4.1.1", "6.16.0", Some("CriuTooOld")),
            ("4.2", "6.16.0", None),
        ] {
            let seen = Seen {
                criu: criu.into(),
                kernel: kernel.into(),
                ..good()
            };
            let expected: Vec<String> = code.into_iter().map(str::to_owned).collect();
            assert_eq!(
                codes(&seen),
                (expected.clone(), expected),
                "{criu} on {kernel}"
            );
        }
    }

    #[test]
    fn a_missing_setting_a_silent_runtime_and_a_kubelet_that_forbids_are_told() {
        assert_eq!(
            codes(&Seen {
                settings: None,
                ..good()
            })
            .0,
            ["CriuSettings"]
        );
        assert_eq!(
            codes(&Seen {
                containerd: Err("gone".into()),
                ..good()
            })
            .1,
            ["RuntimeSilent"]
        );
        let forbidden = codes(&Seen {
            kubelet: Some(Probe::Forbidden),
            ..good()
        });
        assert_eq!(forbidden, (vec!["KubeletForbids".to_owned()], vec![]));
    }

    #[test]
    fn versions_and_settings_are_found_in_what_programs_print() {
        assert_eq!(
            version_in("Version: 4.2.1\nGitID: v4.2.1\n").as_deref(),
            Some("4.2.1")
        );
        assert_eq!(
            version_in("runc version 1.3.6+ds1\ncommit: x\n").as_deref(),
            Some("1.3.6+ds1")
        );
        let details = |json: &str| HashMap::from([("config".to_owned(), json.to_owned())]);
        assert!(has_restore(&details(
            r#"{"enableExperimentalRestoreViaCreate": true,"x":1}"#
        )));
        assert!(has_restore(&details(
            r#"{"enable_experimental_restore_via_create":true}"#
        )));
        assert!(!has_restore(&details(
            r#"{"enableExperimentalRestoreViaCreate":false,"x":true}"#
        )));
    }
}
