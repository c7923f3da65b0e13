//! Ending a dump that does not end by itself.
//!
//! CRIU can hang while it seizes a process (a stopped one, for example), and then the container stays frozen whatever
//! containerd is told. The way back is to end CRIU: its hold on the processes ends with it. It runs as the child of
//! `runc checkpoint … CONTAINER`, and that command line is how it is found.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// A killed process is gone in milliseconds, unless the kernel holds it.
const GONE_MAX: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

/// A process as far as we need it here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    name: String,
    arguments: Vec<String>,
}

/// Ends every dump of this container that still runs. True: none is left.
pub async fn end(container_id: &str) -> bool {
    let deadline = tokio::time::Instant::now() + GONE_MAX;
    loop {
        let left = dumping(&processes(Path::new("/proc")), container_id);
        if left.is_empty() {
            return true;
        }
        for pid in left
            .iter()
            .filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?))
        {
            tracing::warn!(
                pid = pid.as_raw_nonzero(),
                container_id,
                "ending a dump that was left over"
            );
            let _already_gone = kill_process(pid, Signal::KILL);
        }
        if tokio::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// CRIU first: it holds the processes; then the runtime that waits for it.
fn dumping(all: &[Process], container_id: &str) -> Vec<u32> {
    let is_dump = |process: &&Process| {
        process.arguments.iter().any(|word| word == "checkpoint")
            && process
                .arguments
                .last()
                .is_some_and(|last| last == container_id)
    };
    let runtimes: Vec<u32> = all
        .iter()
        .filter(is_dump)
        .map(|process| process.pid)
        .collect();
    let mut found = runtimes.clone();
    loop {
        let below =
            |process: &&Process| found.contains(&process.parent) && !found.contains(&process.pid);
        let more: Vec<u32> = all
            .iter()
            .filter(below)
            .filter(|process| process.name == "criu")
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.reverse();
    found
}

fn processes(proc: &Path) -> Vec<Process> {
    let Ok(listing) = fs::read_dir(proc) else {
        return Vec::new();
    };
    listing
        .flatten()
        .filter_map(|entry| process(&entry.path()))
        .collect()
}

fn process(folder: &Path) -> Option<Process> {
    let pid = folder.file_name()?.to_str()?.parse().ok()?;
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // PID (NAME) STATE PARENT …; the name may hold anything, so from its last bracket on.
    let (head, tail) = stat.rsplit_once(')')?;
    let parent = tail.split_whitespace().nth(1)?.parse().ok()?;
    let name = head.split_once('(')?.1.to_owned();
    let line = fs::read(folder.join("cmdline")).ok()?;
    let words = line
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty());
    let arguments = words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    Some(Process {
        pid,
        parent,
        name,
        arguments,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, line: &str) -> Process {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Process {
            pid,
            parent,
            name: arguments[0].clone(),
            arguments,
        }
    }

    #[test]
    fn only_the_dump_of_this_container_is_ended_and_criu_first() {
        let all = [
            process(1, 0, "containerd"),
            process(2, 1, "runc --root /r checkpoint --image-path /i abc"),
            process(3, 2, "criu swrk 3"),
            process(4, 3, "criu swrk 3"),
            process(5, 1, "runc --root /r checkpoint --image-path /i other"),
            process(6, 5, "criu swrk 3"),
            process(7, 1, "runc --root /r kill abc"),
        ];
        assert_eq!(dumping(&all, "abc"), [4, 3, 2]);
        assert!(dumping(&all, "nothing").is_empty());
    }

    #[tokio::test]
    async fn a_real_process_with_such_a_command_line_is_ended() {
        use std::os::unix::process::CommandExt;
        let id = format!("longshore-test-{}", std::process::id());
        let mut child = std::process::Command::new("sh")
            .arg0("runc")
            .args(["-c", "sleep 100; true", "checkpoint", &id])
            .spawn()
            .unwrap();
        // Reaped beside us, as its parent would.
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(end(&id).await);
        assert!(!reaper.join().unwrap().success());
    }
}
