//! The hold against a runtime of ours on a real socket, a folder tree that stands in for the freezer, and real archives.

mod bar;
mod end;
mod world;

use std::{fs, time::Instant};

use proto::containerd::{
    containers::containers_server,
    tasks::{self, tasks_server},
};

use super::*;
use proto::worker::{CopiedRound, Copy};

use crate::{cgroup::Cgroups, containerd::Containerd, journal::StepKind};
use world::Shared;

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
const IDS: [(&str, &str); 2] = [("web", "id-web"), ("side", "id-side")];

/// A node with one pod of two containers that runs.
struct Bench {
    shared: Shared,
    holder: Holder,
    folder: tempfile::TempDir,
    superseded: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shared = Shared::default();
        shared.world().folder = folder.path().to_owned();
        for (name, id) in IDS {
            shared
                .world()
                .states
                .insert(id.to_owned(), tasks::Status::Running);
            let cgroup = folder
                .path()
                .join(format!("freezer/kubepods/pod{UID}/{name}"));
            fs::create_dir_all(&cgroup).unwrap();
        }
        let pod = folder.path().join(format!("freezer/kubepods/pod{UID}"));
        for cgroup in [pod.clone(), pod.join("web"), pod.join("side")] {
            fs::write(cgroup.join("freezer.state"), "THAWED\n").unwrap();
            fs::write(cgroup.join("cgroup.procs"), "").unwrap();
        }
        fs::create_dir_all(folder.path().join("proc/77")).unwrap();
        fs::write(
            folder.path().join("proc/77/cgroup"),
            format!("5:freezer:/kubepods/pod{UID}/web\n"),
        )
        .unwrap();
        let socket = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(tasks_server::TasksServer::new(shared.clone()))
            .add_service(containers_server::ContainersServer::new(shared.clone()));
        tokio::spawn(
            server.serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)),
        );
        let holder = Self::holder(&shared, folder.path());
        Self {
            shared,
            holder,
            folder,
            superseded: CancellationToken::new(),
        }
    }

    /// Its SIGTERM waits in the frozen process.
    fn the_kubelet_ends_it(&self) {
        let status = "Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\n";
        fs::write(self.folder.path().join("proc/77/status"), status).unwrap();
    }

    fn holder(shared: &Shared, folder: &Path) -> Holder {
        let node = ThisNode {
            containerd: Containerd::at(&folder.join("socket")),
            cgroups: Cgroups::at(folder).unwrap(),
            proc: folder.join("proc"),
        };
        Holder {
            node: Arc::new(node),
            checkpointer: Arc::new(shared.clone()),
            journal: Journal::open(&folder.join("state")).unwrap(),
            boot_id: "boot".into(),
        }
    }

    /// As after a crash: nothing left but the journal.
    fn restarted(&self) -> Holder {
        Self::holder(&self.shared, self.folder.path())
    }

    async fn hold_with(&self, holder: &Holder, request: Hold) -> Result<HeldCheckpoint, HoldError> {
        let key = StepKey {
            migration: "m".into(),
            revision: 5,
            kind: StepKind::Hold,
        };
        holder
            .hold(
                &key,
                &request,
                &self.shared,
                &mut Timeline::default(),
                &|_, _, _| {},
                &self.superseded,
            )
            .await
    }

    async fn hold(&self) -> Result<HeldCheckpoint, HoldError> {
        self.hold_with(&self.holder, request()).await
    }

    async fn copy_with(&self, holder: &Holder, prefix: &str) -> Result<CopiedRound, HoldError> {
        let key = StepKey {
            migration: "m".into(),
            revision: 4,
            kind: StepKind::Copy,
        };
        let request = Copy {
            pod: Some(pod()),
            store_prefix: prefix.into(),
            base: None,
            budget_ms: 60_000,
        };
        holder
            .copy(
                &key,
                &request,
                &self.shared,
                &mut Timeline::default(),
                &|_, _, _| {},
                &self.superseded,
            )
            .await
    }

    fn all_run(&self) -> bool {
        let world = self.shared.world();
        let mut states = world.states.values();
        states.all(|state| *state == tasks::Status::Running)
    }

    async fn release(&self) -> proto::worker::Released {
        self.release_unless(false).await
    }

    async fn release_unless(&self, keep_if_doomed: bool) -> proto::worker::Released {
        let request = proto::worker::Release {
            pod: Some(pod()),
            manifest_key: String::new(),
            keep_if_doomed,
        };
        self.holder
            .release("m", &request, &mut Timeline::default())
            .await
            .unwrap()
    }

    fn log(&self) -> Vec<String> {
        self.shared.world().log.clone()
    }
}

fn pod() -> Pod {
    let containers = IDS.iter().map(|(name, id)| Container {
        name: (*name).into(),
        container_id: (*id).into(),
        ..Container::default()
    });
    Pod {
        namespace: "ns".into(),
        name: "p".into(),
        uid: UID.into(),
        containers: containers.collect(),
        ..Pod::default()
    }
}

fn request() -> Hold {
    Hold {
        pod: Some(pod()),
        store_prefix: "c/".into(),
        budget_ms: 60_000,
        keep_archives: true,
        base: None,
    }
}

#[tokio::test]
async fn every_task_is_paused_before_the_first_dump_and_the_pod_frozen_after_the_last() {
    let bench = Bench::new();
    let held = bench.hold().await.unwrap();
    assert_eq!(held.manifest_key, "c/manifest");
    let log = bench.log();
    assert_eq!(
        log[2..],
        [
            "dump web with 2 paused",
            "dump side with 2 paused",
            "save web,side under FROZEN"
        ]
    );
    assert!(
        log[..2].iter().all(|line| line.starts_with("pause ")),
        "{log:?}"
    );
    let state = bench.holder.confirm(&pod(), "boot").await.unwrap();
    assert!(state.held, "{state:?}");
    assert!(
        !bench
            .holder
            .confirm(&pod(), "another boot")
            .await
            .unwrap()
            .held
    );
}

#[tokio::test]
async fn a_round_pauses_nothing_and_the_hold_after_it_takes_archives_of_its_own() {
    let bench = Bench::new();
    let copied = bench.copy_with(&bench.holder, "r/").await.unwrap();
    assert_eq!(copied.manifest_key, "r/manifest");
    assert!(bench.all_run());
    bench.hold().await.unwrap();
    let dumps: Vec<String> = bench
        .log()
        .into_iter()
        .filter(|line| line.starts_with("dump"))
        .collect();
    assert_eq!(
        dumps,
        [
            "dump web with 0 paused",
            "dump side with 0 paused",
            "dump web with 2 paused",
            "dump side with 2 paused"
        ]
    );
}

#[tokio::test]
async fn a_round_that_fails_leaves_the_pod_running_also_when_its_dump_did_not() {
    let bench = Bench::new();
    bench.shared.world().leaves_paused = Some("id-web".into());
    let error = bench.copy_with(&bench.holder, "r/").await.unwrap_err();
    assert!(matches!(error, HoldError::Stale { .. }), "{error}");
    assert!(bench.all_run());
    let error = bench.copy_with(&bench.holder, "refused/").await;
    assert!(matches!(error, Err(HoldError::Data(_))));
    assert!(bench.all_run());
}

#[tokio::test]
async fn what_a_round_left_when_the_worker_died_is_mended_by_the_next_or_by_a_release() {
    let bench = Bench::new();
    let entry = Entry::Copying {
        migration: "m".into(),
        since_unix_ns: 1,
    };
    let died_in_a_dump = async |holder: &Holder| {
        let entry = vec![entry.clone()];
        let appended = holder.journal.append(entry, Urgency::Ordinary).await;
        appended.unwrap();
        let mut world = bench.shared.world();
        world.states.insert("id-side".into(), tasks::Status::Paused);
    };
    died_in_a_dump(&bench.holder).await;
    bench.copy_with(&bench.holder, "r/").await.unwrap();
    assert!(bench.all_run());
    died_in_a_dump(&bench.holder).await;
    let released = bench.release().await;
    assert!(released.running, "{released:?}");
    let known = bench.holder.journal.recall().await.unwrap().migration("m");
    assert_eq!(known.copying, None);
    assert!(known.copies.is_empty());
}

#[tokio::test]
async fn a_task_that_was_resumed_during_the_dump_makes_the_snapshot_stale() {
    let bench = Bench::new();
    bench.shared.world().meddle_with = Some("id-web".into());
    let error = bench.hold().await.unwrap_err();
    assert!(
        error.to_string().starts_with("the snapshot is stale"),
        "{error}"
    );
    assert!(!error.is_in_doubt());
    assert!(!bench.log().iter().any(|line| line.starts_with("save")));
}

#[tokio::test]
async fn an_archive_of_another_container_is_refused() {
    let bench = Bench::new();
    bench.shared.world().archives_claim = Some("id-of-before".into());
    let error = bench.hold().await.unwrap_err();
    assert!(matches!(error, HoldError::OtherContainer { .. }), "{error}");
}

#[tokio::test]
async fn a_pod_that_does_not_run_is_not_touched() {
    let bench = Bench::new();
    bench
        .shared
        .world()
        .states
        .insert("id-side".into(), tasks::Status::Stopped);
    let error = bench.hold().await.unwrap_err();
    assert!(matches!(error, HoldError::NotRunning { .. }), "{error}");
    assert!(bench.log().is_empty());
}

#[tokio::test]
async fn a_dump_that_takes_longer_than_the_budget_fails_in_time() {
    let bench = Bench::new();
    bench.shared.world().dump = Duration::from_secs(60);
    let start = Instant::now();
    let error = bench
        .hold_with(
            &bench.holder,
            Hold {
                budget_ms: 200,
                ..request()
            },
        )
        .await
        .unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    // The call never answered, so nobody can say that its dump is over.
    assert!(error.is_in_doubt(), "{error}");
}

#[tokio::test]
async fn a_newer_step_ends_the_dump_at_once_and_its_archive_is_removed_when_it_comes() {
    let bench = Bench::new();
    bench.shared.world().dump = Duration::from_secs(1);
    let superseded = bench.superseded.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        superseded.cancel();
    });
    let start = Instant::now();
    let error = bench.hold().await.unwrap_err();
    assert!(matches!(error, HoldError::Superseded), "{error}");
    assert!(start.elapsed() < Duration::from_millis(800));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let archives = fs::read_dir(bench.folder.path())
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|ext| ext == "tar"));
    assert_eq!(archives.count(), 0);
}

#[tokio::test]
async fn a_restarted_worker_goes_on_with_the_archives_it_has() {
    let bench = Bench::new();
    let error = bench
        .hold_with(
            &bench.holder,
            Hold {
                store_prefix: "refused/".into(),
                ..request()
            },
        )
        .await
        .unwrap_err();
    assert!(matches!(error, HoldError::Data(_)), "{error}");
    let held = bench
        .hold_with(&bench.restarted(), request())
        .await
        .unwrap();
    assert_eq!(held.manifest_key, "c/manifest");
    let dumps = bench
        .log()
        .iter()
        .filter(|line| line.starts_with("dump"))
        .count();
    assert_eq!(dumps, 2, "{:?}", bench.log());
}

#[tokio::test]
async fn a_restarted_worker_fails_the_hold_when_the_source_ran_meanwhile_or_the_node_was_booted() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    let booted = Holder {
        boot_id: "another".into(),
        ..bench.restarted()
    };
    assert!(matches!(
        bench.hold_with(&booted, request()).await,
        Err(HoldError::Stale { .. })
    ));
    bench
        .shared
        .world()
        .states
        .insert("id-web".into(), tasks::Status::Running);
    assert!(matches!(
        bench.hold_with(&bench.restarted(), request()).await,
        Err(HoldError::Stale { .. })
    ));
}
