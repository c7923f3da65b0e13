//! The hold against a runtime of ours on a real socket, a folder tree that stands in for the freezer, and real archives.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use async_trait::async_trait;
use proto::{
    containerd::{
        containers::{self, containers_server},
        tasks::{self, tasks_server},
    },
    worker::{
        Deliver, Delivered, Disarm, ExportImages, ExportedImages, HasImages, ImportImages, Span, Tidy, Verified, Verify,
        Withdraw,
    },
};
use tonic::{Request, Response, Status};

use super::*;
use crate::{checkpoint::CheckpointError, data::DataError, journal::StepKind};

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
const IDS: [(&str, &str); 2] = [("web", "id-web"), ("side", "id-side")];

/// What the runtime of the test knows, and what was done to it in which order.
#[derive(Default)]
struct World {
    states: BTreeMap<String, tasks::Status>,
    log: Vec<String>,
    /// This container is resumed by somebody while it is dumped.
    meddle_with: Option<String>,
    /// Dumps take this long.
    dump: Duration,
    /// Archives say that they are of this container.
    archives_claim: Option<String>,
    folder: PathBuf,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    fn freezer(&self) -> String {
        fs::read_to_string(self.world().folder.join(format!("freezer/kubepods/pod{UID}/freezer.state"))).unwrap().trim().into()
    }
}

#[async_trait]
impl tasks_server::Tasks for Shared {
    async fn get(&self, request: Request<tasks::GetRequest>) -> Result<Response<tasks::GetResponse>, Status> {
        assert_eq!(request.metadata().get("containerd-namespace").unwrap(), "k8s.io");
        let id = request.into_inner().container_id;
        let world = self.world();
        let status = world.states.get(&id).ok_or_else(|| Status::not_found("no such task"))?;
        let process = tasks::Process { id, pid: 77, status: (*status).into(), ..Default::default() };
        Ok(Response::new(tasks::GetResponse { process: Some(process) }))
    }

    async fn list(&self, _: Request<tasks::ListTasksRequest>) -> Result<Response<tasks::ListTasksResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn pause(&self, request: Request<tasks::PauseTaskRequest>) -> Result<Response<()>, Status> {
        let id = request.into_inner().container_id;
        let mut world = self.world();
        world.log.push(format!("pause {id}"));
        world.states.insert(id, tasks::Status::Paused);
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<tasks::ResumeTaskRequest>) -> Result<Response<()>, Status> {
        let frozen = self.freezer();
        let id = request.into_inner().container_id;
        let mut world = self.world();
        world.log.push(format!("resume {id} under {frozen}"));
        world.states.insert(id, tasks::Status::Running);
        Ok(Response::new(()))
    }
}

#[async_trait]
impl containers_server::Containers for Shared {
    async fn get(
        &self,
        _: Request<containers::GetContainerRequest>,
    ) -> Result<Response<containers::GetContainerResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn list(
        &self,
        _: Request<containers::ListContainersRequest>,
    ) -> Result<Response<containers::ListContainersResponse>, Status> {
        let known: Vec<String> = self.world().states.keys().cloned().collect();
        let name = |id: &str| IDS.iter().find(|(_, known)| *known == id).map_or(id, |(name, _)| *name).to_owned();
        let containers = known.into_iter().map(|id| containers::Container {
            labels: HashMap::from([
                ("io.kubernetes.pod.uid".to_owned(), UID.to_owned()),
                ("io.kubernetes.container.name".to_owned(), name(&id)),
            ]),
            id,
            ..Default::default()
        });
        Ok(Response::new(containers::ListContainersResponse { containers: containers.collect() }))
    }
}

#[async_trait]
impl Checkpointer for Shared {
    async fn checkpoint(&self, subject: &Subject) -> Result<PathBuf, CheckpointError> {
        let (path, dump, claimed) = {
            let mut world = self.world();
            let paused = world.states.values().filter(|state| **state == tasks::Status::Paused).count();
            world.log.push(format!("dump {} with {paused} paused", subject.container));
            if let Some(id) = world.meddle_with.clone() {
                world.states.insert(id, tasks::Status::Running);
            }
            let claimed = world.archives_claim.clone().unwrap_or_else(|| subject.container_id.clone());
            (world.folder.join(format!("{}.tar", subject.container)), world.dump, claimed)
        };
        tokio::time::sleep(dump).await;
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        let json = format!("{{\"id\":\"{claimed}\"}}");
        let mut header = tar::Header::new_ustar();
        header.set_size(json.len() as u64);
        builder.append_data(&mut header, "config.dump", json.as_bytes()).unwrap();
        builder.finish().unwrap();
        Ok(path)
    }
}

#[async_trait]
impl Data for Shared {
    async fn save(
        &self,
        _migration: &str,
        prefix: &str,
        archives: &[(String, PathBuf)],
        _progress: &ProgressFn,
    ) -> Result<Saved, DataError> {
        let frozen = self.freezer();
        let mut world = self.world();
        let names: Vec<&str> = archives.iter().map(|(name, _)| name.as_str()).collect();
        world.log.push(format!("save {} under {frozen}", names.join(",")));
        if prefix == "refused/" {
            return Err(DataError("put refused/0: connection refused".into()));
        }
        Ok(Saved { manifest_key: format!("{prefix}manifest"), ..Saved::default() })
    }
    async fn deliver(&self, _: &str, _: u64, _: &Deliver, _: &ProgressFn) -> Result<(Delivered, Vec<Span>), DataError> {
        Err(DataError("not asked".into()))
    }
    async fn verify(&self, _: &Verify) -> Result<Verified, DataError> {
        Err(DataError("not asked".into()))
    }
    async fn disarm(&self, _: &Disarm) -> Result<(), DataError> {
        Err(DataError("not asked".into()))
    }
    async fn withdraw(&self, _: &str, _: &Withdraw) -> Result<(), DataError> {
        Err(DataError("not asked".into()))
    }
    async fn tidy(&self, _: &str, _: &Tidy) -> Result<(), DataError> {
        Err(DataError("not asked".into()))
    }
    async fn has_images(&self, _: &HasImages) -> Result<Vec<String>, DataError> {
        Err(DataError("not asked".into()))
    }
    async fn export_images(&self, _: &str, _: &ExportImages, _: &ProgressFn) -> Result<ExportedImages, DataError> {
        Err(DataError("not asked".into()))
    }
    async fn import_images(&self, _: &str, _: &ImportImages, _: &ProgressFn) -> Result<(), DataError> {
        Err(DataError("not asked".into()))
    }
}

/// A node with one pod of two containers that runs.
struct Bench {
    shared: Shared,
    holder: Holder,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shared = Shared::default();
        shared.world().folder = folder.path().to_owned();
        for (name, id) in IDS {
            shared.world().states.insert(id.to_owned(), tasks::Status::Running);
            let cgroup = folder.path().join(format!("freezer/kubepods/pod{UID}/{name}"));
            fs::create_dir_all(&cgroup).unwrap();
        }
        let pod = folder.path().join(format!("freezer/kubepods/pod{UID}"));
        for cgroup in [pod.clone(), pod.join("web"), pod.join("side")] {
            fs::write(cgroup.join("freezer.state"), "THAWED\n").unwrap();
            fs::write(cgroup.join("cgroup.procs"), "").unwrap();
        }
        fs::create_dir_all(folder.path().join("proc/77")).unwrap();
        fs::write(folder.path().join("proc/77/cgroup"), format!("5:freezer:/kubepods/pod{UID}/web\n")).unwrap();
        let socket = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(tasks_server::TasksServer::new(shared.clone()))
            .add_service(containers_server::ContainersServer::new(shared.clone()));
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)));
        let holder = Self::holder(&shared, folder.path());
        Self { shared, holder, folder }
    }

    fn holder(shared: &Shared, folder: &Path) -> Holder {
        Holder {
            containerd: Containerd::at(&folder.join("socket")),
            cgroups: Cgroups::at(folder).unwrap(),
            checkpointer: Arc::new(shared.clone()),
            journal: Journal::open(&folder.join("state")).unwrap(),
            boot_id: "boot".into(),
            proc: folder.join("proc"),
        }
    }

    /// As after a crash: nothing left but the journal.
    fn restarted(&self) -> Holder {
        Self::holder(&self.shared, self.folder.path())
    }

    async fn hold_with(&self, holder: &Holder, request: Hold) -> Result<HeldCheckpoint, HoldError> {
        let key = StepKey { migration: "m".into(), revision: 5, kind: StepKind::Hold };
        let token = CancellationToken::new();
        holder.hold(&key, &request, &self.shared, &mut Timeline::default(), &|_, _, _| {}, &token).await
    }

    async fn hold(&self) -> Result<HeldCheckpoint, HoldError> {
        self.hold_with(&self.holder, request()).await
    }

    async fn release(&self) -> proto::worker::Released {
        self.holder.release("m", &pod(), &mut Timeline::default()).await.unwrap()
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
    Pod { namespace: "ns".into(), name: "p".into(), uid: UID.into(), containers: containers.collect(), ..Pod::default() }
}

fn request() -> Hold {
    Hold { pod: Some(pod()), store_prefix: "c/".into(), budget_ms: 60_000, keep_archives: true }
}

#[tokio::test]
async fn every_task_is_paused_before_the_first_dump_and_the_pod_frozen_after_the_last() {
    let bench = Bench::new();
    let held = bench.hold().await.unwrap();
    assert_eq!(held.manifest_key, "c/manifest");
    let log = bench.log();
    assert_eq!(log[2..], ["dump web with 2 paused", "dump side with 2 paused", "save web,side under FROZEN"]);
    assert!(log[..2].iter().all(|line| line.starts_with("pause ")), "{log:?}");
    let state = bench.holder.confirm(&pod(), "boot").await.unwrap();
    assert!(state.held, "{state:?}");
    assert!(!bench.holder.confirm(&pod(), "another boot").await.unwrap().held);
}

#[tokio::test]
async fn a_task_that_was_resumed_during_the_dump_makes_the_snapshot_stale() {
    let bench = Bench::new();
    bench.shared.world().meddle_with = Some("id-web".into());
    let error = bench.hold().await.unwrap_err();
    assert!(error.to_string().starts_with("the snapshot is stale"), "{error}");
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
    bench.shared.world().states.insert("id-side".into(), tasks::Status::Stopped);
    let error = bench.hold().await.unwrap_err();
    assert!(matches!(error, HoldError::NotRunning { .. }), "{error}");
    assert!(bench.log().is_empty());
}

#[tokio::test]
async fn a_dump_that_takes_longer_than_the_budget_fails_in_time() {
    let bench = Bench::new();
    bench.shared.world().dump = Duration::from_secs(60);
    let start = Instant::now();
    let error = bench.hold_with(&bench.holder, Hold { budget_ms: 200, ..request() }).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    // The call never answered, so nobody can say that its dump is over.
    assert!(error.is_in_doubt(), "{error}");
}

#[tokio::test]
async fn a_restarted_worker_goes_on_with_the_archives_it_has() {
    let bench = Bench::new();
    let error = bench.hold_with(&bench.holder, Hold { store_prefix: "refused/".into(), ..request() }).await.unwrap_err();
    assert!(matches!(error, HoldError::Data(_)), "{error}");
    let held = bench.hold_with(&bench.restarted(), request()).await.unwrap();
    assert_eq!(held.manifest_key, "c/manifest");
    let dumps = bench.log().iter().filter(|line| line.starts_with("dump")).count();
    assert_eq!(dumps, 2, "{:?}", bench.log());
}

#[tokio::test]
async fn a_restarted_worker_fails_the_hold_when_the_source_ran_meanwhile_or_the_node_was_booted() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    let booted = Holder { boot_id: "another".into(), ..bench.restarted() };
    assert!(matches!(bench.hold_with(&booted, request()).await, Err(HoldError::Stale { .. })));
    bench.shared.world().states.insert("id-web".into(), tasks::Status::Running);
    assert!(matches!(bench.hold_with(&bench.restarted(), request()).await, Err(HoldError::Stale { .. })));
}

#[tokio::test]
async fn a_release_thaws_before_it_resumes_removes_the_archives_and_may_be_repeated() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    assert!(bench.folder.path().join("web.tar").exists());
    let released = bench.release().await;
    assert!(released.was_held && released.running, "{released:?}");
    assert!(bench.log().contains(&"resume id-web under THAWED".to_owned()), "{:?}", bench.log());
    assert!(!bench.folder.path().join("web.tar").exists());
    let again = bench.release().await;
    assert!(!again.was_held && again.running, "{again:?}");
    assert!(bench.holder.journal.recall().await.unwrap().holds().is_empty());
}

#[tokio::test]
async fn releasing_a_pod_that_is_gone_says_so() {
    let bench = Bench::new();
    bench.shared.world().states.clear();
    let released = bench.release().await;
    assert_eq!((released.was_held, released.running), (false, false));
    assert_eq!(released.detail, "the pod is gone from this node");
}

#[tokio::test]
async fn destroying_waits_until_the_runtime_has_no_task_and_thaws() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    let shared = bench.shared.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        shared.world().states.clear();
    });
    bench.holder.destroy("m", &pod(), &mut Timeline::default()).await.unwrap();
    assert_eq!(bench.shared.freezer(), "THAWED");
    assert!(bench.shared.world().states.is_empty());
    bench.holder.destroy("m", &pod(), &mut Timeline::default()).await.unwrap();
}
