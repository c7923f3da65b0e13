//! One life of a process, from its start to its kill -9: it may end before and after every one of its effects.
//!
//! Tasks of a dead process are not all found and stopped: whatever they try next never comes back to them. What was
//! sent before the death is carried out all the same.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use tokio_util::sync::CancellationToken;

use crate::sim::Sim;

/// The parts of a process in one task, so that they end together. A part is polled when it was woken itself, and only then:
/// some wake often.
pub async fn together<const N: usize>(parts: [BoxFuture<'_, ()>; N]) {
    let mut parts: FuturesUnordered<BoxFuture<'_, ()>> = parts.into_iter().collect();
    while parts.next().await.is_some() {}
}

struct Inside {
    sim: Sim,
    name: String,
    dead: AtomicBool,
    death: CancellationToken,
    effects: AtomicU64,
    dies_at: Option<u64>,
}

/// A process while it lives; clones are the same life.
#[derive(Clone)]
pub struct Life(Arc<Inside>);

impl Life {
    /// Begins. `dies_at` counts its effects twice, before and after each.
    #[must_use]
    pub fn new(sim: &Sim, name: &str, dies_at: Option<u64>) -> Self {
        Self(Arc::new(Inside {
            sim: sim.clone(),
            name: name.to_owned(),
            dead: AtomicBool::new(false),
            death: CancellationToken::new(),
            effects: AtomicU64::new(0),
            dies_at,
        }))
    }

    /// Whose.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Is it over?
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.0.dead.load(Ordering::Relaxed)
    }

    /// Ends now.
    pub fn die(&self, why: &str) {
        if !self.0.dead.swap(true, Ordering::Relaxed) {
            self.0.sim.event(&self.0.name, format_args!("dies: {why}"));
            self.0.death.cancel();
        }
    }

    /// Waits for its end.
    pub async fn died(&self) {
        self.0.death.cancelled().await;
    }

    /// About to do something to the world, or back from it. Never returns in a process that is dead.
    pub async fn edge(&self, what: &str) {
        let at = self.0.effects.fetch_add(1, Ordering::Relaxed) + 1;
        if self.0.dies_at == Some(at) && !self.0.sim.look(|inner| inner.faults.is_calm) {
            self.die(what);
        }
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }
}
