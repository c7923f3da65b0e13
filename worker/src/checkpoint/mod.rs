//! Making an archive of one container, and proving what is in it.
//!
//! Who makes it is a [`Checkpointer`]; today the kubelet, through its checkpoint call. The call is made once and never
//! repeated blindly: a second one beside the first fails in confusing ways, and a dump can hang for ever. So whoever
//! calls bounds it in time and then asks [`dump::end`] to end what is left of it.
//!
//! An archive counts only once [`proof::read`] has seen in it that it is of the very container that was paused.

pub mod dump;
pub mod kubelet;
pub mod proof;

use std::path::PathBuf;

use async_trait::async_trait;

/// What should be captured.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// The runtime's id of it.
    pub container_id: String,
}

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Something that the call needs could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The call could not be made, or its answer did not come.
    #[error("call the kubelet at {url}: {}", chain(source))]
    Call {
        /// Where.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It said no.
    #[error("the kubelet answered {status} to the checkpoint of {container}: {body}")]
    Refused {
        /// Name of the container.
        container: String,
        /// Of HTTP.
        status: u16,
        /// Its words.
        body: String,
    },
    /// It said yes in words that we don't understand.
    #[error("the kubelet's answer to the checkpoint of {container} names no archive: {body}")]
    NoArchive {
        /// Name of the container.
        container: String,
        /// Its words.
        body: String,
    },
}

/// Makes an archive of a container whose task is paused, and leaves it paused.
#[async_trait]
pub trait Checkpointer: Send + Sync {
    /// One call; repeating it makes another archive.
    async fn checkpoint(&self, subject: &Subject) -> Result<PathBuf, CheckpointError>;
}

/// An HTTP error with its causes, for the first line of reqwest's says only that something went wrong.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
