//! Who may read checkpoints: the identities this worker unwraps data keys with, and the recipients it wraps them for.
//!
//! Both lie in a folder that Kubernetes fills from the Secret `longshore-store-keys` and keeps up to date; it is read
//! anew for each use, so a new key needs no restart. `identity` is a file as `age-keygen` writes it. What is written is
//! for its first key, and for those in `recipients`, one a line: that is where a recovery key goes, whose identity
//! lies outside the cluster. Older keys stay in `identity` behind the first for as long as their checkpoints do.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use pages::keys::{Identity, KeyError, Recipient};

const IDENTITY: &str = "identity";
const RECIPIENTS: &str = "recipients";

/// Keys, as they were when they were read.
#[derive(Debug)]
pub struct Trust {
    /// To unwrap with.
    pub identities: Vec<Identity>,
    /// To wrap for.
    pub recipients: Vec<Recipient>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file can't be read.
    #[error(
        "read the store's keys {path}: is the Secret longshore-store-keys there, with a key {IDENTITY:?}?",
        path = path.display()
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("read the store's keys {path}", path = path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// No key is in it.
    #[error("{path} holds no identity", path = path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
}

impl Trust {
    /// Reads a folder.
    pub fn load(folder: &Path) -> Result<Self, TrustError> {
        let path = folder.join(IDENTITY);
        let text = fs::read_to_string(&path).map_err(|source| TrustError::Read {
            path: path.clone(),
            source,
        })?;
        let key = |path: &Path| {
            let path = path.to_owned();
            move |source| TrustError::Key { path, source }
        };
        let identities = Identity::read_all(&text).map_err(key(&path))?;
        let Some(first) = identities.first() else {
            return Err(TrustError::Empty { path });
        };
        let mut recipients = vec![first.recipient()];
        let path = folder.join(RECIPIENTS);
        let more = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(TrustError::Read { path, source }),
        };
        for line in more.lines().map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                recipients.push(Recipient::from_str(line).map_err(key(&path))?);
            }
        }
        Ok(Self {
            identities,
            recipients,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(identity: &str, recipients: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(IDENTITY), identity).unwrap();
        if let Some(text) = recipients {
            fs::write(folder.path().join(RECIPIENTS), text).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_written_is_for_the_first_identity_and_all_recipients() {
        let (now, before, safe) = (
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
        );
        let identities = format!("{}\n{}\n", now.reveal(), before.reveal());
        let recipients = format!("# in the safe\n{}\n", safe.recipient());
        let trust = Trust::load(folder(&identities, Some(&recipients)).path()).unwrap();
        let found: Vec<String> = trust.recipients.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [now.recipient().to_string(), safe.recipient().to_string()]
        );
        assert_eq!(trust.identities.len(), 2);
    }

    #[test]
    fn keys_that_are_missing_or_none_are_named_by_their_file() {
        let none = tempfile::tempdir().unwrap();
        assert!(
            Trust::load(none.path())
                .unwrap_err()
                .to_string()
                .contains("longshore-store-keys")
        );
        assert!(matches!(
            Trust::load(folder("# nothing\n", None).path()),
            Err(TrustError::Empty { .. })
        ));
        let identity = Identity::generate().reveal();
        let error = Trust::load(folder(&identity, Some("age1nobody")).path()).unwrap_err();
        assert!(error.to_string().contains("recipients"), "{error}");
    }
}
