//! A migration under way, seen from outside: the `migrate` command waits for its end in one place while the story sees
//! the phases go by in another, and may do harm in the middle of one.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::{
    process::Command,
    sync::mpsc::{Receiver, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Stage, stage::Migrated, watch::Watch};
use crate::process;

/// A phase that is to come, comes within this; the slowest waits for a budget of a few seconds to run out.
const PHASE_WITHIN: Duration = Duration::from_secs(40);
/// A pod that its kubelet has not seen is waited for for 180 s, and may be rescued after that.
const END_WITHIN: Duration = Duration::from_secs(300);

/// What is left of the news arrives within this.
const NEWS_WITHIN: Duration = Duration::from_millis(200);
/// The ends of a migration that was not refused a look.
const ENDS: [&str; 5] = ["Succeeded", "RolledBack", "Rescued", "Refused", "Abandoned"];
/// One migration.
pub struct Journey<'a> {
    stage: &'a Stage,
    _watch: Watch,
    news: Receiver<Seen>,
    command: Option<JoinHandle<Result<Migrated>>>,
    seen: Option<Seen>,
}

impl<'a> Journey<'a> {
    /// Asks for it, with more flags if need be.
    pub fn begin(stage: &'a Stage, pod: &str, to: &str, flags: &[&str]) -> Result<Self> {
        let known: Vec<String> = stage.migrations()?.iter().map(name_of).collect();
        let (cluster, namespace) = (stage.cluster.clone(), stage.namespace.clone());
        let objects = move || {
            let mut watch = cluster.kubectl();
            watch.args(["-n", &namespace, "get", "podmigrations", "--watch"]);
            watch.args(["-o", "json"]);
            watch
        };
        let (sender, news) = channel();
        let watch = Watch::of(objects, move |lines| {
            // One object after the other, at every change.
            let objects = serde_json::Deserializer::from_reader(lines).into_iter::<Value>();
            let objects = objects.map_while(Result::ok).map(Seen);
            for seen in objects.filter(|seen| !known.contains(&name_of(&seen.0))) {
                // Nobody listens any more: it is dropped soon.
                let _ = sender.send(seen);
            }
        });
        let mut command = stage.migrate_command(&[&["pod", pod, "--to", to], flags].concat());
        let command = Some(thread::spawn(move || finish(&mut command)));
        Ok(Self {
            stage,
            _watch: watch,
            news,
            command,
            seen: None,
        })
    }

    /// Waits until it is in this phase.
    pub fn reaches(&mut self, phase: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let left = PHASE_WITHIN.saturating_sub(began.elapsed());
            let Ok(seen) = self.news.recv_timeout(left) else {
                bail!("the migration did not come to {phase}")
            };
            let (now, reason) = (seen.phase().to_owned(), seen.reason());
            self.seen = Some(seen);
            if now == phase {
                return Ok(());
            }
            if ENDS.contains(&now.as_str()) {
                bail!("the migration was {now} before {phase} was seen: {reason}");
            }
        }
    }

    /// The name of its object, once it was seen.
    pub fn name(&self) -> Result<&str> {
        let seen = self
            .seen
            .as_ref()
            .context("the migration was not seen yet")?;
        seen.0["metadata"]["name"]
            .as_str()
            .context("an object has a name")
    }

    /// Its object as it is now.
    pub fn object(&self) -> Result<Value> {
        let name = self.name()?;
        self.stage
            .cluster
            .json(&["-n", &self.stage.namespace, "get", "podmigration", name])
    }

    /// Has the command said how it ended?
    pub fn has_ended(&self) -> bool {
        self.command.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for that; false when it takes longer.
    pub fn ends_within(&self, within: Duration) -> bool {
        let began = Instant::now();
        while !self.has_ended() && began.elapsed() < within {
            thread::sleep(NEWS_WITHIN);
        }
        self.has_ended()
    }

    /// Waits for the end: what the command said, and what was last seen of the object, which an abort deletes.
    pub fn end(mut self) -> Result<(Migrated, Seen)> {
        let command = self.command.take().context("it is waited for once")?;
        let ended = command
            .join()
            .unwrap_or_else(|_| Err(anyhow!("waiting for migrate panicked")));
        while let Ok(seen) = self.news.recv_timeout(NEWS_WITHIN) {
            self.seen = Some(seen);
        }
        // The news may have had a gap; deleted, the last that was seen is all there is.
        let last = match self.object() {
            Ok(object) => Some(Seen(object)),
            Err(_) => self.seen.take(),
        };
        Ok((ended?, last.context("the migration was not seen")?))
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

/// A migration's object as it was seen.
#[derive(Clone, Debug)]
pub struct Seen(Value);

impl Seen {
    /// Where it stood: at the end, how it ended.
    pub fn phase(&self) -> &str {
        self.0["status"]["phase"].as_str().unwrap_or_default()
    }

    /// Its object's name.
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Its object's UID.
    pub fn uid(&self) -> Result<String> {
        let uid = self.0["metadata"]["uid"].as_str();
        Ok(uid.context("an object has a UID")?.to_owned())
    }

    /// Paused until restored, as the status has it.
    pub fn freeze(&self) -> Option<&str> {
        self.0["status"]["freeze"].as_str()
    }

    /// Bytes sent under the freeze.
    pub fn sent(&self) -> Result<u64> {
        let sent = self.0["status"]["bytes"]["sentBytes"].as_u64();
        sent.context("nothing was sent")
    }

    /// Bytes sent before it, by round.
    pub fn sent_ahead(&self) -> Vec<u64> {
        let rounds = self.0["status"]["rounds"].as_array().into_iter().flatten();
        rounds
            .filter_map(|round| round["bytes"]["sentBytes"].as_u64())
            .collect()
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
        let entered = phases
            .filter(|entry| entry["phase"] == phase)
            .filter_map(|entry| entry["entered"].as_str())
            .next();
        let time = entered.with_context(|| format!("the migration was never {phase}"))?;
        unix_ms(time).with_context(|| format!("understand the time {time:?}"))
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
