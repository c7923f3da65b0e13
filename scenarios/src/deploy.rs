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
use crate::state::Lab;
use crate::steps::Steps;
use crate::workloads::libraries_in;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// Where Longshore lives in the cluster; `deploy/` says the same.
pub const NAMESPACE: &str = "longshore-system";
/// The Secret that names the store, with all that a client of it must know.
const STORE: &str = "longshore-s3";
/// The images and the programs in each, the first of which it starts.
const IMAGES: &[(&str, &[&str])] = &[
    (
        "docker.io/longshore/orchestrator:dev",
        &["orchestrator", "migrate"],
    ),
    ("docker.io/longshore/worker:dev", &["worker"]),
];
/// Applying some thirty objects, among them resource definitions the API server must learn first.
const APPLY_WITHIN: Duration = Duration::from_secs(60);
const READY_WITHIN_S: u64 = 90;

/// Builds Longshore and deploys it on a lab that is up.
pub fn deploy(lab: &Lab, steps: &Steps) -> Result<()> {
    build(steps)?;
    deploy_built(lab, steps)
}

/// Deploys what [`build`] built.
pub fn deploy_built(lab: &Lab, steps: &Steps) -> Result<()> {
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
    let changed = fs::read(&deployed).ok().as_deref() != Some(&index);
    if changed {
        steps.run("put the images on the nodes", || import(lab, &work))?;
    }
    let cluster = Cluster::of(lab)?;
    // What runs already, runs an older build; what is made now, starts with the new one.
    let outdated = if changed {
        workloads(&cluster)?
    } else {
        Vec::new()
    };
    steps.run("apply deploy/lab", || {
        create_store_secret(lab, &cluster)?;
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
            .args(["build", "--workspace", "--bins"]);
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
fn create_store_secret(lab: &Lab, cluster: &Cluster) -> Result<()> {
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
    )?;
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE, "namespace": NAMESPACE},
        "stringData": {
            "endpoint": s3::endpoint(lab), "region": s3::REGION, "bucket": s3::BUCKET,
            "access_key_id": s3::ACCESS_KEY, "secret_access_key": s3::SECRET_KEY,
        },
    }))
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
