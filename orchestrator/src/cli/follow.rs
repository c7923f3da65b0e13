//! Follows one migration until it ends, telling what happens. Following is looking only: when it stops, for whatever
//! reason, the migration goes on.
//!
//! A lost connection is retried for as long as the wait lasts; the API server not knowing or not allowing us is told
//! at once, because no patience helps there.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, Event},
};

use super::{
    cluster::Cluster,
    failure::{Asking, Failure},
    render::news::{News, live},
    verdict::{self, Standing},
};
use crate::k8s::resource::PodMigration;

/// An orchestrator that is there takes a migration up within a second; ten leave room for its restart.
const UNTAKEN_HINT_AFTER: Duration = Duration::from_secs(10);
/// Often enough for a spinner to look alive.
const SPINNER_TICK: Duration = Duration::from_millis(120);

/// How following ended.
pub enum Followed {
    /// The migration ended.
    Ended(PodMigration),
    /// The object is gone and its last known status is no end.
    Gone(PodMigration),
    /// The wait lasted long enough.
    TimedOut(PodMigration),
    /// Ctrl-C.
    Interrupted(PodMigration),
}

/// Follows `object` for at most `patience`; `None` waits for ever.
pub async fn follow(
    cluster: &Cluster,
    object: PodMigration,
    patience: Option<Duration>,
    mut story: Story,
) -> Result<Followed, Failure> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    let asking = Asking {
        verb: "watch",
        resource: "podmigrations",
        name: &name,
        namespace: &namespace,
    };
    let only_it = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher::watcher(cluster.migrations(&namespace), only_it)
        .default_backoff()
        .boxed();
    let give_up = tokio::time::sleep(patience.unwrap_or(Duration::MAX));
    let hint = tokio::time::sleep(UNTAKEN_HINT_AFTER);
    tokio::pin!(give_up, hint);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut last = object;
    let mut listed = false;
    story.tell(&last);
    loop {
        if verdict::ended(&verdict::status(&last)).is_some() {
            return Ok(Followed::Ended(last));
        }
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => match step(event, &last, &mut listed) {
                    Seen::Changed(object) => {
                        story.tell(&object);
                        last = *object;
                    }
                    Seen::Gone(object) => {
                        let object = *object;
                        story.tell(&object);
                        let ended = verdict::ended(&verdict::status(&object)).is_some();
                        return Ok(if ended { Followed::Ended(object) } else { Followed::Gone(object) });
                    }
                    Seen::Nothing => {}
                },
                Some(Err(error)) => patient(&asking, &error, &mut story)?,
                None => return Ok(Followed::Gone(last)),
            },
            () = &mut give_up => return Ok(Followed::TimedOut(last)),
            () = &mut hint, if !hint.is_elapsed() => {
                if verdict::standing(&verdict::status(&last)) == Standing::Asked {
                    story.say("nobody has taken it up yet; is the orchestrator running? kubectl get pods -n longshore-system");
                }
            }
            interrupted = &mut interrupt => {
                interrupted.map_err(|source| Failure::Process { doing: "listen for Ctrl-C", source })?;
                return Ok(Followed::Interrupted(last));
            }
        }
    }
}

enum Seen {
    Changed(Box<PodMigration>),
    Gone(Box<PodMigration>),
    Nothing,
}

/// What an event means for the object that we follow. `listed`: it was in the listing that is under way.
fn step(event: Event<PodMigration>, last: &PodMigration, listed: &mut bool) -> Seen {
    let ours = |object: &PodMigration| object.metadata.uid == last.metadata.uid;
    match event {
        Event::Apply(object) if ours(&object) => Seen::Changed(Box::new(object)),
        Event::InitApply(object) if ours(&object) => {
            *listed = true;
            Seen::Changed(Box::new(object))
        }
        Event::Delete(object) if ours(&object) => Seen::Gone(Box::new(object)),
        Event::Init => {
            *listed = false;
            Seen::Nothing
        }
        // A listing without it: it was deleted while we were cut off.
        Event::InitDone if !*listed => Seen::Gone(Box::new(last.clone())),
        // A namesake is none of our business.
        Event::InitDone | Event::Apply(_) | Event::InitApply(_) | Event::Delete(_) => Seen::Nothing,
    }
}

/// Errors that time may heal are told and waited out; the others end the wait.
fn patient(asking: &Asking<'_>, error: &watcher::Error, story: &mut Story) -> Result<(), Failure> {
    let failure = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => asking.failure(error),
        watcher::Error::WatchError(status) => asking.answered(status),
        watcher::Error::NoResourceVersion => return Ok(()),
    };
    if !failure.heals() {
        return Err(failure);
    }
    story.say(&format!("{failure}; trying again"));
    Ok(())
}

/// Tells what happens, on stderr: a live line below the news on a terminal, the news alone elsewhere.
pub struct Story {
    news: News,
    bar: Option<ProgressBar>,
    /// The sentence that is repeated while nothing changes is said once.
    said: String,
}

impl Story {
    /// For people who wait.
    pub fn aloud() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_elapsed(Instant::now().elapsed());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4}  {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(SPINNER_TICK);
            bar
        });
        Self {
            news: News::default(),
            bar,
            said: String::new(),
        }
    }

    /// The news of this object.
    fn tell(&mut self, object: &PodMigration) {
        for line in self.news.of(object) {
            self.print(&line);
        }
        if let Some(bar) = &self.bar {
            bar.set_message(live(object));
        }
    }

    /// Something that isn't in the object.
    pub fn say(&mut self, sentence: &str) {
        if self.said != sentence {
            self.said = sentence.to_owned();
            self.print(sentence);
        }
    }

    fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Story {
    /// The live line goes; the news stays.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden;

    #[test]
    fn a_namesake_that_was_made_meanwhile_is_not_mistaken_for_it() {
        let ours = golden::recorded("in-doubt");
        let mut namesake = ours.clone();
        namesake.metadata.uid = Some("another".to_owned());
        let mut listed = false;
        assert!(matches!(
            step(Event::Init, &ours, &mut listed),
            Seen::Nothing
        ));
        assert!(matches!(
            step(Event::InitApply(namesake.clone()), &ours, &mut listed),
            Seen::Nothing
        ));
        assert!(matches!(
            step(Event::InitDone, &ours, &mut listed),
            Seen::Gone(_)
        ));
        assert!(matches!(
            step(Event::Delete(namesake), &ours, &mut listed),
            Seen::Nothing
        ));
    }

    #[test]
    fn a_listing_that_has_it_does_not_end_the_wait() {
        let ours = golden::recorded("in-doubt");
        let mut listed = false;
        assert!(matches!(
            step(Event::InitApply(ours.clone()), &ours, &mut listed),
            Seen::Changed(_)
        ));
        assert!(matches!(
            step(Event::InitDone, &ours, &mut listed),
            Seen::Nothing
        ));
    }
}
