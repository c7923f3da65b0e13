//! Starting programs that outlive the lab's command, and running commands with a time limit.
//!
//! A program that stays is started by a shell that first enters the cgroup and then becomes the program, in a session
//! of its own (Ctrl-C in the terminal is not meant for it), with its output in a log. So there is no moment in which
//! a program of the lab runs outside the lab's cgroups, and `down` needs nothing else to find it.

use crate::cgroup;
use crate::state::{Lab, ProcessId};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Enters the groups named before `--`, then becomes the command after it. Writing 0 means the writer itself.
const ENTER_AND_BECOME: &str =
    r#"while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@""#;

/// A command that will run in a group of the lab.
pub fn in_group(lab: &Lab, unit: &str) -> Result<Command> {
    let mut command = Command::new("sh");
    command
        .args(["-c", ENTER_AND_BECOME, "sh"])
        .args(cgroup::entrances(&lab.site.cgroup(), unit)?)
        .arg("--");
    Ok(command)
}

/// The log of a component.
pub fn log_of(lab: &Lab, component: &str) -> Result<PathBuf> {
    Ok(lab
        .folder()?
        .join("logs")
        .join(format!("{}.log", component.replace('/', "-"))))
}

/// Starts a program that stays, and writes it down. `command` comes from [`in_group`].
pub fn start(lab: &mut Lab, component: &str, command: &Command) -> Result<Child> {
    let log_path = log_of(lab, component)?;
    fs::create_dir_all(log_path.parent().context("a log has a folder")?)
        .context("create the folder of logs")?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("open {}", log_path.display()))?;
    // setsid(1) becomes the command and keeps the process number, because a child just forked leads no group.
    let mut detached = Command::new("setsid");
    detached.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            detached.env(name, value);
        }
    }
    // The folder the lab was started from may go while the program stays: s3s-fs asks for it at every request.
    let child = detached
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the log")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {component}"))?;
    lab.processes
        .insert(component.to_owned(), ProcessId::of(child.id())?);
    lab.save()?;
    Ok(child)
}

/// Fails, showing the end of its log, when a component that should run doesn't.
pub fn check_alive(lab: &Lab, component: &str) -> Result<()> {
    if lab
        .processes
        .get(component)
        .is_some_and(|process| process.is_alive())
    {
        return Ok(());
    }
    bail!(
        "{component} has ended; the end of its log:\n{}",
        log_tail(lab, component)?
    );
}

/// The last lines of a component's log.
pub fn log_tail(lab: &Lab, component: &str) -> Result<String> {
    const LINES: usize = 15;
    let text = fs::read(log_of(lab, component)?).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

/// What a command reads on its standard input.
pub enum Input {
    /// Nothing.
    Nothing,
    /// A file, from where it stands.
    File(File),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// Runs a command that must succeed and gives what it printed.
pub fn run<I: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = I>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    succeed(&mut command, Duration::from_secs(60))
}

/// Runs a prepared command that must succeed within `limit` and gives what it printed.
pub fn succeed(command: &mut Command, limit: Duration) -> Result<String> {
    succeed_with_input(command, Input::Nothing, limit)
}

/// The same for a command that reads its standard input.
pub fn succeed_with_input(command: &mut Command, input: Input, limit: Duration) -> Result<String> {
    let output = output_with_input(command, input, limit)?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end or, past `limit`, kills it and fails.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    output_with_input(command, Input::Nothing, limit)
}

fn output_with_input(command: &mut Command, input: Input, limit: Duration) -> Result<Output> {
    let (stdin, text) = match input {
        Input::Nothing => (Stdio::null(), None),
        Input::File(file) => (file.into(), None),
        Input::Bytes(bytes) => (Stdio::piped(), Some(bytes)),
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", shown(command)))?;
    if let (Some(mut pipe), Some(text)) = (child.stdin.take(), text) {
        // A child that ends without reading all of it says why by its exit code, not by this pipe.
        thread::spawn(move || pipe.write_all(&text));
    }
    // Both pipes are drained while we wait: a full one would stop the child for good.
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let give_up = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("wait for {}", shown(command)))?
        {
            break status;
        }
        if Instant::now() > give_up {
            let _ = child.kill();
            let _ = child.wait();
            bail!(
                "{} did not end within {} s",
                shown(command),
                limit.as_secs_f32()
            );
        }
        thread::sleep(LOOK_AGAIN);
    };
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What could be read before a failure is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// A command as a person would type it, without the entering of groups.
fn shown(command: &Command) -> String {
    let words: Vec<_> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let from = words
        .iter()
        .position(|word| word == "--")
        .map_or(0, |at| at + 1);
    words[from..].join(" ")
}

/// Waits until `ready` gives something, or fails naming `what` after `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if began.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        thread::sleep(LOOK_AGAIN * 5);
    }
}

/// Whether a path is a socket or file that exists, as a value for [`wait_for`].
pub fn exists(path: &Path) -> Option<()> {
    path.exists().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_past_its_limit_is_ended_and_named() {
        let mut sleep = Command::new("sleep");
        sleep.arg("30");
        let began = Instant::now();
        let error = output(&mut sleep, Duration::from_millis(100)).unwrap_err();
        assert!(
            error.to_string().contains("sleep 30 did not end"),
            "{error}"
        );
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_command_that_prints_more_than_a_pipe_holds_still_ends() {
        let mut print = Command::new("sh");
        print.args([
            "-c",
            "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2",
        ]);
        let output = output(&mut print, Duration::from_secs(20)).unwrap();
        assert_eq!(
            (output.stdout.len(), output.stderr.len()),
            (1_000_000, 1_000_000)
        );
    }

    #[test]
    fn a_failure_shows_what_the_command_said() {
        let error = run("sh", ["-c", "echo broken pump >&2; exit 3"]).unwrap_err();
        assert!(error.to_string().contains("broken pump"), "{error}");
    }
}
