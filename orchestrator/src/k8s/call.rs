//! One bounded call to the API server, and what its failure says about the world.
//!
//! A call that was refused did nothing. A call that timed out, or whose answer was lost, may have done everything:
//! that is a value of its own, never a failure. Use a client whose `default_retry` is off ([`config`]): a client that
//! sends a POST again on its own makes nonsense of both.

use std::{future::Future, time::Duration};

/// A call is answered within this, or counts as unknown. The API server's own limit is 60 s, a healthy one answers in
/// 50 ms; a quorum loss or an upgrade of it takes about 10 s: ask again after that.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server said no: nothing was done.
    #[error("the API server refused to {doing}: {message}")]
    Refused {
        /// What we were doing, verb and object.
        doing: String,
        /// HTTP status.
        code: u16,
        /// The API server's words.
        message: String,
    },
    /// No answer, or one that says nothing: it may have been done.
    #[error("it is unknown whether we could {doing}: {why}")]
    Unknown {
        /// What we were doing, verb and object.
        doing: String,
        /// What happened to the answer.
        why: String,
    },
}

impl CallError {
    /// The status with which it was refused.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unknown { .. } => None,
        }
    }
}

/// A client configuration fit for us: in the cluster, or from a kubeconfig.
///
/// # Errors
/// When neither is there or readable.
pub async fn config() -> Result<kube::Config, kube::config::InferConfigError> {
    let mut config = kube::Config::infer().await?;
    config.default_retry = false;
    config.connect_timeout = Some(CALL_TIMEOUT);
    Ok(config)
}

/// Waits for a call, but not for ever.
///
/// # Errors
/// Refused when the API server said no (4xx but 408 and 429), Unknown for everything else.
pub async fn bounded<T>(
    doing: impl Into<String>,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    within(CALL_TIMEOUT, doing.into(), call).await
}

async fn within<T>(
    limit: Duration,
    doing: String,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if said_no(status.code) => Err(CallError::Refused {
            doing,
            code: status.code,
            message: status.message.clone(),
        }),
        Ok(Err(error)) => Err(CallError::Unknown {
            doing,
            why: error.to_string(),
        }),
        Err(_elapsed) => Err(CallError::Unknown {
            doing,
            why: format!("no answer in {limit:?}"),
        }),
    }
}

/// 408 and 429 are 4xx, but they ask us to come again.
fn said_no(code: u16) -> bool {
    (400..500).contains(&code) && code != 408 && code != 429
}

/// An answer in which "there is none" is an answer.
///
/// # Errors
/// As the call's, but for 404.
pub fn if_there<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16) -> kube::Error {
        let status = kube::core::Status::failure("because", "Because").with_code(code);
        kube::Error::Api(status.boxed())
    }

    async fn failure(code: u16) -> CallError {
        bounded("delete pod a/b", async { Err::<(), _>(api(code)) })
            .await
            .unwrap_err()
    }

    #[tokio::test]
    async fn only_a_clear_no_is_a_refusal() {
        for code in [400, 403, 404, 409, 422] {
            assert_eq!(failure(code).await.code(), Some(code));
        }
        for code in [408, 429, 500, 503, 504] {
            assert_eq!(
                failure(code).await.code(),
                None,
                "{code} may have been done"
            );
        }
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_unknown() {
        let never = std::future::pending::<kube::Result<()>>();
        let error = within(Duration::from_millis(5), "create pod a/b".into(), never)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "it is unknown whether we could create pod a/b: no answer in 5ms"
        );
    }

    #[tokio::test]
    async fn not_there_is_an_answer() {
        assert!(matches!(
            if_there(Err::<(), _>(failure(404).await)),
            Ok(None)
        ));
        assert!(if_there(Err::<(), _>(failure(403).await)).is_err());
    }
}
