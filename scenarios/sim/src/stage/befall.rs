//! Misfortunes: when they come, and what each of them does to the world.

use std::{sync::Arc, time::Duration};

use orchestrator::clock::TimeOfDay;
use orchestrator_core::{
    id::{MigrationId, Revision},
    migration::Outcome,
    refusal::Finding,
    state::Command,
};

use super::Stage;
use crate::{
    faults::{Faults, Misfortune, When},
    kubelet,
    mistakes::Mistake,
    sim::Inner,
    verdict, worker_process,
};

impl Stage {
    /// False: it did not come before the calm.
    async fn comes(&self, when: When) -> bool {
        match when {
            When::At(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                true
            }
            When::Phase(id, phase, after_ms) => {
                let is_in = || {
                    let now = self.sim.ledger(|ledger, _| verdict::phase(ledger, &id));
                    now.is_some_and(|(now, _)| now == phase)
                };
                let calm = tokio::time::sleep_until(self.sim.at(self.calm_at_ms));
                tokio::pin!(calm);
                loop {
                    let news = self.sim.news();
                    if is_in() {
                        break;
                    }
                    tokio::select! {
                        biased;
                        () = news => {}
                        () = &mut calm => return false,
                    }
                }
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                !self.is_calm()
            }
        }
    }

    fn is_calm(&self) -> bool {
        self.sim.now_ms() >= self.calm_at_ms
    }

    pub(super) async fn befall(self: Arc<Self>, when: When, what: Misfortune) {
        if !self.comes(when).await {
            return;
        }
        let sim = &self.sim;
        sim.event("world", format_args!("{what:?}"));
        match what {
            Misfortune::Kill(process) => self.kill(process),
            Misfortune::Forget(node) => {
                self.kill_worker(&node, "its disk is lost");
                worker_process::forget(sim, &node);
            }
            Misfortune::Reboot(node) => {
                self.kill_worker(&node, "its node goes down");
                kubelet::reboot(sim.clone(), node).await;
            }
            Misfortune::Accident(node) => kubelet::accident(sim, &node),
            Misfortune::HaltKubelet(node, ms) => {
                let halted = |faults: &mut Faults| faults.kubelets_down.insert(node.clone());
                let again = |faults: &mut Faults| faults.kubelets_down.remove(&node);
                self.for_a_while(ms, halted, again).await;
            }
            Misfortune::Stall(peer, ms) => {
                let peer = self.named(peer);
                let stalled = |faults: &mut Faults| faults.stalled.insert(peer.clone());
                let again = |faults: &mut Faults| faults.stalled.remove(&peer);
                self.for_a_while(ms, stalled, again).await;
            }
            Misfortune::Cut(one, other, ms) => {
                let one = self.named(one);
                sim.look(|inner| inner.network.cut(&one, &other));
                self.a_while(ms).await;
                sim.look(|inner| inner.network.heal(&one));
            }
            Misfortune::Isolate(place, ms) => {
                let place = self.named(place);
                sim.look(|inner| inner.network.isolate(&place));
                self.a_while(ms).await;
                sim.look(|inner| inner.network.heal(&place));
            }
            Misfortune::Depose(peer, ms) => self.depose(self.named(peer), ms).await,
            Misfortune::Jump(place, ms) => {
                if let Some(clock) = self.clocks.get(&place) {
                    clock.jump(ms);
                }
            }
            Misfortune::ApiDown(ms) => {
                self.for_a_while(
                    ms,
                    |faults| faults.api_down = true,
                    |faults| faults.api_down = false,
                )
                .await;
            }
            Misfortune::StoreBad(per_mille, ms) => {
                let bad = |faults: &mut Faults| faults.store_per_mille = per_mille;
                self.for_a_while(ms, bad, |faults| faults.store_per_mille = 0)
                    .await;
            }
            Misfortune::SlowAnswer(peer, ms) => {
                let peer = self.named(peer);
                sim.look(|inner| inner.faults.slow_answers.insert(peer, ms));
            }
            Misfortune::LateCreate => sim.look(|inner| inner.faults.late_creates += 1),
            Misfortune::DeletePod(name) => self.delete_pod(&name),
            Misfortune::DeleteMigration(n) => self.abort(&format!("m{n}")).await,
        }
    }

    /// `peers` are all of them, as when the power fails.
    fn kill(&self, process: String) {
        if process == "peers" {
            let peers = self.doors.peers();
            peers.iter().for_each(|peer| self.doors.kill(peer, "power"));
        } else {
            self.doors.kill(&self.named(process), "kill -9");
        }
    }

    fn kill_worker(&self, node: &str, why: &str) {
        self.doors.kill(&format!("worker-{node}"), why);
    }

    fn delete_pod(&self, name: &str) {
        let deleted = |inner: &mut Inner| inner.truth.objects.user_deletes(name);
        let counts = self.sim.with(deleted);
        self.sim
            .event("user", format_args!("deletes {name}: {counts}"));
    }

    async fn for_a_while<T, U>(
        &self,
        ms: u64,
        begins: impl FnOnce(&mut Faults) -> T,
        ends: impl FnOnce(&mut Faults) -> U,
    ) {
        self.sim.look(|inner| begins(&mut inner.faults));
        self.a_while(ms).await;
        self.sim.look(|inner| ends(&mut inner.faults));
    }

    async fn depose(&self, peer: String, ms: u64) {
        let mut others = self.doors.peers();
        others.retain(|other| *other != peer);
        self.sim.look(|inner| {
            let network = &mut inner.network;
            others.iter().for_each(|other| network.cut(&peer, other));
        });
        self.a_while(ms).await;
        self.sim.look(|inner| inner.network.heal(&peer));
    }

    /// `leader` is whoever leads.
    fn named(&self, place: String) -> String {
        let leader = self.doors.leader().filter(|_| place == "leader");
        leader.map_or(place, |(name, _)| name)
    }

    /// Not beyond the beginning of the calm.
    async fn a_while(&self, ms: u64) {
        let left_ms = self.calm_at_ms.saturating_sub(self.sim.now_ms());
        tokio::time::sleep(Duration::from_millis(ms.min(left_ms))).await;
    }

    /// As the desk does when the object is deleted: proposed until it is answered.
    async fn abort(&self, id: &str) {
        loop {
            let id = MigrationId::from(id);
            let known = self.sim.ledger(|ledger, _| verdict::phase(ledger, &id.0));
            let Some((phase, revision)) = known.filter(|(phase, _)| !phase.ended()) else {
                return;
            };
            let reason = Finding::new("Aborted", "the PodMigration was deleted", "");
            let late = !phase.abortable() && self.sim.makes(Mistake::AbortAllowedLate);
            let at_ms = self.clocks["peer1"].unix_ms();
            let command = if late {
                Command::Report {
                    id,
                    revision: Revision(revision),
                    outcome: Outcome::NotBegun(reason),
                    at_ms,
                    spans: Vec::new(),
                }
            } else {
                Command::Abort { id, reason, at_ms }
            };
            if self.doors.propose(command).await || !phase.abortable() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
