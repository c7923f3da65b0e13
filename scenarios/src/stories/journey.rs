//! A migration under way, seen from outside: the `migrate` command waits for its end in one place while the story sees
//! the phases go by in another, and may do harm in the middle of one.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Stage, stage::Migrated};
use crate::process;

/// A phase that is to come, comes within this; the slowest waits for a budget of a few seconds to run out.
const PHASE_WITHIN: Duration = Duration::from_secs(40);
/// A migration that is put right after a fault waits for back-offs; more than this is stuck.
const END_WITHIN: Duration = Duration::from_secs(120);

/// One migration.
pub struct Journey<'a> {
    stage: &'a Stage,
    watch: Child,
    news: Receiver<(String, String)>,
    command: JoinHandle<Result<Migrated>>,
    name: Option<String>,
}

impl<'a> Journey<'a> {
    /// Asks for it, with more flags if need be.
    pub fn begin(stage: &'a Stage, pod: &str, to: &str, flags: &[&str]) -> Result<Self> {
        let known: Vec<String> = stage.migrations()?.iter().map(name_of).collect();
        let mut watch = stage.cluster.kubectl();
        let lines = r#"jsonpath={.metadata.name}{" "}{.status.phase}{"\n"}"#;
        watch.args(["-n", &stage.namespace, "get", "podmigrations", "--watch"]);
        watch.args(["-o", lines]);
        let mut watch = watch
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .context("watch the migrations")?;
        let lines = watch.stdout.take().context("read what is watched")?;
        let (sender, news) = channel();
        thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let (name, phase) = line.split_once(' ').unwrap_or((&line, ""));
                if known.iter().any(|old| old == name) {
                    continue;
                }
                if sender.send((name.to_owned(), phase.to_owned())).is_err() {
                    return;
                }
            }
        });
        let mut command = stage.migrate_command(&[&["pod", pod, "--to", to], flags].concat());
        let command = thread::spawn(move || finish(&mut command));
        Ok(Self {
            stage,
            watch,
            news,
            command,
            name: None,
        })
    }

    /// Waits until it is in this phase.
    pub fn reaches(&mut self, phase: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            match self
                .news
                .recv_timeout(PHASE_WITHIN.saturating_sub(began.elapsed()))
            {
                Ok((name, now)) => {
                    self.name = Some(name);
                    if now == phase {
                        return Ok(());
                    }
                    if ["Succeeded", "RolledBack", "Rescued", "Refused", "Abandoned"]
                        .contains(&now.as_str())
                    {
                        bail!("the migration was {now} before {phase} was seen");
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    bail!("the migration did not come to {phase}")
                }
            }
        }
    }

    /// The name of its object, once it was seen.
    pub fn name(&self) -> Result<&str> {
        self.name
            .as_deref()
            .context("the migration was not seen yet")
    }

    /// Its object as it is now.
    pub fn object(&self) -> Result<Value> {
        let name = self.name()?;
        self.stage
            .cluster
            .json(&["-n", &self.stage.namespace, "get", "podmigration", name])
    }

    /// Waits for the end: what the command said, and the object then.
    pub fn end(mut self) -> Result<(Migrated, Ended)> {
        let ended = self
            .command
            .join()
            .unwrap_or_else(|_| Err(anyhow!("waiting for migrate panicked")));
        // What was not looked at while it happened.
        while let Ok((name, _)) = self.news.recv_timeout(Duration::from_millis(100)) {
            self.name = Some(name);
        }
        let _ = self.watch.kill();
        let _ = self.watch.wait();
        let ended = ended?;
        let name = self.name.as_deref().context("the migration was not seen")?;
        let object =
            self.stage
                .cluster
                .json(&["-n", &self.stage.namespace, "get", "podmigration", name])?;
        Ok((ended, Ended(object)))
    }
}

fn finish(command: &mut Command) -> Result<Migrated> {
    let output = process::output(command, END_WITHIN)?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Migrated {
        code: output.status.code().context("migrate was killed")?,
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The object of a migration that has ended.
pub struct Ended(Value);

impl Ended {
    /// How it ended.
    pub fn phase(&self) -> &str {
        self.0["status"]["phase"].as_str().unwrap_or_default()
    }

    /// Why it was undone.
    pub fn reason(&self) -> String {
        let reason = &self.0["status"]["reason"];
        let word = |key: &str| reason[key].as_str().unwrap_or_default();
        format!("{}: {}", word("code"), word("message"))
    }

    /// When this phase was entered, milliseconds since 1970.
    pub fn entered_ms(&self, phase: &str) -> Result<u64> {
        let phases = self.0["status"]["phases"].as_array().into_iter().flatten();
        let mut entered = phases.filter(|entry| entry["phase"] == phase);
        let entered = entered
            .next()
            .with_context(|| format!("the migration was never {phase}"))?;
        let text = entered["entered"].as_str().unwrap_or_default();
        unix_ms(text).with_context(|| format!("understand the time {text:?}"))
    }
}

/// RFC 3339 in UTC with milliseconds, as status has it.
fn unix_ms(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, separator: char| -> Option<Vec<u64>> {
        text.split(separator)
            .map(|part| part.parse().ok())
            .collect()
    };
    let (date, (clock, millis)) = (numbers(date, '-')?, time.split_once('.')?);
    let (clock, millis): (Vec<u64>, u64) = (numbers(clock, ':')?, millis.parse().ok()?);
    let ([year, month, day], [hour, minute, second]) =
        (date[..].try_into().ok()?, clock[..].try_into().ok()?);
    let days: u64 = days_since_1970(year, month, day)?;
    let seconds: u64 = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some(seconds * 1_000 + millis)
}

/// Counted from March, so that the leap day is a year's last.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let before = year * 365 + year / 4 - year / 100 + year / 400;
    (before + (month * 153 + 2) / 5 + day).checked_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_phases_are_read() {
        assert_eq!(unix_ms("1970-01-01T00:00:00.007Z"), Some(7));
        assert_eq!(unix_ms("2024-02-29T12:00:00.000Z"), Some(1_709_208_000_000));
        assert_eq!(unix_ms("2026-11-24T12:34:23.250Z"), Some(1_795_523_663_250));
        assert_eq!(unix_ms("yesterday"), None);
    }
}
