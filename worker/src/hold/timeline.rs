//! Where the time of a step goes: spans by this node's clock, collected while it runs.

use std::collections::BTreeMap;

use proto::worker::Span;

/// The spans of one step, in the order of their ends.
#[derive(Debug, Default)]
pub struct Timeline {
    spans: Vec<Span>,
}

impl Timeline {
    /// Something took from `start` to `end`.
    pub fn ended(&mut self, name: impl Into<String>, start_unix_ns: u64, end_unix_ns: u64) {
        self.ended_with(name, start_unix_ns, end_unix_ns, BTreeMap::new());
    }

    /// Something took from `start` to `end`, and there is more to say about it.
    pub fn ended_with(
        &mut self,
        name: impl Into<String>,
        start_unix_ns: u64,
        end_unix_ns: u64,
        facts: BTreeMap<String, String>,
    ) {
        self.spans.push(Span {
            name: name.into(),
            start_unix_ns,
            end_unix_ns,
            parent: String::new(),
            attributes: facts.into_iter().collect(),
        });
    }

    /// Takes in spans measured elsewhere.
    pub fn extend(&mut self, spans: Vec<Span>) {
        self.spans.extend(spans);
    }

    /// All of them.
    pub fn into_spans(self) -> Vec<Span> {
        self.spans
    }
}
