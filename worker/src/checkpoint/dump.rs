//! The end of a dump that nobody waits for any more.
//!
//! A dump that moves is waited for, however long it takes: CRIU has code of its own in the processes it dumps, and
//! killed in the middle it would leave it there, so that they could never run again. But CRIU can also hang while it
//! seizes a process (a stopped one, for example), and then the container stays frozen whatever containerd is told.
//! There the way back is to kill CRIU: its hold on the processes ends with it, and nothing of it is in them yet. What
//! neither computes nor reads nor writes for a while, hangs.
//!
//! It runs as the child of `runc checkpoint … CONTAINER`, and that command line is how it is found.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// A killed process is gone in milliseconds, unless the kernel holds it.
const GONE_MAX: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);
/// A dump on a machine with other work stands still for some hundred milliseconds at most.
const STANDS_STILL_MAX: Duration = Duration::from_secs(3);

/// A process as far as we need it here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    name: String,
    arguments: Vec<String>,
}

/// Waits for every dump of this container that moves, and kills those that hang. True: none is left.
pub async fn end(container_id: &str) -> bool {
    let mut moved = (0, tokio::time::Instant::now());
    while moved.1.elapsed() < STANDS_STILL_MAX {
        let all = processes(Path::new("/proc"));
        let left = dumping(&all, container_id);
        if left.is_empty() {
            return true;
        }
        let work = work_done(Path::new("/proc"), &with_descendants(&all, left));
        if work != moved.0 {
            moved = (work, tokio::time::Instant::now());
        }
        tokio::time::sleep(POLL).await;
    }
    kill(container_id).await
}

async fn kill(container_id: &str) -> bool {
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
                "ending a dump that hangs"
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
    let mut found = below(all, runtimes, |process| process.name == "criu");
    found.reverse();
    found
}

/// CRIU lets others work for it: a tar for every small file system.
fn with_descendants(all: &[Process], of: Vec<u32>) -> Vec<u32> {
    below(all, of, |_| true)
}

fn below(all: &[Process], mut found: Vec<u32>, fits: impl Fn(&Process) -> bool) -> Vec<u32> {
    loop {
        let is_new =
            |process: &&Process| found.contains(&process.parent) && !found.contains(&process.pid);
        let more: Vec<u32> = all
            .iter()
            .filter(is_new)
            .filter(|process| fits(process))
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Clock ticks computed, bytes read and written: another number each time something was done. One that just ended
/// makes it smaller, which is as good.
fn work_done(proc: &Path, pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let folder = proc.join(pid.to_string());
        let stat = fs::read_to_string(folder.join("stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // Fields 14 and 15 of proc(5), the 12th and 13th after the name.
        let ticks = after_name.split_whitespace().skip(11).take(2);
        let io = fs::read_to_string(folder.join("io")).unwrap_or_default();
        let bytes = io
            .lines()
            .filter(|line| line.starts_with("rchar:") || line.starts_with("wchar:"))
            .filter_map(|line| line.split_whitespace().nth(1));
        ticks
            .chain(bytes)
            .filter_map(|number| number.parse::<u64>().ok())
            .fold(0, u64::wrapping_add)
    };
    pids.iter().map(of).fold(0, u64::wrapping_add)
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

    /// A shell that calls itself a dump of this container, reaped beside us, as its parent would.
    fn dump_that_does(work: &str, id: &str) -> std::thread::JoinHandle<std::process::ExitStatus> {
        use std::os::unix::process::CommandExt;
        let mut child = std::process::Command::new("sh")
            .arg0("runc")
            .args(["-c", work, "checkpoint", id])
            .spawn()
            .unwrap();
        std::thread::spawn(move || child.wait().unwrap())
    }

    #[tokio::test]
    async fn a_dump_that_hangs_is_ended() {
        let id = format!("longshore-test-hangs-{}", std::process::id());
        let ended = dump_that_does("sleep 100; true", &id);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(end(&id).await);
        assert!(!ended.join().unwrap().success());
    }

    #[tokio::test]
    async fn a_dump_that_moves_is_waited_for_and_not_touched() {
        let id = format!("longshore-test-moves-{}", std::process::id());
        // Longer than a hanging one would be left alone.
        let work = "i=0; while [ $i -lt 12 ]; do i=$((i+1)); sleep 0.4; done";
        let ended = dump_that_does(work, &id);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(end(&id).await);
        assert!(ended.join().unwrap().success());
    }
}
