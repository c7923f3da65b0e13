//! What everything in one schedule shares: chance, the trace, the truth of the simulated machines, and the network.
//!
//! One thread, one runtime with a paused clock: whoever holds the lock never waits, so the order of events is the
//! order in which tasks wake, and that is the same for the same seed.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use orchestrator::clock::TimeOfDay;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use crate::{
    dice::Dice,
    faults::{Faults, Network},
    ledger::Ledger,
    mistakes::Mistake,
    raft_log::Platter,
    trace::Trace,
    truth::Truth,
};

/// The world begins at this time of day: some second in 2033.
const EPOCH_UNIX_NS: u64 = 2_000_000_000_000_000_000;

/// What was found to be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When, virtual milliseconds.
    pub at_ms: u64,
    /// What.
    pub what: String,
}

/// Everything that changes.
pub struct Inner {
    /// Chance, while the schedule runs.
    pub dice: Dice,
    /// What happened.
    pub trace: Trace,
    /// Nodes, objects, stored bytes.
    pub truth: Truth,
    /// What goes wrong now.
    pub faults: Faults,
    /// Who reaches whom.
    pub network: Network,
    /// What was found.
    pub violations: Vec<Violation>,
    /// Peers' disks.
    pub platters: BTreeMap<u64, Platter>,
}

struct Shared {
    inner: Mutex<Inner>,
    ledger: Mutex<Ledger>,
    news: Notify,
    start: Instant,
    mistakes: &'static [Mistake],
}

/// A schedule's world; clones are the same one.
#[derive(Clone)]
pub struct Sim(Arc<Shared>);

impl Sim {
    /// To be made inside the runtime whose clock is paused.
    #[must_use]
    pub fn new(inner: Inner, mistakes: &'static [Mistake]) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(inner),
            ledger: Mutex::default(),
            news: Notify::new(),
            start: Instant::now(),
            mistakes,
        }))
    }

    /// Virtual time since the beginning.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// When it is so late.
    #[must_use]
    pub fn at(&self, ms: u64) -> Instant {
        self.0.start + Duration::from_millis(ms)
    }

    /// The log was applied somewhere; also when that was between this call and the wait.
    pub fn news(&self) -> Notified<'_> {
        self.0.news.notified()
    }

    /// Whoever waits for that is told.
    pub fn tell_news(&self) {
        self.0.news.notify_waiters();
    }

    /// Is this mistake being made?
    #[must_use]
    pub fn makes(&self, mistake: Mistake) -> bool {
        self.0.mistakes.contains(&mistake)
    }

    /// Looks at, or changes, what is shared; what was changed is checked afterwards.
    pub fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let now_ms = self.now_ms();
        let mut inner = self.lock();
        inner.truth.time_passes(now_ms);
        let result = change(&mut inner);
        let Inner {
            truth, violations, ..
        } = &mut *inner;
        truth.settle(now_ms, violations);
        result
    }

    /// Looks at what is shared without touching the machines.
    pub fn look<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.lock())
    }

    /// The log was applied somewhere, or somebody asks what it said.
    pub fn ledger<T>(&self, with: impl FnOnce(&mut Ledger, &mut Inner) -> T) -> T {
        let mut ledger = self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = self.now_ms();
        ledger.now_ms = now_ms;
        self.with(|inner| with(&mut ledger, inner))
    }

    /// Something happened.
    pub fn event(&self, who: &str, what: std::fmt::Arguments<'_>) {
        let now_ms = self.now_ms();
        self.lock().trace.event(now_ms, who, what);
    }

    /// Something is wrong.
    pub fn violated(&self, what: String) {
        let at_ms = self.now_ms();
        self.lock().violations.push(Violation { at_ms, what });
    }

    /// Nothing is wrong yet.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.lock().violations.is_empty()
    }

    /// Chance.
    #[must_use]
    pub fn of(&self, range: RangeInclusive<u64>) -> u64 {
        self.lock().dice.of(range)
    }

    /// True this often in a thousand.
    #[must_use]
    pub fn hits(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.lock().dice.hits(per_mille)
    }

    /// Some milliseconds go by.
    pub async fn rest(&self, ms: RangeInclusive<u64>) {
        let ms = self.of(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine's wall clock: it jumps, and differs from the others'.
#[derive(Clone)]
pub struct WallClock {
    start: Instant,
    offset_ms: Arc<AtomicI64>,
}

impl WallClock {
    /// Off by this much.
    #[must_use]
    pub fn new(offset_ms: i64) -> Self {
        Self {
            start: Instant::now(),
            offset_ms: Arc::new(AtomicI64::new(offset_ms)),
        }
    }

    /// Somebody sets it.
    pub fn jump(&self, by_ms: i64) {
        self.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl TimeOfDay for WallClock {
    fn unix_ns(&self) -> u64 {
        let elapsed_ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let offset_ns = self.offset_ms.load(Ordering::Relaxed) * 1_000_000;
        (EPOCH_UNIX_NS + elapsed_ns).saturating_add_signed(offset_ns)
    }
}
