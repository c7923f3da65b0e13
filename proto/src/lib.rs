//! The wire between Longshore's programs.
//!
//! * [`worker`]: a worker and the orchestrator, on one stream that the worker opens.
//!
//! The formats live in `proto/`; this crate only compiles them. Conversions to the orchestrator's own types are
//! in `orchestrator::api`, and only there.

/// Worker and orchestrator.
#[allow(clippy::all, missing_docs)]
pub mod worker {
    tonic::include_proto!("longshore.worker.v1");
}
