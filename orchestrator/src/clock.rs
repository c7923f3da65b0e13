//! What time of day it is. Wall clocks jump and differ from node to node, so nothing that must be safe is measured with
//! them: leases and waits go by tokio's clock, which only goes forward. The time of day is for what people see, and for
//! budgets that span processes.

use std::time::{SystemTime, UNIX_EPOCH};

use orchestrator_core::id::UnixMs;

/// Tells the time of day. The second implementation is the simulator's, in which every process has its own.
pub trait TimeOfDay: Send + Sync {
    /// Nanoseconds since 1970.
    fn unix_ns(&self) -> u64;

    /// Milliseconds since 1970.
    fn unix_ms(&self) -> UnixMs {
        self.unix_ns() / 1_000_000
    }
}

/// This machine's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemTimeOfDay;

impl TimeOfDay for SystemTimeOfDay {
    fn unix_ns(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Now, by this machine's clock: nanoseconds since 1970.
#[must_use]
pub fn unix_ns() -> u64 {
    SystemTimeOfDay.unix_ns()
}

/// Now, by this machine's clock: milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> UnixMs {
    SystemTimeOfDay.unix_ms()
}
