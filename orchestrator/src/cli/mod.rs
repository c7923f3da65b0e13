//! The `migrate` command: a person's (or a script's) view of migrations.
//!
//! ```text
//!  arguments ─► run ─► cluster (the Kubernetes API, nothing else) ─► follow ─► verdict ─► exit code
//!                                                                        └──► render (pure) ─► text
//! ```
//!
//! The good day: the arguments name a pod and a node, a `PodMigration` is created, its status is followed until it
//! ends, every phase is told, and the end is printed with its numbers. How it goes wrong: the cluster can't be reached
//! or doesn't allow it ([`failure`] says what to do next); the planner refuses (each reason word for word); it is
//! rolled back (why, and that the pod runs where it ran); or the wait ends first, and then this command says that the
//! migration goes on without it, because it does: the command holds nothing that the migration needs.
//!
//! What this module doesn't do: decide anything about a migration, or talk to the orchestrator or a node. A kubeconfig
//! and the permission on `podmigrations`, `migrationnodes` and `storetasks` is all it has.

mod abort;
mod arguments;
mod ask;
mod cluster;
pub mod crds;
mod failure;
mod follow;
#[cfg(test)]
mod golden;
mod output;
mod probe;
mod render;
mod resolve;
mod run;
mod store;
mod verdict;

pub use run::main;
