//! The group's authority in Kubernetes: a Secret, made by whichever peer comes first. Creating an object by its name is
//! atomic, so all of them use the same one.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::{
    k8s::call::{CallError, bounded, if_there},
    tls::{Authority, TlsError},
};

/// The Secret. Whoever may read it is a peer.
pub const SECRET: &str = "longshore-orchestrator-authority";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Kubernetes.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It can't be made.
    #[error("make the group's authority")]
    Make(#[from] TlsError),
    /// The Secret is not ours.
    #[error("the Secret {SECRET} has no {0}")]
    Incomplete(&'static str),
}

/// The group's authority, found or made.
///
/// # Errors
/// No clear answer, or the Secret holds something else.
pub async fn find_or_make(client: &Client, namespace: &str) -> Result<Authority, AuthorityError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(found) = find(&api).await? {
        return Ok(found);
    }
    let made = Authority::make()?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([
            (
                CERTIFICATE.to_owned(),
                ByteString(made.certificate.clone().into_bytes()),
            ),
            (KEY.to_owned(), ByteString(made.key.clone().into_bytes())),
        ])),
        ..Secret::default()
    };
    let params = PostParams::default();
    match bounded("keep the group's authority", api.create(&params, &secret)).await {
        Ok(_) => Ok(made),
        // Another peer was first.
        Err(error) if error.code() == Some(409) => {
            find(&api).await?.ok_or(AuthorityError::Incomplete(KEY))
        }
        Err(error) => Err(error.into()),
    }
}

async fn find(api: &Api<Secret>) -> Result<Option<Authority>, AuthorityError> {
    let found = bounded("read the group's authority", api.get(SECRET)).await;
    let Some(secret) = if_there(found)? else {
        return Ok(None);
    };
    let mut data = secret.data.unwrap_or_default();
    let mut text = |key: &'static str| {
        let bytes = data.remove(key).map(|bytes| bytes.0);
        bytes
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or(AuthorityError::Incomplete(key))
    };
    Ok(Some(Authority {
        certificate: text(CERTIFICATE)?,
        key: text(KEY)?,
    }))
}
