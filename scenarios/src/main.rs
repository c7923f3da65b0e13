//! `lab`: a real Kubernetes on one machine, for trying Longshore, telling its stories and timing them.
//!
//! ```text
//! cargo lab demo          all of it in one go: build, start, deploy, move a pod, explain
//! cargo lab up            two nodes, Ready in under half a minute once everything is built
//! cargo lab kubectl get pods -A
//! cargo lab shell node1   look around inside a node
//! cargo lab logs kubelet  or etcd, apiserver, containerd …, with node1/ in front for one node's
//! cargo lab deploy        Longshore itself, as built from this checkout
//! cargo lab migrate …     its command, on the lab
//! cargo lab down          nothing is left
//! ```
//! The parts are real: etcd, API server, controllers, scheduler, kubelets, kube-proxy, containerd, runc, CRIU, CNI, a
//! registry, an S3 server. Only the machines are not: a node is a set of namespaces and cgroups (`node`). Debian and
//! Go packages are all it needs from outside; everything else is built here (`parts`, `workloads`) and kept in the
//! cache folder (`cache`). `site` says which addresses are whose, `state` what is written down, `down` how it ends.

mod bench;
mod cache;
mod certificates;
mod cgroup;
mod client;
mod cluster;
mod control;
mod demo;
mod deploy;
mod down;
mod fuzz;
mod http;
mod machine;
mod network;
mod node;
mod oci;
mod parts;
mod process;
mod python;
mod redis;
mod registry;
mod s3;
mod sim;
mod site;
mod state;
mod status;
mod steps;
mod stores;
mod stories;
mod test;
mod up;
mod workloads;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use site::{NODES_MAX, Site};
use state::Lab;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use steps::Steps;

#[derive(Parser)]
#[command(
    name = "lab",
    about = "A real Kubernetes on one machine, for Longshore",
    disable_help_subcommand = true
)]
struct Arguments {
    /// Which lab, when there are several side by side.
    #[arg(long, global = true, default_value = "lab", value_parser = lab_name)]
    name: String,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the lab; one that is up is left as it is.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
        nodes: u8,
    },
    /// The whole story: build, start, deploy, move a pod under load, show what happened.
    Demo,
    /// Take the lab down; nothing is left.
    Down,
    /// Say what runs.
    Status,
    /// Run kubectl as the lab's administrator.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// kubectl's own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run Longshore's command as the lab's administrator.
    #[command(disable_help_flag = true)]
    Migrate {
        /// migrate's own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Open a shell in a node, or run a command there.
    Shell {
        /// Which node: node1, node2, …
        node: String,
        /// The command; a shell without one.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Show a component's log: etcd, apiserver, controllers, scheduler, registry, s3, kubelet, containerd, proxy.
    Logs {
        /// The component; `node1/kubelet` for one node's.
        component: String,
    },
    /// Build Longshore, put its images on the nodes and apply deploy/lab.
    Deploy {
        #[command(flatten)]
        store: deploy::Store,
    },
    /// Run every test: the workspace's, then the stories on a real cluster.
    Test {
        /// Only stories whose names contain one of these; all tests without.
        stories: Vec<String>,
        /// Leave the workspace's own tests out.
        #[arg(long)]
        stories_only: bool,
        /// Only the store's tests, on a real S3 server of this kind.
        #[arg(long, conflicts_with_all = ["stories", "stories_only"])]
        store: Option<stores::Kind>,
    },
    /// Break everything in every phase of a migration, and judge what a client saw.
    Faults {
        /// Only cells whose names (phase-fault, as holding-s3-slow) contain this; may be given several times
        #[arg(long = "cell", value_name = "NAME")]
        cells: Vec<String>,
        /// Write the matrix into this file, too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Compare Longshore with what one would do without it.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Run production code on seeds, in a world that breaks: --seeds FROM..TO, --mistakes, --cases, --seed N --trace.
    #[command(disable_help_flag = true)]
    Sim {
        /// The simulator's own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Feed the page engine's readers with bytes that mean harm, for a while each.
    Fuzz {
        /// Which: layout, recipe, manifest, pack, round; all of them unless named.
        targets: Vec<String>,
        /// Seconds for each.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Say what is missing on this machine and how to get it.
    Doctor,
    /// Be a node's first process (the lab calls this itself).
    #[command(hide = true)]
    NodeInit {
        /// The file that describes the node.
        world: PathBuf,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// `migrate pod` beside the recipe by hand: kubelet checkpoint, buildah, push, kubectl run.
    Pod {
        /// Write the figure into this file, too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How often each way is gone.
        #[arg(long, default_value = "5", value_parser = bench::check_runs)]
        runs: usize,
        /// What is moved: kuard of 64 MiB, or redis of a gibibyte.
        #[arg(long, default_value = "kuard", value_parser = bench::Subject::named)]
        pod: bench::Subject,
    },
    /// The page store beside restic, zstd, aws and buildah, on checkpoints of real programs.
    Store(bench::StoreOptions),
    /// The replicated log: commit latency, migrations a second, failover, a long history.
    Raft {
        /// Write the figures into this file, too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

fn lab_name(name: &str) -> Result<String, String> {
    Site::check_name(name).map(|()| name.to_owned())
}

fn main() -> ExitCode {
    let Arguments { name, command } = Arguments::parse();
    match run(&name, command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, command: Verb) -> Result<ExitCode> {
    match command {
        Verb::Up { nodes } => start(name, nodes)?,
        Verb::Demo => demo::demo(name)?,
        Verb::Down => stop(name)?,
        Verb::Status => show(status::of(name)?.as_bytes())?,
        Verb::Kubectl { arguments } => {
            let error = cluster::Cluster::of(&Lab::expect(name)?)?
                .kubectl()
                .args(arguments)
                .exec();
            return Err(error).context("run kubectl");
        }
        Verb::Migrate { arguments } => {
            let error = std::process::Command::new(deploy::program("migrate")?)
                .env(
                    "KUBECONFIG",
                    cluster::Cluster::of(&Lab::expect(name)?)?.kubeconfig(),
                )
                .args(arguments)
                .exec();
            return Err(error).context("run migrate");
        }
        Verb::Shell { node, command } => enter(name, &node, &command)?,
        Verb::Logs { component } => show_logs(name, &component)?,
        Verb::Deploy { store } => {
            deploy::deploy(&Lab::expect(name)?, Some(&store), &Steps::start())?;
        }
        Verb::Test {
            store: Some(kind), ..
        } => return stores::test(kind),
        Verb::Test {
            stories,
            stories_only,
            store: None,
        } => return test::test(name, &stories, stories_only),
        Verb::Faults { cells, json } => return test::faults(name, &cells, json.as_deref()),
        Verb::Bench {
            what: Bench::Pod { json, runs, pod },
        } => bench::pod(name, &pod, runs, json.as_deref())?,
        Verb::Bench {
            what: Bench::Store(options),
        } => bench::store(name, &options)?,
        Verb::Sim { arguments } => return sim::run(&arguments),
        Verb::Fuzz { targets, seconds } => return fuzz::run(&targets, seconds),
        Verb::Bench {
            what: Bench::Raft { json },
        } => bench::raft(json.as_deref())?,
        Verb::Doctor => {
            let (text, well) = machine::doctor();
            show(text.as_bytes())?;
            return Ok(if well {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Verb::NodeInit { world } => node::init::run(&world)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn start(name: &str, nodes: u8) -> Result<()> {
    let began = Instant::now();
    let steps = Steps::start();
    let lab = up::up(name, nodes, &steps)?;
    drop(steps);
    let option = if name == "lab" {
        String::new()
    } else {
        format!(" --name {name}")
    };
    println!(
        "lab {} is up with {} Ready nodes ({:.1} s). Look around: cargo lab{option} kubectl get pods -A",
        lab.site.name,
        lab.site.nodes,
        began.elapsed().as_secs_f32()
    );
    Ok(())
}

fn stop(name: &str) -> Result<()> {
    if !down::is_there(name)? {
        println!("there is no lab called {name}");
        return Ok(());
    }
    let began = Instant::now();
    down::down(name)?;
    println!(
        "lab {name} is down ({:.1} s)",
        began.elapsed().as_secs_f32()
    );
    Ok(())
}

fn enter(name: &str, node: &str, command: &[String]) -> Result<()> {
    let lab = Lab::expect(name)?;
    let Some(n) = lab
        .site
        .node_numbers()
        .find(|n| Site::node_name(*n) == node)
    else {
        bail!(
            "lab {name} has nodes {}, and no {node}",
            lab.site
                .node_numbers()
                .map(Site::node_name)
                .collect::<Vec<_>>()
                .join(", ")
        );
    };
    let mut inside = node::inside(&lab, n)?;
    if command.is_empty() {
        inside.arg("bash")
    } else {
        inside.args(command)
    };
    Err(inside.exec()).context("enter the node")
}

fn show_logs(name: &str, component: &str) -> Result<()> {
    let lab = Lab::expect(name)?;
    let fits = |known: &&String| {
        *known == component
            || known
                .strip_suffix(component)
                .is_some_and(|node| node.ends_with('/'))
    };
    let found: Vec<&String> = lab.processes.keys().filter(fits).collect();
    if found.is_empty() {
        bail!(
            "lab {name} has no component {component}; it has {}",
            lab.processes.keys().cloned().collect::<Vec<_>>().join(", ")
        );
    }
    for known in &found {
        if found.len() > 1 {
            show(format!("==> {known}\n").as_bytes())?;
        }
        let path = process::log_of(&lab, known)?;
        show(&fs::read(&path).with_context(|| format!("read {}", path.display()))?)?;
    }
    Ok(())
}

/// Prints; a reader who has seen enough (`lab logs … | head`) is no failure.
fn show(text: &[u8]) -> Result<()> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("print"),
        Err(_) | Ok(()) => Ok(()),
    }
}
