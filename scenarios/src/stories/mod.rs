//! Stories: what Longshore promises, told on a real cluster and judged from outside.
//!
//! A story starts its own pods, moves them with the `migrate` command as a user would, and asserts on what a client, a
//! log or the API shows; never on Longshore's own word alone. Stories run one after the other on one lab, each in a
//! namespace of its own that is deleted afterwards; one that breaks something (an S3 server, a containerd) mends it
//! before it ends. `stage` is what they share, `good` and the others beside it are the stories by their theme.

mod faults;
mod faults_kills;
mod faults_users;
mod harm;
mod journey;
mod stage;
mod witness;

use anyhow::Result;
use std::time::{Duration, Instant};

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
    [
        faults::stories(),
        faults_users::stories(),
        faults_kills::stories(),
    ]
    .into_iter()
    .flatten()
    .collect()
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
pub fn tell(stories: &[Story], wanted: &[String], lab: &crate::state::Lab) -> Result<Told> {
    let mut told = Told::default();
    for story in stories.iter().filter(|story| is_wanted(story.name, wanted)) {
        let began = Instant::now();
        let stage = Stage::set(lab, story.name)?;
        let ended = (story.tell)(&stage);
        let cleared = stage.clear();
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
    Ok(told)
}

/// Is this story among those asked for?
pub fn is_wanted(name: &str, wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()))
}

fn seconds(elapsed: Duration) -> f32 {
    elapsed.as_secs_f32()
}
