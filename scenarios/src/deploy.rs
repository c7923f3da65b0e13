//! Putting Longshore on a lab the way a user would: images, then `kubectl apply -k`.
//!
//! The images hold what cargo built just now and the libraries it needs from this machine. They are imported into
//! every node under names of their own, so nothing is pulled; a pod that runs an older build is restarted. Doing this
//! twice with the same build changes nothing.

use crate::cache;
use crate::cluster::Cluster;
use crate::node;
use crate::oci::{self, Image, Tree};
use crate::process;
use crate::s3;
use crate::site::{COLLECTOR_PORT, Site};
use crate::state::Lab;
use crate::steps::Steps;
use crate::workloads::libraries_in;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// Where Longshore lives in the cluster; `deploy/` says the same.
pub const NAMESPACE: &str = "longshore-system";
/// What its peers are called, before their ordinals.
pub const PEERS: &str = "longshore-orchestrator";
/// How many there are; `deploy/` says the same.
pub const PEER_COUNT: u8 = 3;
/// Where peers' states lie on their nodes, each under its pod's name.
pub const PEER_STATE: &str = "/var/lib/longshore-orchestrator";
/// The Secret that names the store, with all that a client of it must know.
const STORE: &str = "longshore-s3";
/// The ConfigMap that says where traces go; `deploy/` says the same.
const TELEMETRY: &str = "longshore-telemetry";
/// What the peers run.
pub const ORCHESTRATOR_IMAGE: &str = "docker.io/longshore/orchestrator:dev";
/// The images and the programs in each, the first of which it starts.
const IMAGES: &[(&str, &[&str])] = &[
    (ORCHESTRATOR_IMAGE, &["orchestrator", "migrate"]),
    ("docker.io/longshore/worker:dev", &["worker"]),
];
/// Where Debian keeps the authorities that TLS trusts, and where the daemons look for them.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Applying some thirty objects, among them resource definitions the API server must learn first.
const APPLY_WITHIN: Duration = Duration::from_secs(60);
/// Three peers one after the other, on kubelets that may still wait to dial an API server that was away (some 30 s each),
/// and a worker on each node.
const READY_WITHIN_S: u64 = 300;

/// An S3 server other than the lab's. Its keys come from the environment, for flags are seen by every process.
#[derive(Clone, Debug, clap::Args)]
pub struct Store {
    /// Keep checkpoints on this S3 server instead of the lab's (keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)
    #[arg(long = "s3-endpoint", value_name = "URL")]
    pub endpoint: Option<String>,
    /// In this bucket, which must exist
    #[arg(long = "s3-bucket", default_value = s3::BUCKET)]
    pub bucket: String,
    /// In this region
    #[arg(long = "s3-region", default_value = s3::REGION)]
    pub region: String,
    /// It takes the lab's own keys.
    #[arg(skip)]
    lab_keys: bool,
}

impl Store {
    /// The lab's own store, reached by another way.
    pub fn of_lab_at(endpoint: String) -> Self {
        Self {
            endpoint: Some(endpoint),
            bucket: s3::BUCKET.to_owned(),
            region: s3::REGION.to_owned(),
            lab_keys: true,
        }
    }

    fn secret(&self, endpoint: &str) -> Result<Value> {
        if self.lab_keys {
            return Ok(json!({
                "endpoint": endpoint, "region": self.region, "bucket": self.bucket,
                "access_key_id": s3::ACCESS_KEY, "secret_access_key": s3::SECRET_KEY,
            }));
        }
        let key = |name: &str| {
            std::env::var(name).with_context(|| format!("read the store's key from {name}"))
        };
        Ok(json!({
            "endpoint": endpoint, "region": self.region, "bucket": self.bucket,
            "access_key_id": key("AWS_ACCESS_KEY_ID")?, "secret_access_key": key("AWS_SECRET_ACCESS_KEY")?,
        }))
    }
}

/// Builds Longshore and deploys it on a lab that is up.
///
/// With a `store` checkpoints go there, and not to the lab's own S3 server.
pub fn deploy(lab: &Lab, store: Option<&Store>, steps: &Steps) -> Result<()> {
    build(steps)?;
    deploy_built(lab, store, steps)
}

/// Deploys what [`build`] built.
pub fn deploy_built(lab: &Lab, store: Option<&Store>, steps: &Steps) -> Result<()> {
    let manifests = cache::project().join("deploy/lab");
    if !manifests.is_dir() {
        bail!(
            "there is no {}: nothing says how Longshore is deployed",
            manifests.display()
        );
    }
    let work = lab.folder()?.join("deploy");
    let layout = work.join("layout");
    steps.run("make Longshore's images", || {
        if work.exists() {
            fs::remove_dir_all(&work).context("clear away the last deployment's images")?;
        }
        make_images(&work)
    })?;
    // Equal images have equal digests, and the index names them all.
    let index = fs::read(layout.join("index.json")).context("read the images' index")?;
    let deployed = lab.folder()?.join("deployed-images.json");
    let new_images = fs::read(&deployed).ok().as_deref() != Some(&index);
    if new_images {
        steps.run("put the images on the nodes", || import(lab, &work))?;
    }
    let cluster = Cluster::of(lab)?;
    let secret = match store.map(|store| (store, &store.endpoint)) {
        Some((store, Some(endpoint))) => store.secret(endpoint)?,
        Some((_, None)) | None => json!({
            "endpoint": s3::endpoint(lab), "region": s3::REGION, "bucket": s3::BUCKET,
            "access_key_id": s3::ACCESS_KEY, "secret_access_key": s3::SECRET_KEY,
        }),
    };
    // What runs already, runs an older build or with another store; what is made now, starts with the new one.
    let outdated = if new_images || store_changed(&cluster, &secret) {
        workloads(&cluster)?
    } else {
        Vec::new()
    };
    steps.run("apply deploy/lab", || {
        create_store_secret(&cluster, &secret)?;
        name_collector(lab, &cluster)?;
        create_volumes(lab, &cluster)?;
        cluster
            .run_within(
                APPLY_WITHIN,
                &["apply", "--kustomize", &manifests.display().to_string()],
            )
            .map(drop)
    })?;
    steps.run("wait until Longshore is ready", || {
        wait_ready(&cluster, &outdated)
    })?;
    // Last: a deployment cut off is done again in full.
    fs::write(&deployed, index).with_context(|| format!("write {}", deployed.display()))
}

/// Builds Longshore's programs. Nothing of a lab is needed for it, so it can be done while one starts.
pub fn build(steps: &Steps) -> Result<()> {
    steps.run("build Longshore", || {
        let mut command = Command::new("cargo");
        command
            .current_dir(cache::project())
            .env("CARGO_TARGET_DIR", s3::target_folder()?)
            // The simulator is a test's, and no feature of a dependency is its own.
            .args(["build", "--workspace", "--exclude", "lab-sim", "--bins"]);
        cache::run_logged("longshore", &mut command)
    })
}

/// One of the programs that [`build`] built.
pub fn program(name: &str) -> Result<PathBuf> {
    Ok(s3::target_folder()?.join("debug").join(name))
}

fn make_images(work: &Path) -> Result<()> {
    fs::create_dir_all(work).with_context(|| format!("create {}", work.display()))?;
    let mut images = Vec::new();
    for (name, programs) in IMAGES {
        let mut tree = Tree::default();
        tree.folder("tmp", 0o1777);
        // For stores and collectors behind TLS; the lab's own are not.
        if let Ok(authorities) = fs::read(AUTHORITIES) {
            tree.text(AUTHORITIES.trim_start_matches('/'), authorities);
        }
        for program in *programs {
            add_program(&mut tree, &self::program(program)?, &work.join(program))?;
        }
        let first = programs.first().context("an image starts a program")?;
        images.push(Image {
            name: (*name).to_owned(),
            tree,
            entrypoint: vec![format!("/usr/local/bin/{first}")],
            arguments: Vec::new(),
        });
    }
    let layout = work.join("layout");
    oci::write_layout(&layout, &images)?;
    oci::archive(&layout, &work.join("images.tar"))
}

/// Adds a program, without debugging information (nine tenths of its size), and the libraries it loads.
fn add_program(tree: &mut Tree, built: &Path, stripped: &Path) -> Result<()> {
    let path = |path: &Path| path.display().to_string();
    process::run(
        "strip",
        ["--strip-debug", "-o", &path(stripped), &path(built)],
    )
    .with_context(|| format!("strip {}", built.display()))?;
    let name = built.file_name().context("a program has a name")?;
    tree.program(Path::new("usr/local/bin").join(name), stripped);
    let listing = process::run("ldd", [stripped])
        .with_context(|| format!("list the libraries of {}", built.display()))?;
    for library in libraries_in(&listing) {
        tree.program(library, library);
    }
    Ok(())
}

fn import(lab: &Lab, work: &Path) -> Result<()> {
    let archive = work.join("images.tar");
    thread::scope(|scope| {
        let imports: Vec<_> = lab
            .site
            .node_numbers()
            .map(|n| {
                scope.spawn({
                    let archive = &archive;
                    move || node::import_images(lab, n, archive)
                })
            })
            .collect();
        imports.into_iter().try_for_each(|import| {
            import
                .join()
                .unwrap_or_else(|_| Err(anyhow!("importing images panicked")))
        })
    })
}

/// What the daemons must know of the lab's store, in the form `deploy/` reads for any store.
fn create_store_secret(cluster: &Cluster, secret: &Value) -> Result<()> {
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
    )?;
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE, "namespace": NAMESPACE},
        "stringData": secret,
    }))
}

/// Where traces go: whoever wants them lets a collector listen there; without one they are only kept in the log.
fn name_collector(lab: &Lab, cluster: &Cluster) -> Result<()> {
    let endpoint = format!("http://{}:{COLLECTOR_PORT}", lab.site.gateway());
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": TELEMETRY, "namespace": NAMESPACE},
        "data": {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
    }))
}

/// A volume for each peer, in turn on each node, made for its claim and no other.
fn create_volumes(lab: &Lab, cluster: &Cluster) -> Result<()> {
    for ordinal in 0..PEER_COUNT {
        let node = ordinal % lab.site.nodes + 1;
        let peer = format!("{PEERS}-{ordinal}");
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": peer},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": NAMESPACE, "name": format!("state-{peer}")},
                "hostPath": {"path": format!("{PEER_STATE}/{peer}"), "type": "DirectoryOrCreate"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{
                    "key": "kubernetes.io/hostname", "operator": "In", "values": [Site::node_name(node)],
                }]}]}},
            },
        }))?;
    }
    Ok(())
}

/// A daemon reads the Secret once, at its start. One that isn't there yet has no reader.
fn store_changed(cluster: &Cluster, wanted: &Value) -> bool {
    let read = ["--namespace", NAMESPACE, "get", "secret", STORE];
    let Ok(found) = cluster.json(&read) else {
        return false;
    };
    let kept = |key: &str| {
        let text = found["data"][key].as_str().unwrap_or_default();
        process::succeed_with_input(
            Command::new("base64").arg("--decode"),
            process::Input::Bytes(text.as_bytes().to_vec()),
            APPLY_WITHIN,
        )
    };
    let fields = wanted.as_object().into_iter().flatten();
    fields
        .into_iter()
        .any(|(key, value)| kept(key).ok().as_deref() != value.as_str())
}

/// What makes pods in Longshore's namespace, as `kind/name`.
fn workloads(cluster: &Cluster) -> Result<Vec<String>> {
    let listed = cluster.run(&[
        "--namespace",
        NAMESPACE,
        "get",
        "deployments,statefulsets,daemonsets",
        "--output",
        "name",
    ])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn wait_ready(cluster: &Cluster, outdated: &[String]) -> Result<()> {
    let (limit, patience) = (
        format!("--timeout={READY_WITHIN_S}s"),
        Duration::from_secs(READY_WITHIN_S + 10),
    );
    for workload in outdated {
        cluster.run(&["--namespace", NAMESPACE, "rollout", "restart", workload])?;
    }
    for workload in workloads(cluster)? {
        cluster
            .run_within(
                patience,
                &[
                    "--namespace",
                    NAMESPACE,
                    "rollout",
                    "status",
                    &workload,
                    &limit,
                ],
            )
            .with_context(|| format!("wait for {workload}"))?;
    }
    Ok(())
}
