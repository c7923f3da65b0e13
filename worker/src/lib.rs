//! The worker, one per node.

pub mod archive;
pub mod content;
pub mod data;
pub mod fetch;
pub mod images;
pub mod manifest;
pub mod rebuild;
pub mod registry;
pub mod restore;
pub mod save;
pub mod spans;
pub mod store;
