//! A bucket of the lab's S3 server, for one step of the bench.
//!
//! Every step has a new one, so that nobody finds an object of the run before and is spared to send it.

use crate::s3;
use crate::state::Lab;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The bucket; it is removed when this is dropped.
pub struct Place {
    /// The server.
    pub endpoint: String,
    /// The bucket's name.
    pub bucket: String,
    folder: PathBuf,
}

impl Place {
    /// A new, empty one. The lab's server keeps buckets as folders.
    pub fn make(lab: &Lab, bucket: &str) -> Result<Self> {
        let folder = lab.folder()?.join("s3").join(bucket);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("clear {}", folder.display()))?;
        }
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self {
            endpoint: s3::endpoint(lab),
            bucket: bucket.to_owned(),
            folder,
        })
    }

    /// What S3 clients read from their environment.
    pub fn environment(&self) -> [(&'static str, &str); 5] {
        [
            ("S3_ENDPOINT", &self.endpoint),
            ("S3_BUCKET", &self.bucket),
            ("AWS_DEFAULT_REGION", s3::REGION),
            ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY),
        ]
    }

    /// What all its objects take.
    pub fn bytes(&self) -> Result<u64> {
        bytes_below(&self.folder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays goes with the lab.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn bytes_below(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        let about = entry.metadata().context("look at an object")?;
        sum += if about.is_dir() {
            bytes_below(&entry.path())?
        } else {
            about.len()
        };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_counted_in_every_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("data/00")).unwrap();
        fs::write(folder.path().join("config"), [0; 3]).unwrap();
        fs::write(folder.path().join("data/00/a"), [0; 40]).unwrap();
        assert_eq!(bytes_below(folder.path()).unwrap(), 43);
    }
}
