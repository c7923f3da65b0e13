//! A node as its worker touches it: the runtime's tasks, cgroups, archives, images, the registry. Production code asks
//! through [`worker::hold::Node`] and [`worker::data::Data`]; every effect takes its time, and the process may die
//! before and after each.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use orchestrator::clock::TimeOfDay;
use proto::worker::{Inspection, Inventory, Pod};
use tonic::Status;
use worker::{
    checkpoint::{CheckpointError, Checkpointer, Subject, proof::Proof},
    containerd::{Container, ContainerdError, Task, TaskState},
    hold::{HoldError, Node, Tasks},
    inspect::{Inspect, InspectError},
    inventory::Survey,
};

use crate::{
    life::Life,
    mistakes::Mistake,
    sim::{Inner, Sim, WallClock},
    store::Store,
    truth::{Archive, Cause, Machine},
};

/// A machine and the process that touches it.
#[derive(Clone)]
pub struct Hands {
    /// The world.
    pub sim: Sim,
    /// Whose hands.
    pub life: Life,
    /// Which machine.
    pub node: String,
    /// Which boot of it.
    pub boot: u32,
    /// Its wall clock.
    pub clock: WallClock,
    /// The store as this process reaches it.
    pub store: Store,
    /// Checkpoints whose bytes this process has: of which migration, and the manifest's hash.
    pub bases: Arc<Mutex<BTreeSet<(String, String)>>>,
}

impl Hands {
    /// Does something to the machine, or looks at it. Gone with the machine's boot.
    pub async fn touch<T>(&self, what: &str, effect: impl FnOnce(&mut Inner, &str) -> T) -> T {
        self.life.edge(what).await;
        self.sim.rest(0..=2).await;
        self.same_boot().await;
        let result = self.sim.with(|inner| effect(inner, &self.node));
        self.sim.event(self.life.name(), format_args!("{what}"));
        self.life.edge(what).await;
        result
    }

    /// A process doesn't outlive its machine's boot.
    async fn same_boot(&self) {
        let same = self.sim.look(|inner| {
            let machine = inner.truth.machine(&self.node);
            machine.up && machine.boot == self.boot
        });
        if !same {
            std::future::pending::<()>().await;
        }
    }

    /// Looks at the machine at once.
    pub fn look<T>(&self, look: impl FnOnce(&mut Machine) -> T) -> T {
        self.sim.look(|inner| look(inner.truth.machine(&self.node)))
    }
}

/// Of dumps of running containers.
const STAYS_PAUSED_PER_MILLE: u64 = 60;

fn said(doing: &'static str, id: &str, what: &str) -> ContainerdError {
    ContainerdError::new(doing, id, Status::failed_precondition(what.to_owned()))
}

fn unknown(doing: &'static str, id: &str) -> ContainerdError {
    ContainerdError::new(doing, id, Status::not_found("no such container"))
}

#[async_trait]
impl Tasks for Hands {
    async fn containers_of(&self, uid: &str) -> Result<Vec<Container>, ContainerdError> {
        self.life.edge("look").await;
        self.same_boot().await;
        let containers = self.look(|machine| {
            let pod = machine.pods.get(uid);
            let containers = pod.into_iter().flat_map(|pod| &pod.containers);
            let container = |c: &crate::truth::Container| Container {
                id: c.id.clone(),
                name: c.name.clone(),
                is_sandbox: false,
                runtime: String::new(),
            };
            containers.map(container).collect()
        });
        Ok(containers)
    }

    async fn task(&self, id: &str) -> Result<Option<Task>, ContainerdError> {
        Ok(self.look(|machine| {
            machine.container(id).map(|(_, c)| Task {
                pid: c.pid,
                state: if c.said_paused && c.state == TaskState::Running {
                    TaskState::Paused
                } else {
                    c.state
                },
                terminal: false,
                exit_status: c.exit_status,
            })
        }))
    }

    async fn pause(&self, id: &str) -> Result<(), ContainerdError> {
        if self.sim.makes(Mistake::OnlyTheFreezer) {
            self.look(|machine| machine.container_mut(id).map(|c| c.said_paused = true));
            return Ok(());
        }
        self.touch(&format!("pause {id}"), |inner, node| {
            let container = inner.truth.machine(node).container_mut(id);
            match container {
                Some(c) if c.state == TaskState::Running => {
                    c.state = TaskState::Paused;
                    Ok(())
                }
                Some(_) => Err(said("pause", id, "it does not run")),
                None => Err(unknown("pause", id)),
            }
        })
        .await
    }

    async fn resume(&self, id: &str) -> Result<(), ContainerdError> {
        self.touch(&format!("resume {id}"), |inner, node| {
            let container = inner.truth.machine(node).container_mut(id);
            match container {
                Some(c) if c.said_paused => {
                    c.said_paused = false;
                    Ok(())
                }
                Some(c) if c.state == TaskState::Paused => {
                    c.state = TaskState::Running;
                    Ok(())
                }
                Some(_) => Err(said("resume", id, "it is not paused")),
                None => Err(unknown("resume", id)),
            }
        })
        .await
    }
}

#[async_trait]
impl Node for Hands {
    fn unix_ns(&self) -> u64 {
        self.clock.unix_ns()
    }

    async fn end_dump(&self, container: &str) -> bool {
        loop {
            self.life.edge("look for dumps").await;
            let dumping = self.look(|m| m.container(container).is_some_and(|(_, c)| c.dumping));
            if !dumping {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn cgroup_of(&self, _pid: u32, uid: &str) -> Result<PathBuf, HoldError> {
        Ok(PathBuf::from(uid))
    }

    fn find_cgroup(&self, uid: &str) -> Result<Option<PathBuf>, HoldError> {
        Ok(self.look(|machine| machine.pods.contains_key(uid).then(|| PathBuf::from(uid))))
    }

    fn is_frozen(&self, _cgroup: &Path, uid: &str) -> Result<bool, HoldError> {
        let trusted = self.sim.makes(Mistake::OnlyThePause);
        Ok(trusted || self.look(|m| m.pods.get(uid).is_some_and(|pod| pod.frozen)))
    }

    async fn freeze(&self, _cgroup: &Path, uid: &str) -> Result<(), HoldError> {
        if self.sim.makes(Mistake::OnlyThePause) {
            return Ok(());
        }
        self.touch("freeze the pod", |inner, node| {
            if let Some(pod) = inner.truth.machine(node).pods.get_mut(uid) {
                pod.frozen = true;
            }
        })
        .await;
        Ok(())
    }

    async fn freeze_container(&self, _: &Path, _: &str, _: &str) -> Result<(), HoldError> {
        Ok(())
    }

    async fn thaw(&self, _cgroup: &Path, uid: &str) -> Result<(), HoldError> {
        self.touch("thaw the pod", |inner, node| {
            if let Some(pod) = inner.truth.machine(node).pods.get_mut(uid) {
                pod.frozen = false;
            }
        })
        .await;
        Ok(())
    }

    async fn kill(&self, _cgroup: &Path, uid: &str) -> Result<(), HoldError> {
        let now_ms = self.sim.now_ms();
        self.touch("kill the pod", |inner, node| {
            let pod = inner.truth.machine(node).pods.get_mut(uid);
            let ids: Vec<String> = pod
                .iter()
                .flat_map(|pod| pod.alive().map(|c| c.id.clone()))
                .collect();
            if let Some(pod) = pod {
                pod.frozen = false;
            }
            for id in ids {
                let ended = inner.truth.end(now_ms, node, &id, 137, Cause::Ended);
                inner.violations.extend(ended);
            }
        })
        .await;
        Ok(())
    }

    fn end_is_pending(&self, pid: u32) -> bool {
        self.look(|machine| {
            let mut all = machine.pods.values().flat_map(|pod| pod.alive());
            all.any(|c| c.pid == pid && c.term_pending)
        })
    }

    fn has_archive(&self, path: &Path) -> bool {
        self.look(|machine| machine.archives.contains_key(path))
    }

    async fn prove(&self, path: &Path) -> Result<Proof, HoldError> {
        self.life.edge("read the archive").await;
        let found = self.look(|machine| machine.archives.get(path).cloned());
        let Some(archive) = found else {
            return Err(HoldError::Read {
                path: path.to_owned(),
                source: std::io::Error::from(std::io::ErrorKind::NotFound),
            });
        };
        Ok(Proof {
            container_id: archive.container_id,
            ..Proof::default()
        })
    }

    async fn remove_archive(&self, path: &Path) -> std::io::Result<()> {
        self.touch("remove an archive", |inner, node| {
            inner.truth.machine(node).archives.remove(path)
        })
        .await
        .map(drop)
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
    }

    fn strays(&self, _pod: &Pod, _since: SystemTime) -> Vec<PathBuf> {
        Vec::new()
    }
}

#[async_trait]
impl Checkpointer for Hands {
    /// The kubelet's work: it goes on when the one who asked is dead.
    async fn checkpoint(&self, subject: &Subject) -> Result<PathBuf, CheckpointError> {
        self.life.edge("ask for a dump").await;
        self.same_boot().await;
        let (hands, subject) = (self.clone(), subject.clone());
        let dumped = tokio::spawn(async move { hands.dump(&subject).await }).await;
        self.life.edge("dumped").await;
        match dumped {
            Ok(Ok(path)) => Ok(path),
            Ok(Err(body)) => Err(CheckpointError::Refused {
                container: String::new(),
                status: 500,
                body,
            }),
            Err(broke) => Err(CheckpointError::Refused {
                container: String::new(),
                status: 500,
                body: broke.to_string(),
            }),
        }
    }
}

impl Hands {
    async fn dump(&self, subject: &Subject) -> Result<PathBuf, String> {
        let id = subject.container_id.as_str();
        let begun = self.sim.with(|inner| {
            let machine = inner.truth.machine(&self.node);
            let frozen = machine
                .container(id)
                .and_then(|(uid, _)| machine.pods.get(uid))
                .is_none_or(|pod| pod.frozen);
            let container = machine
                .container_mut(id)
                .filter(|c| c.is_alive() && !frozen);
            container.map(|c| {
                c.dumping = true;
                // Of a running one the runtime stops the task for the dump.
                let ran = c.state == TaskState::Running && !c.said_paused;
                if ran {
                    c.state = TaskState::Paused;
                }
                ran
            })
        });
        let Some(ran) = begun else {
            return Err("the container can't be dumped".to_owned());
        };
        // And now and then a runtime that fails doesn't let it go on.
        let goes_on = ran && !self.sim.hits(STAYS_PAUSED_PER_MILLE);
        self.sim
            .event(&self.node, format_args!("dump of {id} begins"));
        self.sim.rest(50..=300).await;
        self.same_boot().await;
        let fails = self.sim.look(|inner| inner.faults.dump_per_mille);
        let fails = self.sim.hits(fails);
        let path = self.sim.with(|inner| {
            let number = inner.truth.count();
            let machine = inner.truth.machine(&self.node);
            let container = machine.container_mut(id)?;
            container.dumping = false;
            if goes_on && container.state == TaskState::Paused {
                container.state = TaskState::Running;
            }
            let alive = container.is_alive() && !fails;
            let memory = container.memory.filter(|_| alive)?;
            let path = PathBuf::from(format!("/archives/{}-{number}.tar", subject.container));
            let archive = Archive {
                container_id: id.to_owned(),
                memory,
                pod: subject.pod.clone(),
            };
            machine.archives.insert(path.clone(), archive);
            Some(path)
        });
        self.sim.event(
            &self.node,
            format_args!("dump of {id} ends: {}", path.is_some()),
        );
        path.ok_or_else(|| "the dump failed".to_owned())
    }
}

#[async_trait]
impl Inspect for Hands {
    async fn inspect(&self, _pod: Pod, _limit: u64) -> Result<Inspection, InspectError> {
        self.life.edge("inspect").await;
        self.same_boot().await;
        Ok(Inspection::default())
    }
}

#[async_trait]
impl Survey for Hands {
    async fn survey(&self) -> Inventory {
        Inventory::default()
    }
}
