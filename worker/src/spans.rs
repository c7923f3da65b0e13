//! Where the time of a step goes, as values: spans for the trace, and transfers summed up, because a span for each of
//! thousands of requests would hide what it shows.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use proto::worker::Span;

/// Nanoseconds since 1970 by this node's clock.
pub fn now_unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
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
