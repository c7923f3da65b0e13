//! `lab test --store NAME`: the worker's store on a real S3 server, without a cluster.
//!
//! ```text
//! embedded   the lab's own                         built here
//! moto       a Python program                      installed by pip, kept in the cache
//! garage     a distributed store, here of one node built by `cargo install`, kept in the cache
//! ```
//! The server listens on loopback, keeps what it is given in a folder that goes with it, and has two keys: one that may
//! do everything and one that may read but not delete. The tests are `worker/tests/stores.rs`, the same for all.

mod garage;
mod moto;

use crate::cache;
use crate::process;
use crate::s3;
use crate::steps::Steps;
use anyhow::{Context, Result};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

const BUCKET: &str = "longshore-test";
/// The lab's development key, and the one that may not delete.
const KEEPER_KEY: &str = "keeper";
const KEEPER_SECRET: &str = "keeper-development";
/// Python starts slowly on a busy machine.
const LISTENS_WITHIN: Duration = Duration::from_secs(60);
const CALL_WITHIN: Duration = Duration::from_secs(60);

/// Which server.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Kind {
    /// The lab's own
    Embedded,
    /// moto, in Python
    Moto,
    /// Garage, built by cargo
    Garage,
}

/// A key and its secret.
struct Key {
    id: String,
    secret: String,
}

/// A server that runs, with its bucket.
struct Server {
    /// It, and what it was started by; ended when this is dropped.
    child: Running,
    address: SocketAddr,
    region: &'static str,
    /// May do everything.
    owner: Key,
    /// May read, and not delete.
    reader: Key,
}

/// A program that ends with its holder.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the tests on a server of that kind.
pub fn test(kind: Kind) -> Result<ExitCode> {
    Ok(if check(kind)? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The same; whether they passed.
pub fn check(kind: Kind) -> Result<bool> {
    let steps = Steps::start();
    let folder = Folder::make(kind)?;
    let server = match kind {
        Kind::Embedded => embedded(&folder.0, &steps),
        Kind::Moto => moto::start_server(&folder.0, &steps),
        Kind::Garage => garage::start_server(&folder.0, &steps),
    }
    .with_context(|| format!("start {kind:?}"))?;
    drop(steps);
    let Server {
        child,
        address,
        region,
        owner,
        reader,
    } = &server;
    let status = Command::new("cargo")
        .current_dir(cache::project())
        .env("CARGO_TARGET_DIR", s3::target_folder()?)
        .env("S3_ENDPOINT", format!("http://{address}"))
        .env("S3_BUCKET", BUCKET)
        .env("S3_REGION", region)
        .env("AWS_ACCESS_KEY_ID", &owner.id)
        .env("AWS_SECRET_ACCESS_KEY", &owner.secret)
        .env("READER_ACCESS_KEY_ID", &reader.id)
        .env("READER_SECRET_ACCESS_KEY", &reader.secret)
        .args(["test", "--workspace", "--locked", "--test", "stores"])
        .args(["--", "--ignored"])
        .status()
        .context("run the tests with cargo")?;
    println!(
        "{kind:?} (process {}): {}",
        child.0.id(),
        if status.success() { "passed" } else { "FAILED" }
    );
    Ok(status.success())
}

/// What a server keeps; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn make(kind: Kind) -> Result<Self> {
        let name = format!("store-{kind:?}-{}", std::process::id()).to_lowercase();
        let folder = cache::root()?.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn embedded(folder: &Path, steps: &Steps) -> Result<Server> {
    let part = s3::part()?;
    let program = steps.run("have the lab's S3 server", || part.ensure(s3::make))?;
    let address = free_address()?;
    let mut command = Command::new(program.join(s3::PROGRAM));
    command
        .args(["--listen", &address.to_string(), "--bucket", BUCKET])
        .args([
            "--access-key",
            s3::ACCESS_KEY,
            "--secret-key",
            s3::SECRET_KEY,
        ])
        .args(["--keeper-key", KEEPER_KEY, "--keeper-secret", KEEPER_SECRET])
        .arg(folder.join("objects"));
    Ok(Server {
        child: start(&mut command, folder, address)?,
        address,
        region: s3::REGION,
        owner: Key {
            id: s3::ACCESS_KEY.to_owned(),
            secret: s3::SECRET_KEY.to_owned(),
        },
        reader: Key {
            id: KEEPER_KEY.to_owned(),
            secret: KEEPER_SECRET.to_owned(),
        },
    })
}

/// An address of loopback that nobody listens on.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    listener.local_addr().context("find a free port")
}

/// Starts a server, its output into its folder, and waits until it listens.
fn start(command: &mut Command, folder: &Path, address: SocketAddr) -> Result<Running> {
    let log = folder.join("log");
    let out = File::create(&log).context("create the server's log")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("share the server's log")?)
        .stderr(out)
        .spawn()
        .context("start the server")?;
    let mut running = Running(child);
    let listening = process::wait_for("the server to listen", LISTENS_WITHIN, || {
        if let Some(status) = running.0.try_wait().context("look after the server")? {
            anyhow::bail!("it ended with {status}");
        }
        Ok(TcpStream::connect(address).ok())
    });
    match listening {
        Ok(_) => Ok(running),
        Err(error) => {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            Err(error.context(format!("the server said:\n{said}")))
        }
    }
}
