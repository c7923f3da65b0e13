//! Who this peer is: found out once, at the start, from the group's record and its own disk.
//!
//! Kubernetes is asked until it answers; a peer that was there before needs no answer, for its disk says who it is.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::{
    config::Config,
    consensus::node::owner,
    k8s::{
        call::{self, CallError, bounded},
        pods::FIELD_MANAGER,
        store_keys,
    },
    peers::{
        authority,
        book::Book,
        discovery::ordinal,
        record::{OnDisk, Place, RecordError, Records, Verdict, decide},
    },
    tls::{Identity, peer_name},
};

/// The ConfigMap in which workers find our certificate's authority.
const AUTHORITY_CONFIG_MAP: &str = "longshore-orchestrator-ca";
/// Between two questions to Kubernetes, or to the record that pod 0 has not begun yet.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The StatefulSet's name and this pod's ordinal.
pub(super) fn set(config: &Config) -> Result<(&str, u32)> {
    ordinal(&config.pod_name).with_context(|| {
        format!(
            "the pod's name {} has no ordinal at its end",
            config.pod_name
        )
    })
}

/// A client that asks once and never again by itself.
pub(super) async fn client() -> Result<Client> {
    let config = call::config().await.context("find the Kubernetes API")?;
    Client::try_from(config).context("make a Kubernetes client")
}

/// Where peers will dial.
pub(super) async fn listen(config: &Config) -> Result<TcpListener> {
    let listener = TcpListener::bind(config.listen_peers).await;
    listener.context("listen for peers")
}

/// Who this peer is; waits for Kubernetes where only that can tell.
pub(super) async fn place(config: &Config, records: &Records, book: &Book) -> Result<Place> {
    let (_, ordinal) = set(config)?;
    let dir = config.data_dir.join("raft");
    let disk = tokio::task::spawn_blocking(move || owner(&dir))
        .await
        .context("look whose disk it is")?
        .context("look whose disk it is")?;
    loop {
        match ask(config, records, book, ordinal, disk).await? {
            Asked::Told(place) => {
                tracing::info!(?place, "this peer's place in the group");
                return Ok(place);
            }
            Asked::Wait(why) => tracing::info!(why, "this peer has no place in the group yet"),
            Asked::Silent(error) => {
                if let Some((peer, Some(group))) = disk {
                    tracing::warn!(%error, "the group's record can't be asked, the disk is believed");
                    return Ok(Place {
                        peer,
                        group,
                        founders: Vec::new(),
                    });
                }
                tracing::warn!(%error, "the group's record can't be asked");
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

enum Asked {
    Told(Place),
    Wait(&'static str),
    Silent(RecordError),
}

async fn ask(
    config: &Config,
    records: &Records,
    book: &Book,
    ordinal: u32,
    disk: OnDisk,
) -> Result<Asked> {
    let found = match records.read().await {
        Ok(found) => found,
        Err(error @ (RecordError::Call(_) | RecordError::Changed)) => {
            return Ok(Asked::Silent(error));
        }
        Err(error @ RecordError::Format { .. }) => return Err(error.into()),
    };
    let entries = book.entries().borrow().clone();
    let seen = entries.peers.keys().chain(&entries.removed).max().copied();
    let record = found.as_ref().map(|(record, _)| record);
    if let Some(record) = record {
        for seat in record.seats.values() {
            book.named(seat.peer, ""); // known: it may speak
        }
    }
    let ids_seen = seen.unwrap_or(0);
    let decided = decide(
        record,
        ordinal,
        disk,
        config.peers,
        ids_seen,
        Uuid::new_v4(),
    );
    match decided? {
        Verdict::Be(place) => Ok(Asked::Told(place)),
        Verdict::Wait => Ok(Asked::Wait("pod 0 has not begun the group's record")),
        Verdict::Write(record, place) => match records.write(&record, &found).await {
            Ok(()) => Ok(Asked::Told(place)),
            Err(RecordError::Changed) => Ok(Asked::Wait("another peer was quicker")),
            Err(error) => Ok(Asked::Silent(error)),
        },
    }
}

/// What this peer shows. When Kubernetes is away, what it showed before.
pub(super) async fn identity(
    client: &Client,
    config: &Config,
    peer: u64,
    group: Uuid,
) -> Result<Identity> {
    let directory = config.data_dir.join("tls");
    let service = format!("{}.{}.svc", config.service_name, config.namespace);
    let own_name = peer_name(group, peer);
    let names = [
        own_name.clone(),
        config.pod_name.clone(),
        service,
        "localhost".to_owned(),
    ];
    loop {
        match authority::find_or_make(client, &config.namespace).await {
            Ok(authority) => {
                publish(
                    client.clone(),
                    config.namespace.clone(),
                    authority.certificate.clone(),
                );
                tokio::spawn(store_keys::make(client.clone(), config.namespace.clone()));
                return Ok(Identity::of(&directory, &authority, &names)?);
            }
            Err(error) => {
                let kept = Identity::kept(&directory)?;
                if let Some(kept) = kept.filter(|kept| kept.says(&own_name)) {
                    tracing::warn!(%error, "the group's authority can't be asked, the certificate on disk is shown");
                    return Ok(kept);
                }
                tracing::warn!(%error, "this peer has no certificate yet");
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// For workers; tried until it is there.
fn publish(client: Client, namespace: String, authority: String) {
    tokio::spawn(async move {
        while let Err(error) = publish_once(&client, &namespace, &authority).await {
            tracing::warn!(%error, "workers can't find our authority yet");
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    });
}

async fn publish_once(client: &Client, namespace: &str, authority: &str) -> Result<(), CallError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(AUTHORITY_CONFIG_MAP.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some([("ca.crt".to_owned(), authority.to_owned())].into()),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&map);
    let call = api.patch(AUTHORITY_CONFIG_MAP, &params, &patch);
    bounded("publish the certificate's authority", call)
        .await
        .map(drop)
}
