//! Many schedules, on all cores: each thread takes the next seed. The order of the answers is the seeds', whoever was
//! faster.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{mistakes::Known, schedule::Schedule, stage, stage::Told};

/// What came of many schedules.
#[derive(Debug, Default)]
pub struct Sum {
    /// How many.
    pub schedules: u64,
    /// Those with a violation, and the first one of each.
    pub violated: BTreeMap<u64, String>,
    /// Migrations by how they ended.
    pub ends: BTreeMap<String, u64>,
    /// Events in all.
    pub events: u64,
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Plays the schedules of these seeds.
#[must_use]
pub fn many(from: u64, to: u64, news: impl Fn(u64, &str) + Sync) -> Sum {
    let next = AtomicU64::new(from);
    let sum = Mutex::new(Sum::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to {
                return;
            }
            let told = stage::play(Schedule::drawn(seed), &[], false);
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.take(seed, told, &news);
        }
    };
    thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(work);
        }
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Sum {
    fn take(&mut self, seed: u64, told: Told, news: impl Fn(u64, &str)) {
        self.schedules += 1;
        self.events += told.events;
        for end in told.ends {
            *self.ends.entry(end).or_default() += 1;
        }
        if let Some(first) = told.violations.into_iter().next() {
            news(seed, &first.what);
            self.violated.insert(seed, first.what);
        }
    }
}

/// The first seed that catches this mistake, and by what.
#[must_use]
pub fn caught(known: &Known) -> Option<(u64, String)> {
    let next = AtomicU64::new(0);
    let found: Mutex<BTreeMap<u64, String>> = Mutex::default();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let is_found = {
                let found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.keys().next().is_some_and(|first| *first < seed)
            };
            if is_found || seed >= known.seeds_max {
                return;
            }
            let told = stage::play(Schedule::drawn(seed), known.mistakes, false);
            let first = told.violations.into_iter().next();
            // What is wrong without the mistake does not catch it.
            let sound = || {
                stage::play(Schedule::drawn(seed), &[], false)
                    .violations
                    .is_empty()
            };
            if let Some(first) = first.filter(|_| sound()) {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.insert(seed, first.what);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(work);
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.into_iter().next()
}
