//! moto: it believes every key until it is told not to, so its users are made before that.

use super::{BUCKET, CALL_WITHIN, Key, Server, free_address, start};
use crate::{http, process, python, s3, steps::Steps};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Requests that need no right are those until this is counted down, or set to 0.
const BELIEVED: &str = "1000000";

/// Starts it, with its bucket and keys.
pub fn start_server(folder: &Path, steps: &Steps) -> Result<Server> {
    let program = steps.run("have moto", || {
        python::install("moto", "moto[server]", "moto_server")
    })?;
    let aws = steps.run("have aws", || python::install("aws", "awscli", "aws"))?;
    let address = free_address()?;
    let mut command = Command::new(program);
    command
        .env("INITIAL_NO_AUTH_ACTION_COUNT", BELIEVED)
        .args(["-H", &address.ip().to_string()])
        .args(["-p", &address.port().to_string()]);
    let child = start(&mut command, folder, address)?;
    let client = Client { aws, address };
    client.call(&["s3api", "create-bucket", "--bucket", BUCKET])?;
    let owner = client.user("owner", &["s3:*"])?;
    let reader = client.user("reader", &["s3:GetObject", "s3:ListBucket", "s3:PutObject"])?;
    let count = "0";
    let answer = http::request(
        address,
        "POST",
        "/moto-api/reset-auth",
        &[],
        (count.len() as u64, count.as_bytes().take(u64::MAX)),
        CALL_WITHIN,
    )?;
    ensure!(
        answer.status == 200,
        "moto goes on believing: {}",
        answer.text()
    );
    Ok(Server {
        child,
        address,
        region: s3::REGION,
        owner,
        reader,
    })
}

struct Client {
    aws: PathBuf,
    address: SocketAddr,
}

impl Client {
    fn call(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.aws);
        command
            .env("AWS_ACCESS_KEY_ID", "anybody")
            .env("AWS_SECRET_ACCESS_KEY", "anything")
            .env("AWS_DEFAULT_REGION", s3::REGION)
            .args(["--endpoint-url", &format!("http://{}", self.address)])
            .args(["--output", "json"])
            .args(words);
        process::succeed(&mut command, CALL_WITHIN)
    }

    /// A user that may do this and no more.
    fn user(&self, name: &str, actions: &[&str]) -> Result<Key> {
        let policy = json!({
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}],
        });
        self.call(&["iam", "create-user", "--user-name", name])?;
        self.call(&[
            "iam",
            "put-user-policy",
            "--user-name",
            name,
            "--policy-name",
            name,
            "--policy-document",
            &policy.to_string(),
        ])?;
        let made = self.call(&["iam", "create-access-key", "--user-name", name])?;
        let made: Value = serde_json::from_str(&made).context("read moto's key")?;
        let field = |field: &str| {
            let value = made["AccessKey"][field].as_str().map(str::to_owned);
            value.with_context(|| format!("find {field} in moto's key"))
        };
        Ok(Key {
            id: field("AccessKeyId")?,
            secret: field("SecretAccessKey")?,
        })
    }
}
