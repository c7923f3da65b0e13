//! Stories: what Longshore promises, told on a real cluster and judged from outside.
//!
//! A story starts its own pods, moves them with the `migrate` command as a user would, and asserts on what a client, a
//! log or the API shows; never on Longshore's own word alone. Stories run one after the other on one lab, each in a
//! namespace of its own that is deleted afterwards; one that breaks something (an S3 server, a containerd) mends it
//! before it ends. `stage` is what they share, `good` and the others beside it are the stories by their theme.

mod client;
mod faults;
mod faults_users;
mod good;
mod ground;
mod group;
mod harm;
mod journey;
mod matrix;
mod peers;
mod refusals;
mod replication;
mod stage;
mod telemetry;
mod watch;
mod witness;

use anyhow::Result;
use std::time::{Duration, Instant};

use crate::{control, state::Lab};

pub use matrix::{FROM_DEBIAN, faults};
pub use stage::Stage;

/// One story.
pub struct Story {
    /// Its name on the command line: words with dashes.
    pub name: &'static str,
    /// The promise, one sentence.
    pub about: &'static str,
    /// Tells it; an error says what was not as promised.
    pub tell: fn(&Stage) -> Result<()>,
}

/// All stories, in the order they are told.
pub fn all() -> Vec<Story> {
    let mut all = good_days();
    all.extend(through_the_store());
    all.extend(base_images());
    all.extend(faults::stories());
    all.extend(faults_users::stories());
    all.extend(replication::stories());
    all.extend(group::stories());
    all.extend(telemetry::stories());
    all.push(Story {
        name: "fault-matrix",
        about: "whatever breaks in whatever phase: no number is lost, none is answered by two copies",
        tell: matrix::choice,
    });
    all
}

/// Nothing breaks, or nothing is begun.
fn good_days() -> Vec<Story> {
    vec![
        Story {
            name: "ledger-ten-moves",
            about: "ten moves back and forth leave no gap and no repeat in answers, log and file",
            tell: good::ledger_ten_moves,
        },
        Story {
            name: "kuard-holds-memory",
            about: "256 MiB of memory are the same bit for bit on the other node",
            tell: good::kuard_holds_memory,
        },
        Story {
            name: "crash-after-move",
            about: "a container that dies after a move starts as the ordinary image, and can move again",
            tell: good::crash_after_move,
        },
        Story {
            name: "redis-under-load",
            about: "every write that redis acknowledged before, during and after the move is there",
            tell: good::redis_under_load,
        },
        Story {
            name: "two-containers",
            about: "both containers move, cut at one moment",
            tell: good::two_containers,
        },
        Story {
            name: "sidecar-and-init",
            about: "a native sidecar moves with its memory; a finished init container does not run again",
            tell: good::sidecar_and_finished_init,
        },
        Story {
            name: "ten-at-once",
            about: "ten migrations asked for at once all end, none twice, none lost",
            tell: good::ten_at_once,
        },
        Story {
            name: "labels-annotations-spec",
            about: "the moved pod looks as before; events, columns and the command say what happened",
            tell: good::looks_the_same,
        },
        Story {
            name: "abort-by-deletion",
            about: "deleting a PodMigration under way gives the source back within a second",
            tell: good::abort_by_deletion,
        },
        Story {
            name: "refusals",
            about: "every reason not to is told before anything is frozen",
            tell: refusals::refusals,
        },
        Story {
            name: "moto",
            about: "another S3 server serves as well",
            tell: good::moto,
        },
    ]
}

/// What goes through the store, and what lies there.
fn through_the_store() -> Vec<Story> {
    vec![
        Story {
            name: "rounds",
            about: "memory that was sent ahead while the pod ran is not sent again under the freeze",
            tell: good::sent_ahead,
        },
        Story {
            name: "rounds-lost",
            about: "a migration goes on when either node loses what was sent ahead",
            tell: good::rounds_lost,
        },
        Story {
            name: "kept-checkpoint",
            about: "a checkpoint that was kept makes the pod's next moves cheap, and goes when nobody needs it",
            tell: good::kept_checkpoint,
        },
        Story {
            name: "store-cleared-up",
            about: "migrate store shows what lies in the store, proves it, and removes what ended migrations left and nothing else",
            tell: good::store_cleared_up,
        },
    ]
}

/// The target lacks the pod's image.
fn base_images() -> Vec<Story> {
    vec![
        Story {
            name: "base-image-by-pull",
            about: "an image that the target lacks is pulled before the freeze",
            tell: good::by_pull,
        },
        Story {
            name: "base-image-by-secret",
            about: "an image that its registry gives to nobody without a password is pulled with the pod's own secret",
            tell: good::by_secret,
        },
        Story {
            name: "base-image-through-the-store",
            about: "an image that nobody can pull any more comes from the source node",
            tell: good::through_the_store,
        },
    ]
}

/// How the telling ended.
#[derive(Debug, Default)]
pub struct Told {
    /// Stories that were as promised.
    pub passed: usize,
    /// Names of those that were not, and why.
    pub failed: Vec<(String, String)>,
    /// Names of those that were not told, and why not.
    pub skipped: Vec<(String, String)>,
}

/// Tells the stories whose name contains one of `wanted` (all of them without).
pub fn tell(stories: &[Story], wanted: &[String], lab: &Lab) -> Result<Told> {
    let mut told = Told::default();
    let mut stages = Vec::new();
    for story in stories.iter().filter(|story| is_wanted(story.name, wanted)) {
        let began = Instant::now();
        // A scheduler that ended itself in the story before is nobody else's to start; on a cluster its kubelet does it.
        control::start_controllers(&mut Lab::expect(&lab.site.name)?)?;
        let stage = Stage::set(lab, story.name)?;
        let ended = (story.tell)(&stage);
        let cleared = stage.clear();
        stages.push(stage);
        match ended.and(cleared) {
            Ok(()) => {
                println!(
                    "  ok      {} ({:.1} s)",
                    story.name,
                    seconds(began.elapsed())
                );
                told.passed += 1;
            }
            Err(error) => {
                println!(
                    "  FAILED  {} ({:.1} s): {error:#}",
                    story.name,
                    seconds(began.elapsed())
                );
                println!("          promised: {}", story.about);
                told.failed
                    .push((story.name.to_owned(), format!("{error:#}")));
            }
        }
    }
    // Together, at the end: each takes its time, and none is in the next story's way.
    for stage in stages {
        stage.gone()?;
    }
    Ok(told)
}

/// Is this story among those asked for?
pub fn is_wanted(name: &str, wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()))
}

fn seconds(elapsed: Duration) -> f32 {
    elapsed.as_secs_f32()
}
