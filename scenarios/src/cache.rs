//! The cache folder: what is slow to make and the same for every lab.
//!
//! ```text
//! <cache>/parts/NAME-KEY/   one part, complete; KEY is a hash of everything it was made from
//! <cache>/logs/NAME.log     what its makers printed
//! <cache>/labs/NAME/        one running lab (see `state`)
//! ```
//! A part is made in a folder of another name and renamed when it is whole, under a lock, so a part that is there can
//! be used without asking how its making ended, and two labs starting at once make it once. A part of an older key is
//! left alone: a running lab may still have it mounted.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// Hexadecimal digits of a part's key: 64 bits, far from a collision among the few parts ever made.
const KEY_DIGITS: usize = 16;

/// How much of a failed maker's output is shown; the whole is in its log.
const LOG_TAIL_LINES: usize = 25;

/// The project's cache folder.
pub fn root() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(
            std::env::var_os("HOME").context("find the cache folder: HOME is not set")?,
        )
        .join(".cache"),
    };
    Ok(base.join("longshore"))
}

/// The folder of the checked-out project, where the lab finds sources to build: that of the checkout whose `cargo lab`
/// runs, which need not be the one that built this program when two share a target folder.
pub fn project() -> &'static Path {
    static PROJECT: LazyLock<PathBuf> = LazyLock::new(|| {
        let run_by_cargo = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let scenarios = run_by_cargo.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let parent = scenarios.parent().map(Path::to_owned);
        parent.unwrap_or(scenarios)
    });
    &PROJECT
}

/// A part to be had: its name and a key over all that goes into it.
pub struct Part {
    name: &'static str,
    key: String,
}

impl Part {
    /// Names a part; `ingredients` are all the bytes its content depends on, each with what it is.
    pub fn new<'a>(
        name: &'static str,
        ingredients: impl IntoIterator<Item = (&'a str, Vec<u8>)>,
    ) -> Self {
        let mut hash = Sha256::new();
        for (what, bytes) in ingredients {
            // Lengths in front, so that moving a byte from one ingredient to the next changes the key.
            for piece in [what.as_bytes(), &bytes] {
                hash.update((piece.len() as u64).to_be_bytes());
                hash.update(piece);
            }
        }
        let mut key = hex(&hash.finalize());
        key.truncate(KEY_DIGITS);
        Self { name, key }
    }

    /// What it is known by: another one for other ingredients.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where the part is, once made.
    pub fn path(&self) -> Result<PathBuf> {
        Ok(root()?
            .join("parts")
            .join(format!("{}-{}", self.name, self.key)))
    }

    /// Whether the part has been made.
    pub fn is_there(&self) -> bool {
        self.path().is_ok_and(|path| path.is_dir())
    }

    /// The part's folder; made by `make` in an empty folder if it isn't there.
    pub fn ensure(&self, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path()?;
        if path.is_dir() {
            return Ok(path);
        }
        let parts = root()?.join("parts");
        fs::create_dir_all(&parts).with_context(|| format!("create {}", parts.display()))?;
        let _alone = Lock::take(&parts.join(format!(".{}.lock", self.name)))?;
        if path.is_dir() {
            return Ok(path);
        }
        let prefix = format!(".{}.unfinished-", self.name);
        clear_unfinished(&parts, &prefix);
        let unfinished = parts.join(format!("{prefix}{}", std::process::id()));
        fs::create_dir(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
        if let Err(error) = make(&unfinished) {
            clear_unfinished(&parts, &prefix);
            return Err(error);
        }
        fs::rename(&unfinished, &path)
            .with_context(|| format!("move the finished part to {}", path.display()))?;
        Ok(path)
    }
}

/// Removes what a making that was cut off left. Its maker may still be at work, orphaned, so each has a folder of its
/// own, and a folder that cannot be removed yet is tried again the next time.
fn clear_unfinished(parts: &Path, prefix: &str) {
    for entry in fs::read_dir(parts).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A lock held while it lives; the kernel gives it back when the holder dies.
pub struct Lock(
    #[expect(
        dead_code,
        reason = "held for its lifetime: closing the file is the unlock"
    )]
    File,
);

impl Lock {
    /// Waits for the lock on a file (made if missing) or on a folder.
    pub fn take(path: &Path) -> Result<Self> {
        let file = if path.is_dir() {
            File::open(path)
        } else {
            File::create(path)
        }
        .with_context(|| format!("open {} to lock it", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("lock {}", path.display()))?;
        Ok(Self(file))
    }

    /// Takes the lock on a folder, or nothing when another has it.
    pub fn try_take(folder: &Path) -> Result<Option<Self>> {
        let file =
            File::open(folder).with_context(|| format!("open {} to lock it", folder.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("lock {}", folder.display())),
        }
    }
}

/// Runs a maker to its end, its output into the part's log; its failure shows the log's end.
pub fn run_logged(log_name: &str, command: &mut Command) -> Result<()> {
    let logs = root()?.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    let log_path = logs.join(format!("{log_name}.log"));
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("open {}", log_path.display()))?;
    let shown = format!("{command:?}");
    let status = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the log")?)
        .stderr(log)
        .status()
        .with_context(|| format!("run {shown}"))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(&log_path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
    bail!(
        "{shown} ended with {status}; the end of {}:\n{tail}",
        log_path.display()
    );
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ingredients: &[(&'static str, &[u8])]) -> String {
        Part::new(
            "part",
            ingredients
                .iter()
                .map(|(what, bytes)| (*what, bytes.to_vec())),
        )
        .key
    }

    #[test]
    fn a_part_has_another_key_when_any_ingredient_changes() {
        let first = key(&[("go.mod", b"one"), ("main.go", b"two")]);
        assert_eq!(first, key(&[("go.mod", b"one"), ("main.go", b"two")]));
        assert_ne!(first, key(&[("go.mod", b"onet"), ("main.go", b"wo")]));
        assert_ne!(first, key(&[("go.mod", b"one"), ("main.go", b"three")]));
    }

    #[test]
    fn a_lock_somebody_has_is_not_given_twice_and_comes_free_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let held = Lock::try_take(folder.path()).unwrap().unwrap();
        assert!(Lock::try_take(folder.path()).unwrap().is_none());
        drop(held);
        assert!(Lock::try_take(folder.path()).unwrap().is_some());
    }
}
