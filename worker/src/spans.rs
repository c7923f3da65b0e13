//! Where the time of a step goes, as values: spans for the trace, and transfers summed up, because a span for each of
//! thousands of requests would hide what it shows.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proto::worker::Span;

/// When this process first asked for the time: by a clock that only goes forward, and by the node's.
static BEGAN: LazyLock<(Instant, SystemTime)> =
    LazyLock::new(|| (Instant::now(), SystemTime::now()));

/// Nanoseconds since 1970: by the node's clock when the process began, and from there by one that doesn't jump. The node's
/// may be set in the middle of a freeze, and what lies between two of our times must still be what has passed. How far
/// we are from the orchestrator's clock, it measures.
pub fn now_unix_ns() -> u64 {
    unix_ns(BEGAN.1 + BEGAN.0.elapsed())
}

/// A time by the node's clock, of the recent past, as [`now_unix_ns`] would have told it.
pub fn by_our_clock(node_unix_ns: u64) -> u64 {
    now_unix_ns().saturating_sub(unix_ns(SystemTime::now()).saturating_sub(node_unix_ns))
}

/// A time of ours by the node's clock: what files made then were stamped with.
pub fn by_node_clock(ours: SystemTime) -> SystemTime {
    let ago = Duration::from_nanos(now_unix_ns().saturating_sub(unix_ns(ours)));
    SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH)
}

fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A finished span from `start` until now.
pub fn span_since<const N: usize>(
    name: &str,
    parent: &str,
    start_unix_ns: u64,
    facts: [(&str, String); N],
) -> Span {
    Span {
        name: name.to_owned(),
        start_unix_ns,
        end_unix_ns: now_unix_ns(),
        parent: parent.to_owned(),
        attributes: facts
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}

/// Many requests of one kind, summed up while they run side by side.
#[derive(Default)]
pub struct Traffic {
    sums: Mutex<Sums>,
}

#[derive(Clone, Default)]
struct Sums {
    requests: u64,
    bytes: u64,
    first_start_unix_ns: Option<u64>,
    last_end_unix_ns: u64,
    shortest_ns: Option<u64>,
    longest_ns: u64,
}

impl Traffic {
    /// Counts one request that began at `start` and ends now.
    pub fn count(&self, start_unix_ns: u64, bytes: u64) {
        let end = now_unix_ns();
        let took = end.saturating_sub(start_unix_ns);
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.requests += 1;
        sums.bytes += bytes;
        sums.first_start_unix_ns = Some(
            sums.first_start_unix_ns
                .map_or(start_unix_ns, |first| first.min(start_unix_ns)),
        );
        sums.last_end_unix_ns = sums.last_end_unix_ns.max(end);
        sums.shortest_ns = Some(sums.shortest_ns.map_or(took, |shortest| shortest.min(took)));
        sums.longest_ns = sums.longest_ns.max(took);
    }

    /// From the first request's begin to the last one's end; none when there was no request.
    pub fn span(&self, name: &str, parent: &str) -> Option<Span> {
        let sums = self
            .sums
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Sums {
            requests,
            bytes,
            first_start_unix_ns,
            last_end_unix_ns,
            shortest_ns,
            longest_ns,
        } = sums;
        let milliseconds = |ns: u64| format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000);
        let attributes = HashMap::from([
            ("requests".to_owned(), requests.to_string()),
            ("bytes".to_owned(), bytes.to_string()),
            ("shortest_ms".to_owned(), milliseconds(shortest_ns?)),
            ("longest_ms".to_owned(), milliseconds(longest_ns)),
        ]);
        Some(Span {
            name: name.to_owned(),
            start_unix_ns: first_start_unix_ns?,
            end_unix_ns: last_end_unix_ns,
            parent: parent.to_owned(),
            attributes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_told_by_one_clock_is_found_by_the_other() {
        let close = |a: u64, b: u64| a.abs_diff(b) < 50_000_000;
        let node = SystemTime::now() - Duration::from_secs(7);
        let ours = by_our_clock(unix_ns(node));
        assert!(close(ours + 7_000_000_000, now_unix_ns()));
        let back = by_node_clock(UNIX_EPOCH + Duration::from_nanos(ours));
        assert!(close(unix_ns(back), unix_ns(node)));
    }
}
