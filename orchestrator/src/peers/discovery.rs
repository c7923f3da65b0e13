//! Fills the address book from Kubernetes: which pods of the StatefulSet there are and where, and which peer each is.
//!
//! No cluster DNS is needed. What can't be asked now is asked again; meanwhile the book is as it was, and peers that
//! moved say so in their greetings.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::ListParams};
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    book::{Address, Book},
    record::{Record, Records},
};
use crate::k8s::call::{CallError, bounded};

/// A pod that comes back with another address greets others itself; this is for those that can't find anybody.
const EVERY: Duration = Duration::from_secs(3);

/// Where to look.
#[derive(Clone)]
pub struct Discovery {
    /// Kubernetes.
    pub client: Client,
    /// Our namespace.
    pub namespace: String,
    /// The StatefulSet's name: its pods' names without their ordinals, and their label `app.kubernetes.io/name`.
    pub set: String,
    /// The peers' ports, the same on all.
    pub peer_port: u16,
    /// The workers' ports, the same on all.
    pub worker_port: u16,
    /// What is filled.
    pub book: Book,
    /// The record.
    pub records: Records,
}

impl Discovery {
    /// Looks now and then, and publishes the record, until nobody wants it any more.
    pub async fn run(self, record: watch::Sender<Option<Record>>) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if record.is_closed() {
                return;
            }
            match self.records.read().await {
                Ok(Some((found, _))) => {
                    if let Err(error) = self.look(&found).await {
                        tracing::debug!(%error, "the peers' pods were not seen");
                    }
                    record.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&found);
                        *known = Some(found);
                        changed
                    });
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "the group's record was not seen"),
            }
        }
    }

    /// Looks once.
    ///
    /// # Errors
    /// No clear answer.
    pub async fn look(&self, record: &Record) -> Result<(), CallError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        // From the API server's cache: an old address is as good as the book's.
        let params = ListParams::default()
            .labels(&format!("app.kubernetes.io/name={}", self.set))
            .match_any();
        for pod in bounded("list the peers' pods", pods.list(&params)).await? {
            let name = pod.name_any();
            let seat = ordinal(&name).and_then(|(set, ordinal)| {
                (set == self.set).then(|| record.seats.get(&ordinal))?
            });
            let Some(seat) = seat else { continue };
            self.book.named(seat.peer, &name);
            let ip = pod.status.and_then(|status| status.pod_ip);
            if let Some(host) = ip.filter(|_| pod.metadata.deletion_timestamp.is_none()) {
                self.book.found(
                    seat.peer,
                    &Address {
                        host,
                        peer_port: self.peer_port,
                        worker_port: self.worker_port,
                    },
                );
            }
        }
        Ok(())
    }
}

/// The StatefulSet's name and the ordinal in a pod's name.
#[must_use]
pub fn ordinal(pod: &str) -> Option<(&str, u32)> {
    let (set, ordinal) = pod.rsplit_once('-')?;
    Some((set, ordinal.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_says_its_ordinal() {
        assert_eq!(
            ordinal("longshore-orchestrator-2"),
            Some(("longshore-orchestrator", 2))
        );
        assert_eq!(ordinal("longshore-orchestrator-abc"), None);
        assert_eq!(ordinal("pod"), None);
    }
}
