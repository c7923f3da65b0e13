//! The pods that are moved: a small one, and one with a gibibyte of redis.

use super::store::load;
use crate::client;
use crate::redis::{Connection, words};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

/// A frozen redis' kernel takes connections and answers none; an answer that comes takes a millisecond.
const PONG_WITHIN: Duration = Duration::from_millis(60);

/// A pod that is moved, and what its client asks it.
#[derive(Clone, Copy)]
pub struct Subject {
    /// The pod's name, and its container's.
    pub name: &'static str,
    /// What it is, for a table.
    pub says: &'static str,
    /// The name of the comparison.
    pub figure: &'static str,
    /// containerd pulls a checkpoint's base image by this name with its default resolver, to which localhost alone is
    /// plain HTTP.
    image: &'static str,
    arguments: &'static [&'static str],
    /// Where it answers.
    pub port: u16,
    /// Asks once; a good answer's text.
    pub ask: fn(SocketAddr) -> Option<String>,
    /// Makes it as large as it is to be.
    pub fill: fn(SocketAddr) -> Result<()>,
}

/// A web server that holds 64 MiB.
pub const KUARD: Subject = Subject {
    name: "kuard",
    says: "a pod that holds 64 MiB",
    figure: "downtime_vs_recipe",
    image: "localhost:5000/kuard:1",
    arguments: &["--mib=64"],
    port: 8080,
    ask: |address| client::page(address, "/"),
    fill: |_| Ok(()),
};

/// A redis with a gibibyte of documents.
pub const REDIS: Subject = Subject {
    name: "redis",
    says: "a redis that holds a gibibyte",
    figure: "downtime_vs_recipe_redis",
    image: "localhost:5000/redis:1",
    arguments: &[],
    port: 6379,
    ask: pong,
    fill: |address| load::fill_redis(address).map(drop),
};

fn pong(address: SocketAddr) -> Option<String> {
    let mut connection = Connection::open_for(address, PONG_WITHIN).ok()?;
    let answers = connection.ask(&[words(["PING"])]).ok()?;
    answers.into_iter().next().flatten()
}

impl Subject {
    /// The pod, on node1.
    pub fn pod(&self, namespace: &str) -> Value {
        let mut container = json!({"name": self.name, "image": self.image});
        // None are the image's own; an empty list would be none at all.
        if !self.arguments.is_empty() {
            container["args"] = json!(self.arguments);
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": namespace, "labels": {"app": self.name}},
            "spec": {"nodeName": "node1", "terminationGracePeriodSeconds": 1, "containers": [container]},
        })
    }

    /// The one called so.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = [KUARD, REDIS]
            .into_iter()
            .find(|subject| subject.name == name);
        found.ok_or_else(|| "kuard or redis".to_owned())
    }
}

/// The address a client saw, with the subject's port.
pub fn fill(subject: &Subject, address: std::net::IpAddr) -> Result<()> {
    (subject.fill)(SocketAddr::new(address, subject.port))
        .with_context(|| format!("fill {}", subject.name))
}
