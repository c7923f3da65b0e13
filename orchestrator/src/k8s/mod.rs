//! Everything we ask of Kubernetes and write to it.

pub mod resource;
