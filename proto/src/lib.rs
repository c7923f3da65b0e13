//! The wire between Longshore's programs.
//!
//! * [`worker`]: a worker and the orchestrator, on one stream that the worker opens.
//! * [`peer`]: the orchestrator's peers among themselves, and an operator's command to one.
//! * [`containerd`], [`cri`]: what a worker asks of the runtime on its node; subsets, wire-compatible by field number.
//!
//! The formats live in `proto/`; this crate only compiles them. Conversions to the orchestrator's own types are
//! in `orchestrator::api`, and only there.

/// Worker and orchestrator.
#[allow(clippy::all, clippy::too_many_lines, missing_docs)]
pub mod worker {
    tonic::include_proto!("longshore.worker.v1");
}

/// Peers of the orchestrator, and operators.
#[allow(clippy::all, clippy::too_many_lines, missing_docs)]
pub mod peer {
    tonic::include_proto!("longshore.peer.v1");
}

/// What a worker asks of containerd itself: hand-written subsets of its services, one file each.
#[allow(clippy::all, clippy::too_many_lines, missing_docs)]
pub mod containerd {
    /// Running tasks: see, pause, resume.
    pub mod tasks {
        tonic::include_proto!("containerd.services.tasks.v1");
    }
    /// Containers and their labels.
    pub mod containers {
        tonic::include_proto!("containerd.services.containers.v1");
    }
    /// Blobs by digest.
    pub mod content {
        tonic::include_proto!("containerd.services.content.v1");
    }
    /// Image records: name to blob.
    pub mod images {
        tonic::include_proto!("containerd.services.images.v1");
    }
    /// What the garbage collector must keep.
    pub mod leases {
        tonic::include_proto!("containerd.services.leases.v1");
    }
    /// containerd's own version.
    pub mod version {
        tonic::include_proto!("containerd.services.version.v1");
    }
}

/// The Container Runtime Interface, version 1.
#[allow(clippy::all, clippy::too_many_lines, missing_docs)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}
