//! The key that checkpoints are sealed for, in Kubernetes: a Secret, made once by whichever peer comes first and never
//! read by us. Workers mount it. Whoever may read it can read every checkpoint of this cluster.
//!
//! People may make it themselves beforehand, add older identities to it, and recipients outside the cluster
//! (`deploy/base/README.md`); what is there is never touched.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use pages::keys::Identity;

use super::call::{CallError, bounded};

/// The Secret.
pub const SECRET: &str = "longshore-store-keys";
const IDENTITY: &str = "identity";
/// Workers wait for it, and the kubelet looks again after seconds anyway.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Tries until the Secret is there, whoever made it.
pub async fn make(client: Client, namespace: String) {
    while let Err(error) = make_once(&client, &namespace).await {
        tracing::warn!(%error, "workers have no keys for the store yet");
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn make_once(client: &Client, namespace: &str) -> Result<(), CallError> {
    let identity = Identity::generate();
    let text = format!(
        "# made by Longshore; keep a copy where the cluster's end can't reach it\n# public key: {}\n{}\n",
        identity.recipient(),
        identity.reveal()
    );
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(
            IDENTITY.to_owned(),
            ByteString(text.into_bytes()),
        )])),
        ..Secret::default()
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    // Creating by name is atomic: all peers' workers use the one that was first.
    match bounded(
        "keep the store's key",
        api.create(&PostParams::default(), &secret),
    )
    .await
    {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some(409) => Ok(()),
        Err(error) => Err(error),
    }
}
