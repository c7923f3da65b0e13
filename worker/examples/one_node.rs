//! Holds, releases and ends a real pod on a real node, with the worker's own parts and a tiny orchestrator in one
//! process. Run inside a node as root, while a pod runs there:
//!
//! `one_node NAMESPACE POD UID CONTAINER=ID[,CONTAINER=ID…] POD_IP FOLDER [worker's flags…]`; FOLDER/token holds the
//! kubelet's token, and the variable BUDGET_MS the freeze budget.

#[path = "../tests/orchestrator/mod.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod orchestrator;
#[path = "../tests/orchestrator/pocket.rs"]
mod pocket;

use std::{path::PathBuf, sync::Arc, time::Instant};

use clap::Parser;
use orchestrator::Desk;
use proto::worker::{
    ConfirmHold, Container, Destroy, Hold, Inspect, Pod, Release, StepReport, question,
    step_request::Kind,
};
use worker::{
    agent::{self, Tools},
    cgroup::Cgroups,
    checkpoint::kubelet::Kubelet,
    config::Config,
    containerd::Containerd,
    hold::{Holder, ThisNode},
    inspect::Inspector,
    inventory::{self, Surveyor},
    journal::Journal,
    metrics::Metrics,
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .first()
        .is_some_and(|first| first == inventory::BECOME)
    {
        panic!("{}", inventory::become_program(&arguments[1..]));
    }
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    runtime.block_on(story(&arguments));
}

#[allow(clippy::too_many_lines, reason = "a story is told in one go")]
async fn story(arguments: &[String]) {
    let [namespace, name, uid, containers, pod_ip, folder, flags @ ..] = arguments else {
        panic!("see the head of the file")
    };
    let containers = containers
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, id)| Container {
            name: name.to_owned(),
            container_id: id.to_owned(),
            ..Container::default()
        });
    let pod = Some(Pod {
        namespace: namespace.clone(),
        name: name.clone(),
        uid: uid.clone(),
        containers: containers.collect(),
        pod_ip: pod_ip.clone(),
    });
    let mut desk = Desk::open().await;
    start(&desk, folder.into(), flags);
    let hello = desk.hello().await;
    let inventory = desk.inventory().await;
    println!(
        "INVENTORY {:?}",
        proto::worker::Inventory {
            cpu_flags: vec![],
            ..inventory
        }
    );
    let inspect = Inspect {
        pod: pod.clone(),
        ghost_limit_bytes: 64 << 20,
    };
    println!(
        "INSPECTION {:?}",
        desk.question(question::Kind::Inspect(inspect)).await
    );
    let hold = |prefix: &str| Hold {
        pod: pod.clone(),
        store_prefix: prefix.to_owned(),
        budget_ms: budget_ms(),
        keep_archives: true,
        base: None,
    };
    show("HOLD", &mut desk, "one", 20, Kind::Hold(hold("one/"))).await;
    let confirm = ConfirmHold {
        pod: pod.clone(),
        boot_id: hello.boot_id.clone(),
    };
    println!(
        "CONFIRM {:?}",
        desk.question(question::Kind::ConfirmHold(confirm.clone()))
            .await
    );
    println!("HELD, waiting 3 s");
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    show(
        "RELEASE",
        &mut desk,
        "one",
        21,
        Kind::Release(Release {
            pod: pod.clone(),
            manifest_key: String::new(),
            keep_if_doomed: false,
        }),
    )
    .await;
    println!(
        "CONFIRM {:?}",
        desk.question(question::Kind::ConfirmHold(confirm)).await
    );
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    show("HOLD AGAIN", &mut desk, "two", 22, Kind::Hold(hold("two/"))).await;
    show(
        "DESTROY",
        &mut desk,
        "two",
        23,
        Kind::Destroy(Destroy { pod }),
    )
    .await;
}

fn budget_ms() -> u64 {
    std::env::var("BUDGET_MS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60_000)
}

async fn show(what: &str, desk: &mut Desk, migration: &str, revision: u64, kind: Kind) {
    let start = Instant::now();
    let StepReport {
        outcome,
        detail,
        spans,
        result,
        ..
    } = desk.step(migration, revision, kind).await;
    println!(
        "{what} in {} ms: outcome {outcome} {detail:?} {result:?}",
        start.elapsed().as_millis()
    );
    for span in spans {
        println!(
            "    {} {} us {:?}",
            span.name,
            (span.end_unix_ns - span.start_unix_ns) / 1000,
            span.attributes
        );
    }
}

fn start(desk: &Desk, folder: PathBuf, flags: &[String]) {
    std::fs::write(folder.join("orchestrator-token"), "the-token")
        .expect("the folder can be written to");
    let own = [
        "worker".to_owned(),
        format!("--orchestrator=http://{}", desk.address),
        format!(
            "--token-file={}",
            folder.join("orchestrator-token").display()
        ),
        format!("--kubelet-token-file={}", folder.join("token").display()),
        format!("--state-dir={}", folder.join("state").display()),
    ];
    let config = Config::parse_from(own.iter().chain(flags));
    let journal = Journal::open(&config.state_dir).expect("the journal opens");
    let containerd = Containerd::at(&config.containerd_socket);
    let cgroups = Cgroups::at(&config.cgroup_root).expect("there are cgroups");
    let kubelet = Kubelet::new(&config);
    let boot_id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("there is a boot id");
    let (node_root, state_dir) = (config.node_root.clone(), config.state_dir.clone());
    let tools = Tools {
        holder: Holder {
            node: Arc::new(ThisNode {
                containerd: containerd.clone(),
                cgroups: cgroups.clone(),
                proc: "/proc".into(),
            }),
            checkpointer: Arc::new(kubelet.clone()),
            journal: journal.clone(),
            boot_id: boot_id.trim().to_owned(),
        },
        data: Arc::new(pocket::Pocket {
            folder,
            slow: std::time::Duration::ZERO,
            delivered: Arc::default(),
        }),
        inspector: Arc::new(Inspector {
            containerd: containerd.clone(),
            proc: "/proc".into(),
            node_root: node_root.clone(),
        }),
        surveyor: Arc::new(Surveyor {
            containerd,
            kubelet,
            cgroups,
            node_root,
            state_dir,
        }),
        metrics: Metrics::new().expect("metrics can be made"),
        journal,
        config,
    };
    tokio::spawn(async move {
        agent::run(tools)
            .await
            .expect("the journal can be written to")
    });
}
