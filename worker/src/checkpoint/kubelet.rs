//! The kubelet's checkpoint call: POST /checkpoint/NAMESPACE/POD/CONTAINER on its own port.
//!
//! The kubelet usually signs its certificate itself, for the node's name, and keeps it beside us on the node: that file
//! is what we trust, and the connection goes to 127.0.0.1 under the node's name. Token and certificate are read at
//! every call: both change while we run.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use serde::Deserialize;

use super::{CheckpointError, Checkpointer, Subject};
use crate::config::Config;

/// Asked of the kubelet, which only ever raises its own limit of 2 minutes by this. The true limit is the freeze
/// budget, and the caller keeps it.
const KUBELET_TIMEOUT_S: u32 = 3600;
/// A connection on the loopback comes at once or not at all.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// The probe asks for a pod that is not there; the kubelet answers from its memory.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// The kubelet of this node.
#[derive(Clone, Debug)]
pub struct Kubelet {
    node: String,
    port: u16,
    certificate: PathBuf,
    token: PathBuf,
}

/// What the probe of the call found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It would answer.
    Ready,
    /// Our token may not.
    Forbidden,
    /// The call does not exist there.
    NoSuchCall,
    /// Something else; the kubelet's words or the reason of our failure.
    Unclear(String),
}

#[derive(Deserialize)]
struct Items {
    items: Vec<PathBuf>,
}

impl Kubelet {
    /// The kubelet that the flags name.
    pub fn new(config: &Config) -> Self {
        Self {
            node: config.node_name.clone(),
            port: config.kubelet_port,
            certificate: config.kubelet_certificate.clone(),
            token: config.kubelet_token_file.clone(),
        }
    }

    /// Asks for the checkpoint of a pod that can't exist: from the refusal we learn whether a true one would be heard.
    pub async fn probe(&self) -> Probe {
        // Names with an underscore are not allowed in Kubernetes.
        let call = self.post("longshore_probe", "longshore_probe", "longshore_probe");
        match tokio::time::timeout(PROBE_MAX, call).await {
            Err(_) => Probe::Unclear(format!("no answer within {} s", PROBE_MAX.as_secs())),
            Ok(Err(error)) => Probe::Unclear(error.to_string()),
            Ok(Ok((status, body))) => judge(status, &body),
        }
    }

    async fn post(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<(u16, String), CheckpointError> {
        let url = format!(
            "https://{}:{}/checkpoint/{namespace}/{pod}/{container}?timeout={KUBELET_TIMEOUT_S}",
            self.node, self.port
        );
        let call = |source| CheckpointError::Call {
            url: url.clone(),
            source,
        };
        let pem = read(&self.certificate).await?;
        let token = read(&self.token).await?;
        let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port);
        let client = reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).map_err(call)?)
            .resolve(&self.node, loopback)
            .no_proxy()
            .connect_timeout(CONNECT_MAX)
            .build()
            .map_err(call)?;
        let token = String::from_utf8_lossy(&token).trim().to_owned();
        let answer = client
            .post(&url)
            .bearer_auth(token)
            .send()
            .await
            .map_err(call)?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await.map_err(call)?))
    }
}

#[async_trait]
impl Checkpointer for Kubelet {
    async fn checkpoint(&self, subject: &Subject) -> Result<PathBuf, CheckpointError> {
        let Subject {
            namespace,
            pod,
            container,
            container_id: _,
        } = subject;
        let (status, body) = self.post(namespace, pod, container).await?;
        if status != 200 {
            return Err(CheckpointError::Refused {
                container: container.clone(),
                status,
                body: body.trim().to_owned(),
            });
        }
        let items = serde_json::from_str(&body)
            .map(|Items { items }| items)
            .unwrap_or_default();
        let first = items.into_iter().next();
        first.ok_or_else(|| CheckpointError::NoArchive {
            container: container.clone(),
            body: body.trim().to_owned(),
        })
    }
}

fn judge(status: u16, body: &str) -> Probe {
    match status {
        // With the call there, a pod that is not there is the only thing missing.
        404 if body.contains("pod does not exist") => Probe::Ready,
        404 | 405 => Probe::NoSuchCall,
        401 | 403 => Probe::Forbidden,
        other => Probe::Unclear(format!("{other}: {}", body.trim())),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    tokio::fs::read(path)
        .await
        .map_err(|source| CheckpointError::Read {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_404_about_the_pod_means_that_the_call_is_there() {
        assert_eq!(judge(404, "pod does not exist"), Probe::Ready);
        assert_eq!(judge(404, "404 page not found"), Probe::NoSuchCall);
        assert_eq!(judge(403, "Forbidden"), Probe::Forbidden);
        assert!(matches!(judge(500, "boom"), Probe::Unclear(why) if why.contains("boom")));
    }
}
