//! The programs whose checkpoints are compared, and what is done to them between two rounds.
//!
//! Each holds about a gibibyte (kuard two megabytes, for what a small pod costs) and is changed at a fixed rate, so
//! that a round a few seconds after another differs from it as that of a busy service does.

use super::image;
use crate::workloads::{KUARD, REDIS};
use serde_json::{Value, json};
use std::time::Duration;

/// Instead of an image's name: the one that `image` makes.
const IMAGE: &str = "";

/// Who changes it while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Clients that ask for a page.
    Pages,
    /// Clients of redis: writes on random keys, counters, reads.
    Redis,
    /// It changes itself, and says `ready` in its log when it has begun to.
    Itself,
    /// pgbench.
    Pgbench,
}

/// One program.
#[derive(Debug)]
pub struct Workload {
    /// What it is called, its pod and its container, too.
    pub name: &'static str,
    image: &'static str,
    command: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Who changes it.
    pub load: Load,
    /// How many checkpoints are taken; the last two are compared.
    pub rounds: usize,
    /// From the beginning of one checkpoint to that of the next.
    pub apart: Duration,
    /// What must stand in its log between the last two rounds.
    pub sign: Option<&'static str>,
}

/// All of them, the quickest first.
pub const ALL: &[Workload] = &[
    Workload {
        name: "kuard",
        image: KUARD,
        command: &[],
        environment: &[],
        load: Load::Pages,
        rounds: 2,
        apart: Duration::from_secs(4),
        sign: None,
    },
    Workload {
        name: "redis",
        image: REDIS,
        command: &[],
        environment: &[],
        load: Load::Redis,
        rounds: 2,
        apart: Duration::from_secs(7),
        sign: None,
    },
    Workload {
        name: "numpy",
        image: IMAGE,
        command: &["/usr/bin/python3", "/bench/weights.py"],
        environment: &[("OPENBLAS_NUM_THREADS", "1")],
        load: Load::Itself,
        rounds: 2,
        apart: Duration::from_secs(7),
        sign: None,
    },
    Workload {
        name: "jvm",
        image: IMAGE,
        command: &[
            "/usr/bin/java",
            "-XX:+UseG1GC",
            "-Xms1g",
            "-Xmx1g",
            // A young generation that fills up between two rounds.
            "-Xmn160m",
            "-Xlog:gc",
            "-cp",
            "/bench",
            "Churn",
        ],
        environment: &[],
        load: Load::Itself,
        rounds: 2,
        apart: Duration::from_secs(7),
        sign: Some("Pause Young"),
    },
    Workload {
        name: "postgres",
        image: IMAGE,
        command: &[
            "/bench/postgres",
            "-c",
            "shared_buffers=256MB",
            "-c",
            "listen_addresses=*",
            "-c",
            "unix_socket_directories=/tmp",
        ],
        environment: &[("PGDATA", "/bench/data"), ("LD_PRELOAD", "/bench/owner.so")],
        load: Load::Pgbench,
        rounds: 2,
        apart: Duration::from_secs(20),
        sign: None,
    },
];

impl Workload {
    /// Whether it runs from the image that `image` makes.
    pub fn needs_image(&self) -> bool {
        self.image == IMAGE
    }

    /// Its pod, on node1.
    pub fn pod(&self, namespace: &str) -> Value {
        let environment: Vec<Value> = self
            .environment
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        let image = if self.needs_image() {
            image::name()
        } else {
            self.image.to_owned()
        };
        let mut container = json!({
            "name": self.name, "image": image, "env": environment, "imagePullPolicy": "IfNotPresent",
        });
        if !self.command.is_empty() {
            container["command"] = json!(self.command);
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": namespace},
            "spec": {"nodeName": "node1", "terminationGracePeriodSeconds": 1, "containers": [container]},
        })
    }
}
