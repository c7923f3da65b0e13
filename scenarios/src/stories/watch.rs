//! A watch that outlives the API server: `kubectl get --watch`, begun again whenever it ends.

use std::{
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Between the end of one kubectl and the next.
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// Watches until it is dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    kubectl: Arc<Mutex<Option<Child>>>,
}

impl Watch {
    /// `command` makes a kubectl, `read` reads what it prints, to its end.
    pub fn of(
        command: impl Fn() -> Command + Send + 'static,
        mut read: impl FnMut(ChildStdout) + Send + 'static,
    ) -> Self {
        let watch = Self {
            stop: Arc::default(),
            kubectl: Arc::default(),
        };
        let (stop, kubectl) = (Arc::clone(&watch.stop), Arc::clone(&watch.kubectl));
        thread::spawn(move || {
            while let Some(lines) = begin(&command, &stop, &kubectl) {
                if let Some(lines) = lines {
                    read(lines);
                }
                thread::sleep(AGAIN_AFTER);
            }
        });
        watch
    }
}

/// Starts a kubectl unless it is over; none when it could not be started.
fn begin(
    command: &impl Fn() -> Command,
    stop: &AtomicBool,
    kubectl: &Mutex<Option<Child>>,
) -> Option<Option<ChildStdout>> {
    let mut running = kubectl.lock().unwrap_or_else(PoisonError::into_inner);
    end(running.take());
    // Looked at under the lock: whoever stops it takes the lock next, and finds the last one.
    if stop.load(Ordering::Relaxed) {
        return None;
    }
    let started = command()
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn();
    let Ok(mut child) = started else {
        return Some(None);
    };
    let lines = child.stdout.take();
    *running = Some(child);
    Some(lines)
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        // Ended already, or ended now: nothing else is left of it either way.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut running = self.kubectl.lock().unwrap_or_else(PoisonError::into_inner);
        end(running.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, sync::mpsc::channel};

    #[test]
    fn a_watch_that_ends_is_begun_again_and_one_that_is_dropped_is_not() {
        let (sender, heard) = channel();
        let command = || {
            let mut command = Command::new("echo");
            command.arg("news");
            command
        };
        let watch = Watch::of(command, move |mut lines| {
            let mut text = String::new();
            lines.read_to_string(&mut text).unwrap();
            // Nobody hears it any more at the end.
            let _ = sender.send(text);
        });
        for _ in 0..2 {
            let text = heard.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(text, "news\n");
        }
        drop(watch);
        let last = heard.recv_timeout(Duration::from_secs(10));
        assert!(last.is_err() || heard.recv_timeout(Duration::from_secs(10)).is_err());
    }
}
