//! Starting a lab.
//!
//! ```text
//! packages ─► node root filesystem ─┬─► workload images ─┐
//!             Kubernetes programs ──┘                     ├─► control plane ─► nodes ─► Ready
//!             S3 server ──────────────────────────────────┘
//! ```
//! Parts are made side by side and kept (`cache`, `parts`); with all of them there, what remains takes seconds. A lab
//! that is up is left as it is; the remains of one that isn't are taken down first, so there are only two ways a start
//! can begin: from nothing, or not at all.

use crate::cache::Part;
use crate::certificates::Pki;
use crate::cgroup;
use crate::cluster::Cluster;
use crate::control;
use crate::down;
use crate::machine;
use crate::network;
use crate::node::{self, Program};
use crate::parts;
use crate::process;
use crate::registry;
use crate::s3;
use crate::site::{REGISTRY_NAME, REGISTRY_PORT, Site, cgroup_of};
use crate::state::{Lab, Stage};
use crate::steps::Steps;
use crate::workloads;
use anyhow::{Context, Result, anyhow, bail};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// From started kubelets to Ready nodes: five seconds warm, more on a machine that compiles.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Starts the lab called `name`, or finds it up.
pub fn up(name: &str, nodes: u8, steps: &Steps) -> Result<Lab> {
    machine::prepare(steps)?;
    if let Some(lab) = Lab::load(name)?
        && is_up(&lab)?
    {
        if lab.site.nodes != nodes {
            bail!(
                "lab {name} is up with {} nodes, not {nodes}; take it down first",
                lab.site.nodes
            );
        }
        steps.note(format!("lab {name} is up already; nothing to do"));
        return Ok(lab);
    }
    if Lab::folder_of(name)?.exists() {
        steps.run("clear away what an earlier start left", || down::down(name))?;
    }
    let strangers = cgroup::processes(&cgroup_of(name))?;
    if !strangers.is_empty() {
        bail!(
            "a lab called {name} that this cache folder knows nothing of runs here (processes {strangers:?}); choose another name"
        );
    }
    let parts = make_parts(steps)?;
    let (mut lab, _alone) = Lab::claim(name, nodes)?;
    lab.base = Some(parts.base);
    lab.kube = Some(parts.kube);
    lab.s3 = Some(parts.s3);
    lab.save()?;
    start(&mut lab, &parts.workloads, steps)?;
    lab.stage = Stage::Up;
    lab.save()?;
    Ok(lab)
}

/// Whether every program of the lab runs and every node is Ready.
pub fn is_up(lab: &Lab) -> Result<bool> {
    if lab.stage != Stage::Up || lab.processes.values().any(|process| !process.is_alive()) {
        return Ok(false);
    }
    Ok(Cluster::of(lab)?
        .ready_nodes()
        .is_ok_and(|ready| ready.len() == usize::from(lab.site.nodes)))
}

/// The folders of the parts.
struct Parts {
    base: PathBuf,
    kube: PathBuf,
    s3: PathBuf,
    workloads: PathBuf,
}

/// Makes what isn't there, side by side.
fn make_parts(steps: &Steps) -> Result<Parts> {
    let (base, kube, s3) = (parts::base(), parts::kube()?, s3::part()?);
    let images = workloads::part(&base)?;
    // A part that is there is no step worth a line.
    let make = |part: &Part, step: &'static str, make: &dyn Fn(&Path) -> Result<()>| {
        if part.is_there() {
            part.path()
        } else {
            steps.run(step, || part.ensure(make))
        }
    };
    thread::scope(|scope| {
        let kube = scope.spawn(|| make(&kube, "build Kubernetes from source", &parts::make_kube));
        let s3 = scope.spawn(|| make(&s3, "build the S3 server", &s3::make));
        let base = make(&base, "build the node root filesystem", &parts::make_base);
        let workloads = base
            .as_ref()
            .map_err(|_| anyhow!("the node root filesystem is missing"))
            .and_then(|base| {
                make(&images, "build the workload images", &|target: &Path| {
                    workloads::make(base, target)
                })
            });
        let kube = kube
            .join()
            .unwrap_or_else(|_| Err(anyhow!("building Kubernetes panicked")));
        let s3 = s3
            .join()
            .unwrap_or_else(|_| Err(anyhow!("building the S3 server panicked")));
        Ok(Parts {
            base: base?,
            kube: kube?,
            s3: s3?,
            workloads: workloads?,
        })
    })
}

fn start(lab: &mut Lab, images: &Path, steps: &Steps) -> Result<()> {
    steps.run("network and certificates", || {
        cgroup::create(&lab.site.cgroup(), control::UNIT)?;
        network::raise_bridge(&lab.site)?;
        Pki::of(&lab.folder()?).create(&lab.site)
    })?;
    steps.run("etcd, registry, S3, API server", || {
        control::start_registry(lab)?;
        s3::start(lab)?;
        control::start_api(lab)
    })?;
    let layout = images.join("layout");
    let address = SocketAddr::from((lab.site.gateway(), REGISTRY_PORT));
    thread::scope(|scope| {
        // The registry is filled while the nodes start; nothing on the way to Ready pulls from it.
        let push = scope.spawn(move || {
            registry::push(&layout, REGISTRY_NAME, address).context("fill the registry")
        });
        steps.run("controllers and nodes", || {
            control::start_controllers(lab)?;
            start_nodes(lab, &images.join("images.tar"))
        })?;
        steps.run("nodes become Ready", || wait_ready(lab))?;
        push.join()
            .unwrap_or_else(|_| Err(anyhow!("filling the registry panicked")))
    })
}

fn start_nodes(lab: &mut Lab, archive: &Path) -> Result<()> {
    for n in lab.site.node_numbers() {
        node::create(lab, n).with_context(|| format!("make {}", Site::node_name(n)))?;
        node::start(lab, n, Program::Containerd)?;
    }
    for n in lab.site.node_numbers() {
        node::wait_for_containerd(lab, n)?;
        node::start(lab, n, Program::Kubelet)?;
        node::start(lab, n, Program::Proxy)?;
    }
    let lab = &*lab;
    thread::scope(|scope| {
        let imports: Vec<_> = lab
            .site
            .node_numbers()
            .map(|n| scope.spawn(move || node::import_images(lab, n, archive)))
            .collect();
        imports.into_iter().try_for_each(|import| {
            import
                .join()
                .unwrap_or_else(|_| Err(anyhow!("importing images panicked")))
        })
    })
}

fn wait_ready(lab: &Lab) -> Result<()> {
    let cluster = Cluster::of(lab)?;
    process::wait_for("every node to be Ready", READY_WITHIN, || {
        for component in lab.processes.keys() {
            process::check_alive(lab, component)?;
        }
        // The API may be slow to answer on a busy machine; the limit above is what ends the waiting. Pods need the
        // namespace's service account, too, which a controller makes in its own time.
        let ready = cluster.ready_nodes().unwrap_or_default().len() == usize::from(lab.site.nodes);
        Ok((ready && cluster.run(&["get", "serviceaccount", "default"]).is_ok()).then_some(()))
    })
}
