//! Every metric and its name, in one place.
//!
//! Gauges are set from the replicated state ([`Metrics::observe`]); what ended is counted once, when it is first seen
//! ended by this process. A process that has just started takes what had ended before for seen: counters count what
//! happened in its life, as Prometheus expects. Only the leader counts and shows migrations: sums over the peers are
//! right then. No pod names as labels.

use std::{collections::BTreeSet, sync::Mutex};

use crate::consensus::core::Standing;
use orchestrator_core::{
    id::MigrationId,
    migration::{Migration, PHASES},
    state::State,
};
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

const MIGRATIONS: &str = "longshore_migrations";
const ENDED: &str = "longshore_migrations_ended_total";
const FREEZE: &str = "longshore_freeze_seconds";
const BYTES_RAW: &str = "longshore_checkpoint_bytes_total";
const BYTES_STORED: &str = "longshore_stored_bytes_total";
const COMMIT: &str = "longshore_log_commit_seconds";
const WORKERS: &str = "longshore_workers_connected";
const IN_DOUBT: &str = "longshore_migrations_in_doubt";
const STUCK: &str = "longshore_migrations_stuck";
const LEADS: &str = "longshore_log_leads";
const TERM: &str = "longshore_log_term";
const APPLIED: &str = "longshore_log_applied_index";
const REFUSED: &str = "longshore_peer_messages_refused_total";
const DROPPED: &str = "longshore_peer_messages_dropped_total";

/// From the shortest freeze worth telling apart to a minute, about three a decade.
const FREEZE_BUCKETS: [f64; 9] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// An fsync takes 0.1 ms on a good disk and a second on a very bad one.
const COMMIT_BUCKETS: [f64; 9] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0];

/// The orchestrator's metrics.
pub struct Metrics {
    registry: Registry,
    by_phase: IntGaugeVec,
    ended: IntCounterVec,
    freeze: Histogram,
    bytes_raw: IntCounter,
    bytes_stored: IntCounter,
    commit: Histogram,
    workers: IntGauge,
    in_doubt: IntGauge,
    stuck: IntGauge,
    leads: IntGauge,
    term: IntGauge,
    applied: IntGauge,
    refused: IntCounterVec,
    dropped: IntCounter,
    /// Ended migrations that are counted; `None` before the first state was seen.
    counted: Mutex<Option<BTreeSet<MigrationId>>>,
}

impl Metrics {
    /// Registers them all.
    ///
    /// # Errors
    /// When two have one name: a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new(),
            by_phase: IntGaugeVec::new(
                Opts::new(MIGRATIONS, "Migrations the log knows, by phase."),
                &["phase"],
            )?,
            ended: IntCounterVec::new(
                Opts::new(ENDED, "Migrations that ended, by the phase they ended in."),
                &["outcome"],
            )?,
            freeze: Histogram::with_opts(
                HistogramOpts::new(FREEZE, "From the paused source to the running target.")
                    .buckets(FREEZE_BUCKETS.to_vec()),
            )?,
            bytes_raw: IntCounter::new(BYTES_RAW, "Bytes of checkpoint archives that were moved.")?,
            bytes_stored: IntCounter::new(BYTES_STORED, "Bytes that were stored for them.")?,
            commit: Histogram::with_opts(
                HistogramOpts::new(COMMIT, "From proposing a command to its being applied.")
                    .buckets(COMMIT_BUCKETS.to_vec()),
            )?,
            workers: IntGauge::new(WORKERS, "Workers that are connected now.")?,
            in_doubt: IntGauge::new(IN_DOUBT, "Migrations with a step of unknown outcome.")?,
            stuck: IntGauge::new(
                STUCK,
                "Migrations whose undo or rescue fails and is asked again.",
            )?,
            leads: IntGauge::new(LEADS, "1 on the peer that leads the log.")?,
            term: IntGauge::new(TERM, "Raft's term: it grows with every election.")?,
            applied: IntGauge::new(APPLIED, "The last entry of the log that this peer applied.")?,
            refused: IntCounterVec::new(
                Opts::new(REFUSED, "Strangers that spoke as peers, by what was wrong."),
                &["reason"],
            )?,
            dropped: IntCounter::new(DROPPED, "Messages to peers that could not be sent.")?,
            counted: Mutex::new(None),
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.by_phase.clone()))?;
        registry.register(Box::new(metrics.ended.clone()))?;
        registry.register(Box::new(metrics.freeze.clone()))?;
        registry.register(Box::new(metrics.bytes_raw.clone()))?;
        registry.register(Box::new(metrics.bytes_stored.clone()))?;
        registry.register(Box::new(metrics.commit.clone()))?;
        registry.register(Box::new(metrics.workers.clone()))?;
        registry.register(Box::new(metrics.in_doubt.clone()))?;
        registry.register(Box::new(metrics.stuck.clone()))?;
        registry.register(Box::new(metrics.leads.clone()))?;
        registry.register(Box::new(metrics.term.clone()))?;
        registry.register(Box::new(metrics.applied.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        Ok(metrics)
    }

    /// For [`Log::measured_by`](crate::consensus::node::Log::measured_by).
    #[must_use]
    pub fn commit_seconds(&self) -> Histogram {
        self.commit.clone()
    }

    /// Counts strangers.
    #[must_use]
    pub fn refused(&self) -> IntCounterVec {
        self.refused.clone()
    }

    /// Counts messages that were not sent.
    #[must_use]
    pub fn messages_dropped(&self) -> IntCounter {
        self.dropped.clone()
    }

    /// Where this peer stands.
    pub fn stands(&self, standing: &Standing, leads: bool) {
        let index = |index: u64| i64::try_from(index).unwrap_or(i64::MAX);
        self.leads.set(i64::from(leads));
        self.term.set(index(standing.term));
        self.applied.set(index(standing.applied));
    }

    /// How many workers are connected.
    pub fn workers_connected(&self, workers: usize) {
        self.workers.set(count(workers));
    }

    /// Sets and counts what a new state says, on the leader; others take it for counted. Repeating a state changes nothing.
    pub fn observe(&self, state: &State, leads: bool) {
        let migrations = || state.migrations.values().filter(|_| leads);
        for phase in PHASES {
            let name = phase.to_string();
            let gauge = self.by_phase.with_label_values(&[name.as_str()]);
            gauge.set(count(migrations().filter(|m| m.phase == phase).count()));
        }
        self.in_doubt
            .set(count(migrations().filter(|m| m.doubt.is_some()).count()));
        self.stuck
            .set(count(migrations().filter(|m| m.stuck.is_some()).count()));
        let ended: BTreeSet<MigrationId> = state
            .migrations
            .values()
            .filter(|m| m.phase.ended())
            .map(|m| m.id.clone())
            .collect();
        let mut counted = self
            .counted
            .lock()
            .expect("nothing panics while it holds this lock");
        if let Some(counted) = counted.as_ref().filter(|_| leads) {
            for migration in ended
                .difference(counted)
                .filter_map(|id| state.migrations.get(id))
            {
                self.count_ended(migration);
            }
        }
        *counted = Some(ended);
    }

    fn count_ended(&self, migration: &Migration) {
        let outcome = migration.phase.to_string();
        self.ended.with_label_values(&[outcome.as_str()]).inc();
        if let Some(freeze_ms) = migration.freeze_ms() {
            self.freeze
                .observe(std::time::Duration::from_millis(freeze_ms).as_secs_f64());
        }
        if let Some(checkpoint) = &migration.checkpoint {
            self.bytes_raw.inc_by(checkpoint.raw_bytes);
            self.bytes_stored.inc_by(checkpoint.stored_bytes);
        }
    }

    /// The text Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(cause) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%cause, "write the metrics");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn count(of: usize) -> i64 {
    i64::try_from(of).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use orchestrator_core::{
        id::{NodeName, PodRef, Revision},
        plan::Request,
        refusal::Finding,
        state::{Command, Decision},
    };

    use super::*;

    fn refused(state: &mut State, id: &str, at: u64) {
        let pod = PodRef {
            namespace: "default".to_owned(),
            name: id.to_owned(),
        };
        let command = Command::Submit {
            id: MigrationId::from(id),
            object: pod.clone(),
            request: Request {
                pod,
                target: NodeName::from("node2"),
                freeze_max_ms: None,
                timeout_ms: None,
                dry_run: false,
                rounds_max: None,
                keep_checkpoint_ms: None,
            },
            decision: Decision::Refuse(vec![Finding::new("NoSuchPod", "it is not there", "")]),
            at_ms: 1,
            spans: vec![],
        };
        state.apply(Revision(at), command).unwrap();
    }

    #[test]
    fn what_ended_is_counted_once_and_not_again_for_the_past() {
        let metrics = Metrics::new().unwrap();
        let mut state = State {
            migrations: BTreeMap::new(),
            workers: BTreeMap::new(),
        };
        refused(&mut state, "before", 1);
        metrics.observe(&state, true);
        refused(&mut state, "elsewhere", 2);
        metrics.observe(&state, false);
        refused(&mut state, "now", 3);
        metrics.observe(&state, true);
        metrics.observe(&state, true);
        metrics.workers_connected(2);
        let text = metrics.render();
        for line in [
            "longshore_migrations{phase=\"Refused\"} 3",
            "longshore_migrations{phase=\"Holding\"} 0",
            "longshore_migrations_ended_total{outcome=\"Refused\"} 1",
            "longshore_workers_connected 2",
            "longshore_freeze_seconds_count 0",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
