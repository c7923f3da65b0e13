//! What lies on the disk and in the log, byte for byte.
//!
//! Every value begins with one version byte. A reader that meets a version it doesn't know says so and stops: a newer
//! peer wrote it, and guessing would make two peers disagree. Version 1: commands and states as JSON (their maps are
//! ordered, so the same log gives the same bytes on every peer), raft's own values as protobuf.

use orchestrator_core::state::{Command, State};
use protobuf::Message;
use serde::{Serialize, de::DeserializeOwned};

/// The version that is written.
pub const VERSION: u8 = 1;

/// The longest command that is proposed. A report carries 200 spans at most, about 60 KiB; this leaves room and keeps
/// one entry within one raft message.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Bytes that can't be read, or a value that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not even a version.
    #[error("read {what}: it is empty")]
    Empty {
        /// What was read.
        what: &'static str,
    },
    /// Written by another version of Longshore.
    #[error("read {what}: its format is version {found}, this peer knows {VERSION}")]
    Version {
        /// What was read.
        what: &'static str,
        /// Its version.
        found: u8,
    },
    /// Not the JSON that version promises.
    #[error("read or write {what} as JSON")]
    Json {
        /// What was read or written.
        what: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
    /// Not the protobuf that version promises.
    #[error("read or write {what} as protobuf")]
    Protobuf {
        /// What was read or written.
        what: &'static str,
        /// Why not.
        source: protobuf::ProtobufError,
    },
}

/// A command as the data of a log entry.
///
/// # Errors
/// When it can't be serialised.
pub fn command_to_bytes(command: &Command) -> Result<Vec<u8>, FormatError> {
    json_to_bytes("a command", command)
}

/// The command of a log entry.
///
/// # Errors
/// When the bytes are of another version, or damaged.
pub fn command_from_bytes(bytes: &[u8]) -> Result<Command, FormatError> {
    json_from_bytes("a command", bytes)
}

/// A state as the data of a snapshot.
///
/// # Errors
/// When it can't be serialised.
pub fn state_to_bytes(state: &State) -> Result<Vec<u8>, FormatError> {
    json_to_bytes("the state", state)
}

/// The state of a snapshot.
///
/// # Errors
/// When the bytes are of another version, or damaged.
pub fn state_from_bytes(bytes: &[u8]) -> Result<State, FormatError> {
    json_from_bytes("the state", bytes)
}

/// One of raft's own values as it lies on the disk.
///
/// # Errors
/// When it can't be serialised.
pub fn raft_to_bytes(what: &'static str, value: &impl Message) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::with_capacity(1 + value.compute_size() as usize);
    bytes.push(VERSION);
    value
        .write_to_vec(&mut bytes)
        .map_err(|source| FormatError::Protobuf { what, source })?;
    Ok(bytes)
}

/// One of raft's own values from the disk.
///
/// # Errors
/// When the bytes are of another version, or damaged.
pub fn raft_from_bytes<M: Message>(what: &'static str, bytes: &[u8]) -> Result<M, FormatError> {
    let mut value = M::new();
    value
        .merge_from_bytes(body(what, bytes)?)
        .map_err(|source| FormatError::Protobuf { what, source })?;
    Ok(value)
}

fn json_to_bytes(what: &'static str, value: &impl Serialize) -> Result<Vec<u8>, FormatError> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, value)
        .map_err(|source| FormatError::Json { what, source })?;
    Ok(bytes)
}

fn json_from_bytes<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, FormatError> {
    serde_json::from_slice(body(what, bytes)?).map_err(|source| FormatError::Json { what, source })
}

fn body<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], FormatError> {
    match bytes.split_first() {
        None => Err(FormatError::Empty { what }),
        Some((&VERSION, body)) => Ok(body),
        Some((&found, _)) => Err(FormatError::Version { what, found }),
    }
}

/// A group's name in JSON, for `#[serde(with)]`.
pub mod group_as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use uuid::Uuid;

    /// Writes it.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(group: &Uuid, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(group)
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
