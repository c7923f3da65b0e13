//! One ended migration as one OpenTelemetry trace.
//!
//! ```text
//! migration (root: first 8 bytes of a hash of the id; trace id: the id itself)
//! ├─ Preparing ─ spans that began in it
//! ├─ Holding ── hold ── dump container a …     (below the span they name as parent)
//! └─ …
//! ```
//!
//! The log holds every span of a migration, so the trace is made from the log when the migration has ended, by whoever
//! leads then. All ids are derived from the migration's: emitting it again gives the same trace, not a second one.
//! [`plan`] decides what the trace is, [`Exporter`] sends it. A collector that is away costs the trace, never the
//! migration; `describe` draws it from the log all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkError,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use orchestrator_core::{
    id::{MigrationId, UnixMs},
    migration::{Migration, Phase, Span},
    state::State,
};
use tokio::sync::watch;

use crate::clock::unix_ms;

const NS_PER_MS: u64 = 1_000_000;
/// The place that every phase belongs to.
const ORCHESTRATOR: &str = "orchestrator";
/// A new leader emits again what ended less than this ago, milliseconds: its predecessor may not have come to it.
const RECENT_MS: UnixMs = 60_000;

/// The trace can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No exporter for that endpoint.
    #[error("make an OTLP exporter for {endpoint}")]
    Endpoint {
        /// Which.
        endpoint: String,
        /// Why not.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The id is no UUID, so it can't be a trace's.
    #[error("the migration id {id} is not a UUID")]
    Id {
        /// Which.
        id: MigrationId,
        /// Why not.
        source: uuid::Error,
    },
    /// The collector didn't take it.
    #[error("send the trace of migration {id}")]
    Send {
        /// Which.
        id: MigrationId,
        /// Why not.
        source: OTelSdkError,
    },
}

/// One span of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its id.
    pub id: [u8; 8],
    /// Its parent's; zeros for the root.
    pub parent: [u8; 8],
    /// What was done.
    pub name: String,
    /// Where.
    pub place: String,
    /// Nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// The same.
    pub end_unix_ns: u64,
    /// Numbers and names.
    pub attributes: BTreeMap<String, String>,
}

/// The trace of a migration, root first.
#[must_use]
pub fn plan(migration: &Migration) -> Vec<Piece> {
    let root = span_id(&migration.id, "");
    let phases = phases(migration);
    let mut pieces = vec![root_piece(migration, root)];
    pieces.extend(phases.iter().map(|(_, piece)| piece.clone()));
    pieces.extend(freeze_piece(migration, root));
    let phase_of = |span: &Span| {
        phases
            .iter()
            .rev()
            .find(|(_, piece)| piece.start_unix_ns <= span.start_unix_ns)
            .map(|(n, _)| *n)
    };
    for (index, span) in migration.spans.iter().enumerate() {
        let phase = phase_of(span);
        // The enclosing span of that name; of a repeated step's several, the last that had begun.
        let enclosing = migration
            .spans
            .iter()
            .enumerate()
            .filter(|(other, candidate)| {
                *other != index
                    && !span.parent.is_empty()
                    && candidate.name == span.parent
                    && candidate.start_unix_ns <= span.start_unix_ns
                    && phase_of(candidate) == phase
            })
            .max_by_key(|(_, candidate)| candidate.start_unix_ns);
        let parent = match (enclosing, phase) {
            (Some((other, _)), _) => span_id(&migration.id, &format!("span/{other}")),
            (None, Some(n)) => span_id(&migration.id, &format!("phase/{n}")),
            (None, None) => root,
        };
        pieces.push(Piece {
            id: span_id(&migration.id, &format!("span/{index}")),
            parent,
            name: span.name.clone(),
            place: span.place.clone(),
            start_unix_ns: span.start_unix_ns,
            end_unix_ns: span.end_unix_ns.max(span.start_unix_ns),
            attributes: span.attributes.clone(),
        });
    }
    pieces
}

/// Every phase that lasted, from its entry to the next one's, with its place among those entered.
fn phases(migration: &Migration) -> Vec<(usize, Piece)> {
    let entered = &migration.entered;
    let lasted = entered.iter().zip(entered.iter().skip(1)).enumerate();
    lasted
        .map(|(n, ((phase, from), (_, until)))| {
            let piece = Piece {
                id: span_id(&migration.id, &format!("phase/{n}")),
                parent: span_id(&migration.id, ""),
                name: phase.to_string(),
                place: ORCHESTRATOR.to_owned(),
                start_unix_ns: from * NS_PER_MS,
                end_unix_ns: (*until).max(*from) * NS_PER_MS,
                attributes: BTreeMap::new(),
            };
            (n, piece)
        })
        .collect()
}

/// Beside the phases, for it lasts through several of them.
fn freeze_piece(migration: &Migration, root: [u8; 8]) -> Option<Piece> {
    let freeze = migration.freeze()?;
    Some(Piece {
        id: span_id(&migration.id, "freeze"),
        parent: root,
        name: freeze.name,
        place: ORCHESTRATOR.to_owned(),
        start_unix_ns: freeze.start_unix_ns,
        end_unix_ns: freeze.end_unix_ns.max(freeze.start_unix_ns),
        attributes: freeze.attributes,
    })
}

fn root_piece(migration: &Migration, id: [u8; 8]) -> Piece {
    let entered = || migration.entered.iter().map(|(_, at)| at * NS_PER_MS);
    let starts = migration.spans.iter().map(|span| span.start_unix_ns);
    let ends = migration.spans.iter().map(|span| span.end_unix_ns);
    let start_unix_ns = entered().chain(starts).min().unwrap_or_default();
    let mut attributes = BTreeMap::from([
        ("longshore.outcome".to_owned(), migration.phase.to_string()),
        ("k8s.pod".to_owned(), migration.request.pod.to_string()),
        (
            "longshore.target".to_owned(),
            migration.request.target.to_string(),
        ),
    ]);
    if let Some(plan) = &migration.plan {
        attributes.insert("longshore.source".to_owned(), plan.source.to_string());
    }
    if let Some(freeze_ms) = migration.freeze_ms() {
        attributes.insert("longshore.freeze_ms".to_owned(), freeze_ms.to_string());
    }
    if let Some(checkpoint) = &migration.checkpoint {
        attributes.insert(
            "longshore.raw_bytes".to_owned(),
            checkpoint.raw_bytes.to_string(),
        );
        attributes.insert(
            "longshore.stored_bytes".to_owned(),
            checkpoint.stored_bytes.to_string(),
        );
    }
    Piece {
        id,
        parent: [0; 8],
        name: format!("migrate pod {}", migration.request.pod),
        place: ORCHESTRATOR.to_owned(),
        start_unix_ns,
        end_unix_ns: entered().chain(ends).max().unwrap_or(start_unix_ns),
        attributes,
    }
}

/// The same for the same part of the same migration, wherever and whenever it is asked; "" is the root.
fn span_id(id: &MigrationId, part: &str) -> [u8; 8] {
    let hash = blake3::Hasher::new()
        .update(id.0.as_bytes())
        .update(part.as_bytes())
        .finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    first
}

/// Sends traces over OTLP gRPC.
pub struct Exporter {
    otlp: opentelemetry_otlp::SpanExporter,
    /// Ended migrations that are done with; `None` before the first state.
    done: Option<BTreeSet<MigrationId>>,
}

impl Exporter {
    /// For a collector, like `http://127.0.0.1:4317`. Must be called inside the runtime. Connects when it first sends.
    ///
    /// # Errors
    /// When the endpoint can't be understood.
    pub fn new(endpoint: &str) -> Result<Self, TraceError> {
        let otlp = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(|source| TraceError::Endpoint {
                endpoint: endpoint.to_owned(),
                source,
            })?;
        Ok(Self { otlp, done: None })
    }

    /// Sends while `leads` says so, until either sender is gone. A task of its own: a slow collector delays nobody.
    pub async fn run(
        mut self,
        mut states: watch::Receiver<Arc<State>>,
        mut leads: watch::Receiver<bool>,
    ) {
        loop {
            if *leads.borrow_and_update() {
                let state = Arc::clone(&states.borrow_and_update());
                self.observe(&state, unix_ms()).await;
            } else {
                self.done = None;
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                changed = leads.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Sends the trace of every migration that ended since the last call; the leader calls it with every state.
    /// One try each: what fails is logged.
    pub async fn observe(&mut self, state: &State, now_ms: UnixMs) {
        let ended = || {
            let all = state.migrations.values().map(Arc::as_ref);
            all.filter(|m| m.phase.ended())
        };
        let due: Vec<&Migration> = ended()
            .filter(|migration| match &self.done {
                Some(done) => !done.contains(&migration.id),
                None => migration
                    .entered
                    .last()
                    .is_some_and(|(_, at)| at + RECENT_MS > now_ms),
            })
            .collect();
        for migration in due {
            if let Err(cause) = self.export(migration).await {
                tracing::warn!(
                    cause = format!("{:#}", anyhow::Error::new(cause)),
                    "a trace is lost"
                );
            }
        }
        self.done = Some(ended().map(|migration| migration.id.clone()).collect());
    }

    /// Sends one trace. Repeating it sends the same ids.
    ///
    /// # Errors
    /// When the id is no UUID, or the collector doesn't take it.
    pub async fn export(&mut self, migration: &Migration) -> Result<(), TraceError> {
        let id = &migration.id;
        let trace = uuid::Uuid::parse_str(&id.0).map_err(|source| TraceError::Id {
            id: id.clone(),
            source,
        })?;
        let mut by_place: BTreeMap<String, Vec<SpanData>> = BTreeMap::new();
        for piece in plan(migration) {
            let spans = by_place.entry(piece.place.clone()).or_default();
            spans.push(span_data(*trace.as_bytes(), piece, migration.phase));
        }
        for (place, spans) in by_place {
            // A resource belongs to a whole message, so every place has its own.
            self.otlp.set_resource(&resource(&place));
            self.otlp
                .export(spans)
                .await
                .map_err(|source| TraceError::Send {
                    id: id.clone(),
                    source,
                })?;
        }
        Ok(())
    }
}

fn resource(place: &str) -> Resource {
    let builder = Resource::builder_empty();
    if place == ORCHESTRATOR {
        builder.with_service_name("longshore-orchestrator").build()
    } else {
        builder
            .with_service_name("longshore-worker")
            .with_attribute(KeyValue::new("k8s.node.name", place.to_owned()))
            .build()
    }
}

fn span_data(trace: [u8; 16], piece: Piece, ended_in: Phase) -> SpanData {
    let Piece {
        id,
        parent,
        name,
        place: _,
        start_unix_ns,
        end_unix_ns,
        attributes,
    } = piece;
    let root = parent == [0; 8];
    let status = if root && matches!(ended_in, Phase::RolledBack | Phase::Rescued) {
        Status::error(ended_in.to_string())
    } else {
        Status::Unset
    };
    let at = |ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns);
    let context = SpanContext::new(
        TraceId::from_bytes(trace),
        SpanId::from_bytes(id),
        TraceFlags::SAMPLED,
        false,
        TraceState::default(),
    );
    SpanData {
        span_context: context,
        parent_span_id: SpanId::from_bytes(parent),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: at(start_unix_ns),
        end_time: at(end_unix_ns),
        attributes: attributes
            .into_iter()
            .map(|(key, value)| KeyValue::new(key, value))
            .collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: InstrumentationScope::builder("longshore").build(),
    }
}

#[cfg(test)]
mod tests;
