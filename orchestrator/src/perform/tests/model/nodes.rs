//! The workers of both nodes, and what each step of theirs changes.

use std::time::Duration;

use async_trait::async_trait;
use orchestrator_core::id::{MigrationId, NodeName};
use proto::worker::{
    self as wire, StepReport, answer, question, step_report, step_request,
    verified_container::Origin,
};
use tokio::time::Instant;

use super::{Inner, Model, Source};
use crate::{
    perform::Nodes,
    workers::{CallError, Clock, step_name},
};

#[expect(clippy::too_many_lines, reason = "a table: one row a step")]
fn perform(inner: &mut Inner, kind: &step_request::Kind) -> Option<step_report::Result> {
    match kind {
        step_request::Kind::Hold(_) => {
            inner.source = Source::Held;
            inner.durable = true;
            Some(step_report::Result::Held(wire::HeldCheckpoint {
                boot_id: "b".to_owned(),
                paused_unix_ns: crate::clock::unix_ns(),
                ..Default::default()
            }))
        }
        step_request::Kind::Deliver(_) => Some(step_report::Result::Delivered(wire::Delivered {
            images: vec![wire::DeliveredImage {
                container: "kuard".to_owned(),
                ..Default::default()
            }],
        })),
        step_request::Kind::Disarm(_) => {
            inner.disarmed = true;
            None
        }
        step_request::Kind::Destroy(_) => {
            inner.source = Source::Gone;
            None
        }
        step_request::Kind::Release(release) => {
            if release.keep_if_doomed && inner.doomed {
                return Some(step_report::Result::Released(wire::Released {
                    doomed: true,
                    ..Default::default()
                }));
            }
            if inner.source == Source::Held {
                inner.source = Source::Running;
            }
            let running = inner.source == Source::Running;
            Some(step_report::Result::Released(wire::Released {
                was_held: true,
                running,
                ..Default::default()
            }))
        }
        step_request::Kind::Withdraw(_) => {
            inner.withdrawn = true;
            if inner.restored.is_none() || inner.given_up {
                inner.restored_runs = false;
            }
            None
        }
        step_request::Kind::Bar(_) if inner.comes_up_late => {
            inner.restored_runs = true;
            Some(step_report::Result::Barred(wire::Barred {
                restored: true,
                ..Default::default()
            }))
        }
        step_request::Kind::Bar(_) => Some(step_report::Result::Barred(wire::Barred {
            restored: inner.restored_runs && inner.fresh_node.is_none(),
            detail: String::new(),
        })),
        step_request::Kind::Tidy(tidy) => {
            if !tidy.store_prefix.is_empty() {
                inner.durable = false;
            }
            None
        }
        step_request::Kind::Copy(_) => Some(step_report::Result::Copied(wire::CopiedRound {
            manifest_key: "round".to_owned(),
            ..Default::default()
        })),
        step_request::Kind::ExportImages(_) => Some(step_report::Result::Exported(
            wire::ExportedImages::default(),
        )),
        step_request::Kind::ImportImages(_) => {
            inner.lacks_image = false;
            None
        }
        step_request::Kind::Receive(_) => None,
    }
}

#[async_trait]
impl Nodes for Model {
    async fn step(
        &self,
        node: &NodeName,
        _migration: &MigrationId,
        revision: u64,
        kind: step_request::Kind,
        _within: Duration,
    ) -> Result<StepReport, CallError> {
        self.reaches(node)?;
        let name = step_name(&kind);
        let report = |outcome: step_report::Outcome, result| StepReport {
            revision,
            outcome: outcome as i32,
            result,
            ..Default::default()
        };
        let done = |inner: &mut Inner| report(step_report::Outcome::Done, perform(inner, &kind));
        let failed = || report(step_report::Outcome::Failed, None);
        let lost = CallError::Lost {
            node: node.clone(),
            what: name,
        };
        self.effect(name, done, failed).await.map_err(|()| lost)
    }

    async fn ask(
        &self,
        node: &NodeName,
        kind: question::Kind,
        _within: Duration,
    ) -> Result<answer::Kind, CallError> {
        self.reaches(node)?;
        let lost = CallError::Lost {
            node: node.clone(),
            what: "ask",
        };
        let answer = |inner: &mut Inner| match kind {
            question::Kind::Inspect(_) => answer::Kind::Inspection(wire::Inspection::default()),
            question::Kind::ConfirmHold(_) => answer::Kind::HoldState(wire::HoldState {
                held: inner.source == Source::Held,
                boot_id: "b".to_owned(),
                detail: format!("{:?}", inner.source),
            }),
            question::Kind::HasImages(_) => {
                let missing = inner.lacks_image.then(|| "kuard".to_owned());
                let missing = missing.into_iter().collect();
                answer::Kind::Images(wire::ImagesState { missing })
            }
            question::Kind::Verify(_) => {
                let origin = match (&inner.restored, inner.restored_runs) {
                    _ if Instant::now() < inner.taken_up_from => Origin::NotYet,
                    (Some((at, _)), _) if inner.fresh_node.as_deref() == Some(at) => {
                        Origin::Started
                    }
                    (Some(_), true) => Origin::Restored,
                    (Some(_), false) => Origin::Broken,
                    (None, _) => Origin::NotYet,
                };
                let container = wire::VerifiedContainer {
                    origin: origin as i32,
                    ..Default::default()
                };
                answer::Kind::Verified(wire::Verified {
                    containers: vec![container],
                })
            }
            question::Kind::ClearStore(_) => answer::Kind::StoreCleared(wire::StoreCleared {}),
            question::Kind::ListStore(_) | question::Kind::CheckStore(_) => {
                unreachable!("no step asks for it")
            }
        };
        let name = match &kind {
            question::Kind::Inspect(_) => "inspect",
            question::Kind::ConfirmHold(_) => "confirm hold",
            question::Kind::HasImages(_) => "has images",
            question::Kind::Verify(_) => "verify",
            question::Kind::ClearStore(_) => "clear store",
            question::Kind::ListStore(_) | question::Kind::CheckStore(_) => "store",
        };
        match self
            .effect(name, |inner| Some(answer(inner)), || None)
            .await
        {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(()) => Err(lost),
        }
    }

    fn clock(&self, _node: &NodeName) -> Clock {
        Clock::default()
    }
}
