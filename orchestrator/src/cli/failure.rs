//! What went wrong with the command itself (not with a migration), and the next thing to do about it.
//!
//! Kubernetes answers 404 for a missing object, a missing namespace and a missing resource alike; here they are told
//! apart, because the next thing to do differs.

use std::path::PathBuf;

use kube::core::Status;
use thiserror::Error;

/// The command could not do what it was asked.
#[derive(Debug, Error)]
pub enum Failure {
    /// No usable kubeconfig.
    #[error("can't read the kubeconfig: {reason}")]
    Kubeconfig {
        /// Why, as the loader says.
        reason: String,
    },
    /// The cluster has no such resource.
    #[error("this cluster doesn't know {resource}.longshore.dev: Longshore is not installed")]
    NotInstalled {
        /// Plural name.
        resource: &'static str,
    },
    /// The user may not.
    #[error("can't {doing}: {message}")]
    Forbidden {
        /// Verb and object.
        doing: String,
        /// The API server's sentence.
        message: String,
        /// The permission that is missing.
        permission: String,
    },
    /// The API server doesn't know the user.
    #[error("can't {doing}: the cluster doesn't accept these credentials")]
    Unauthorized {
        /// Verb and object.
        doing: String,
    },
    /// No such object.
    #[error("there is none of the {resource} named {name:?} in namespace {namespace:?}")]
    NotFound {
        /// Plural name.
        resource: &'static str,
        /// Asked for.
        name: String,
        /// Where.
        namespace: String,
    },
    /// No such namespace.
    #[error("there is no namespace {name:?}")]
    NoNamespace {
        /// Asked for.
        name: String,
    },
    /// The API server refused the object itself.
    #[error("can't {doing}: {message}")]
    Invalid {
        /// Verb and object.
        doing: String,
        /// The API server's sentence.
        message: String,
    },
    /// Anything else between us and the API server.
    #[error("can't {doing}: {reason}")]
    Api {
        /// Verb and object.
        doing: String,
        /// The whole chain of causes.
        reason: String,
    },
    /// Two namespaces were named.
    #[error("the pod is written with namespace {written:?}, but -n says {flag:?}")]
    TwoNamespaces {
        /// Before the slash.
        written: String,
        /// By the flag.
        flag: String,
    },
    /// Printing failed.
    #[error("can't print the answer as {format}: {reason}")]
    Print {
        /// json, yaml, text.
        format: &'static str,
        /// Why.
        reason: String,
    },
    /// The man pages can't be written.
    #[error("can't write the man pages into {folder}: {source}")]
    Man {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It can't be undone any more.
    #[error("too late to abort: {why}")]
    TooLate {
        /// What it is doing instead.
        why: String,
    },
    /// Machinery of the process.
    #[error("can't {doing}: {source}")]
    Process {
        /// Verb and object.
        doing: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// What was being asked of the API server.
#[derive(Clone, Debug)]
pub struct Asking<'a> {
    /// Kubernetes' verb: get, list, watch, create, delete, patch.
    pub verb: &'static str,
    /// Plural name.
    pub resource: &'static str,
    /// "" when it has none yet.
    pub name: &'a str,
    /// "" for all, or for what has no namespace.
    pub namespace: &'a str,
}

impl Asking<'_> {
    fn doing(&self) -> String {
        let Self {
            verb,
            resource,
            name,
            namespace: _,
        } = self;
        if name.is_empty() {
            format!("{verb} {resource}")
        } else {
            format!("{verb} {resource}/{name}")
        }
    }

    /// What an error of the client means for this question.
    pub fn failure(&self, error: &kube::Error) -> Failure {
        if let kube::Error::Api(status) = error {
            return self.answered(status);
        }
        // Every other variant is a failure to ask or to understand, which users settle in the same way.
        Failure::Api {
            doing: self.doing(),
            reason: chain(error),
        }
    }

    /// What the API server's own answer means.
    pub fn answered(&self, status: &Status) -> Failure {
        let details = status.details.as_ref();
        let about = details.map_or("", |details| details.kind.as_str());
        let named = details.is_some_and(|details| !details.name.is_empty());
        let doing = self.doing();
        let message = status.message.clone();
        match status.code {
            401 => Failure::Unauthorized { doing },
            403 => Failure::Forbidden {
                doing,
                message,
                permission: format!("{} on {}.longshore.dev", self.verb, self.resource),
            },
            404 if about == "namespaces" => Failure::NoNamespace {
                name: self.namespace.to_owned(),
            },
            404 if named => Failure::NotFound {
                resource: self.resource,
                name: self.name.to_owned(),
                namespace: self.namespace.to_owned(),
            },
            404 => Failure::NotInstalled {
                resource: self.resource,
            },
            400 | 409 | 422 => Failure::Invalid { doing, message },
            code => Failure::Api {
                doing,
                reason: format!("{message} (HTTP {code})"),
            },
        }
    }
}

/// An error and its causes in one line; a cause that its parent already tells is left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

impl Failure {
    /// The same question may be answered later without anybody doing anything about us.
    pub fn heals(&self) -> bool {
        match self {
            Self::Api { .. } | Self::NotFound { .. } | Self::Invalid { .. } => true,
            Self::Kubeconfig { .. }
            | Self::NotInstalled { .. }
            | Self::Forbidden { .. }
            | Self::Unauthorized { .. }
            | Self::NoNamespace { .. }
            | Self::TwoNamespaces { .. }
            | Self::Print { .. }
            | Self::Man { .. }
            | Self::TooLate { .. }
            | Self::Process { .. } => false,
        }
    }

    /// The next thing to do; `None` when the error says all there is.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Kubeconfig { .. } => Some(
                "name one with --kubeconfig or KUBECONFIG, and a context of it with --context"
                    .to_owned(),
            ),
            Self::NotInstalled { .. } => Some(
                "install it: kubectl apply -k deploy/base (its README says what else it needs)"
                    .to_owned(),
            ),
            Self::Forbidden { permission, .. } => Some(format!(
                "ask a cluster administrator for the permission: {permission} (ClusterRole longshore-user; edit and admin have it)"
            )),
            Self::Unauthorized { .. } => {
                Some("log in again, or choose another context with --context".to_owned())
            }
            Self::NotFound { resource, .. } => Some(match *resource {
                "storetasks" => "was it deleted by somebody? ask again".to_owned(),
                "migrationnodes" => "see which there are: migrate nodes".to_owned(),
                _ => "see which there are: migrate get -A".to_owned(),
            }),
            Self::NoNamespace { .. } => {
                Some("see which there are: kubectl get namespaces".to_owned())
            }
            Self::Api { .. } => {
                Some("see whether the cluster answers: kubectl get --raw /readyz".to_owned())
            }
            Self::TwoNamespaces { .. } => Some("name it once".to_owned()),
            Self::TooLate { .. } => Some(
                "to have the pod back on its former node, migrate it there when this one has ended"
                    .to_owned(),
            ),
            Self::Invalid { .. } | Self::Print { .. } | Self::Man { .. } | Self::Process { .. } => {
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKING: Asking<'_> = Asking {
        verb: "create",
        resource: "podmigrations",
        name: "",
        namespace: "shop",
    };

    fn answer(json: serde_json::Value) -> Failure {
        ASKING.answered(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_missing_resource_definition_says_how_to_install() {
        let failure = answer(
            serde_json::json!({"code": 404, "reason": "NotFound", "message": "404 page not found\n"}),
        );
        assert!(
            matches!(failure, Failure::NotInstalled { .. }),
            "{failure:?}"
        );
        assert!(
            failure
                .remedy()
                .unwrap()
                .contains("kubectl apply -k deploy/")
        );
    }

    #[test]
    fn a_missing_namespace_is_not_a_missing_installation() {
        let failure = answer(serde_json::json!({
            "code": 404, "reason": "NotFound", "message": "namespaces \"shop\" not found",
            "details": {"name": "shop", "kind": "namespaces"}
        }));
        assert_eq!(failure.to_string(), "there is no namespace \"shop\"");
    }

    #[test]
    fn a_missing_object_is_named() {
        let asking = Asking {
            verb: "get",
            name: "kuard-1",
            ..ASKING
        };
        let failure = asking.answered(
            &serde_json::from_value(serde_json::json!({
                "code": 404, "reason": "NotFound", "details": {"name": "kuard-1", "group": "longshore.dev", "kind": "podmigrations"}
            }))
            .unwrap(),
        );
        assert_eq!(
            failure.to_string(),
            "there is none of the podmigrations named \"kuard-1\" in namespace \"shop\""
        );
    }

    #[test]
    fn forbidden_names_the_permission() {
        let failure =
            answer(serde_json::json!({"code": 403, "reason": "Forbidden", "message": "no"}));
        assert!(
            failure
                .remedy()
                .unwrap()
                .contains("create on podmigrations.longshore.dev")
        );
    }
}
