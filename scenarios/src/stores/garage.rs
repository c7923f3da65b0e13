//! Garage: a store that spreads over machines; here it is one node that keeps each object once.

use super::{BUCKET, CALL_WITHIN, Key, Server, free_address, start};
use crate::cache::{Part, run_logged};
use crate::{process, s3, steps::Steps};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = "2.5.0";
const REGION: &str = "garage";
/// Nodes of a cluster know one another by it; this one is alone, on loopback, for a minute.
const CLUSTER_SECRET: &str = "6c6f6e6773686f72656c6f6e6773686f72656c6f6e6773686f72656c6f6e6773";

/// Starts it, with its bucket and keys.
pub fn start_server(folder: &Path, steps: &Steps) -> Result<Server> {
    let part = Part::new("garage", [("version", VERSION.into())]);
    let program = steps
        .run("have Garage", || part.ensure(make))?
        .join("bin/garage");
    let (address, rpc) = (free_address()?, free_address()?);
    let configuration = folder.join("garage.toml");
    let kept = folder.display();
    fs::write(
        &configuration,
        format!(
            "metadata_dir = \"{kept}/meta\"\ndata_dir = \"{kept}/data\"\ndb_engine = \"sqlite\"\nreplication_factor = 1\n\
             rpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\nrpc_secret = \"{CLUSTER_SECRET}\"\n\
             [s3_api]\ns3_region = \"{REGION}\"\napi_bind_addr = \"{address}\"\n"
        ),
    )
    .context("write Garage's configuration")?;
    let operator = Operator {
        program,
        configuration,
    };
    let mut command = operator.command();
    command.arg("server");
    let child = start(&mut command, folder, address)?;
    let node = process::wait_for("Garage to know itself", CALL_WITHIN, || {
        Ok(operator.call(&["node", "id", "--quiet"]).ok())
    })?;
    let node = node.trim().split('@').next().unwrap_or_default();
    operator.call(&[
        "layout",
        "assign",
        "--zone",
        "here",
        "--capacity",
        "1G",
        node,
    ])?;
    operator.call(&["layout", "apply", "--version", "1"])?;
    operator.call(&["bucket", "create", BUCKET])?;
    let owner = operator.key("owner", &["--read", "--write", "--owner"])?;
    let reader = operator.key("reader", &["--read"])?;
    Ok(Server {
        child,
        address,
        region: REGION,
        owner,
        reader,
    })
}

fn make(target: &Path) -> Result<()> {
    let mut command = Command::new("cargo");
    // In the cache, outside of the project: its lock file and its profiles are not Garage's.
    command
        .current_dir(target)
        .env("CARGO_TARGET_DIR", s3::target_folder()?.join("garage"))
        .args([
            "install",
            "garage",
            "--version",
            VERSION,
            "--locked",
            "--debug",
        ])
        .args(["--no-default-features", "--features", "bundled-libs,sqlite"])
        .arg("--root")
        .arg(target);
    run_logged("garage", &mut command).context("build Garage with cargo install")
}

/// Garage's own command.
struct Operator {
    program: PathBuf,
    configuration: PathBuf,
}

impl Operator {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.configuration);
        command
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        process::succeed(self.command().args(words), CALL_WITHIN)
    }

    /// A key that may do this with the bucket.
    fn key(&self, name: &str, rights: &[&str]) -> Result<Key> {
        let made = self.call(&["key", "create", name])?;
        let field = |field: &str| {
            let line = made.lines().find_map(|line| line.strip_prefix(field));
            let value = line.map(|value| value.trim().to_owned());
            value.with_context(|| format!("find {field} in what Garage said: {made}"))
        };
        let key = Key {
            id: field("Key ID:")?,
            secret: field("Secret key:")?,
        };
        let allow = ["bucket", "allow", BUCKET, "--key", &key.id];
        self.call(&[&allow, rights].concat())?;
        Ok(key)
    }
}
