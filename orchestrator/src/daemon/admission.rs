//! Who a worker is, and since when: its token is reviewed by Kubernetes, its journal registered in the log, whichever
//! peer it came to.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use orchestrator_core::{
    id::{NodeName, Revision},
    state::{Applied, Command, State},
};
use proto::peer::{Registration, peers_client::PeersClient};
use tokio::sync::watch;

use crate::{
    api::{Authenticate, Register},
    consensus::node::{Log, ProposeError},
    k8s::call::bounded,
    peers::network::Parts,
};

/// The audience of workers' tokens.
const AUDIENCE: &str = "longshore";

/// The extra of a reviewed token that names the node it is bound to (KEP-4193, Kubernetes >= 1.30).
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";

/// A commit takes milliseconds. A worker that waits longer dials again.
const REGISTER_WITHIN: Duration = Duration::from_secs(3);

/// Registers journals, through the leader where it isn't this peer.
pub(super) struct Registrar {
    pub(super) log: Log,
    pub(super) state: watch::Receiver<Arc<State>>,
    pub(super) parts: Parts,
}

#[async_trait]
impl Register for Registrar {
    async fn register(&self, node: &NodeName, journal: &str) -> Result<Revision, String> {
        // A journal's id is its own for ever: what this peer knows of it is true, however old. So workers that come
        // back need no leader.
        let known = self.state.borrow().workers.get(node).cloned();
        if let Some(known) = known.filter(|known| known.journal == journal) {
            return Ok(known.at);
        }
        let registered = tokio::time::timeout(REGISTER_WITHIN, self.through_the_log(node, journal));
        registered
            .await
            .unwrap_or_else(|_| Err("no majority registered it in time".to_owned()))
    }
}

impl Registrar {
    async fn through_the_log(&self, node: &NodeName, journal: &str) -> Result<Revision, String> {
        let command = Command::Register {
            node: node.clone(),
            journal: journal.to_owned(),
        };
        match self.log.propose(command).await {
            Ok((_, Ok(Applied::Registered(at)))) => Ok(at),
            Ok((at, Ok(Applied::Phase(_)))) => {
                Err(format!("the registration at {at} was answered by a phase"))
            }
            Ok((_, Err(rejection))) => Err(rejection.to_string()),
            Err(ProposeError::NotLeader {
                leader: Some(leader),
            }) => self.through(leader, node, journal).await,
            Err(error) => Err(error.to_string()),
        }
    }

    /// Its outcome may stay unknown; registering again is harmless.
    async fn through(
        &self,
        leader: u64,
        node: &NodeName,
        journal: &str,
    ) -> Result<Revision, String> {
        let channel = self
            .parts
            .dial(leader)
            .await
            .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        let registration = Registration {
            greeting: Some(self.parts.greeting(leader)),
            node: node.0.clone(),
            journal_id: journal.to_owned(),
        };
        let registered = PeersClient::new(channel).register(registration).await;
        registered
            .map(|registered| Revision(registered.into_inner().revision))
            .map_err(|status| status.message().to_owned())
    }
}

/// Asks Kubernetes whose token it is.
pub(super) struct TokenReviews {
    pub(super) client: Client,
    pub(super) user: String,
}

#[async_trait]
impl Authenticate for TokenReviews {
    async fn node_of(&self, token: &str) -> Result<NodeName, String> {
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let reviewed = bounded("review a worker's token", api.create(&params, &review)).await;
        let status = reviewed
            .map_err(|error| error.to_string())?
            .status
            .unwrap_or_default();
        let audience = status
            .audiences
            .unwrap_or_default()
            .iter()
            .any(|audience| audience == AUDIENCE);
        if status.authenticated != Some(true) || !audience {
            return Err(format!(
                "the token is not valid here: {}",
                status.error.unwrap_or_default()
            ));
        }
        let user = status.user.unwrap_or_default();
        if user.username.as_deref() != Some(&self.user) {
            return Err(format!(
                "the token is not a worker's but {}'s",
                user.username.unwrap_or_default()
            ));
        }
        let node = user
            .extra
            .unwrap_or_default()
            .remove(NODE_NAME_EXTRA)
            .and_then(|values| values.into_iter().next());
        node.map(NodeName)
            .ok_or_else(|| "the token is not bound to a node".to_owned())
    }
}
