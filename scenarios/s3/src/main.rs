//! `lab-s3`: the S3 server of the lab. **A development store**: files in a folder, keys on the command line, no
//! TLS, no users but, for tests, one that may not delete. It exists so that the lab needs nothing from outside; real checkpoints belong in a real store.
//!
//! The protocol, signatures included, is s3s; the folder is s3s-fs (`store`). This file only listens.

mod store;

use anyhow::{Context, Result};
use async_trait::async_trait;
use clap::Parser;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Result, s3_error};
use s3s_fs::FileSystem;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use store::Store;
use tokio::net::TcpListener;

/// After a failed accept (out of file descriptors, say) trying again at once would only burn the processor.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A development S3 store over a folder.
#[derive(Parser)]
struct Arguments {
    /// Address to listen on.
    #[arg(long)]
    listen: SocketAddr,
    /// Bucket to make if it isn't there.
    #[arg(long)]
    bucket: String,
    /// The key that may do everything.
    #[arg(long)]
    access_key: String,
    /// Its secret.
    #[arg(long)]
    secret_key: String,
    /// A second key, that may do everything but delete.
    #[arg(long, requires = "keeper_secret")]
    keeper_key: Option<String>,
    /// Its secret.
    #[arg(long)]
    keeper_secret: Option<String>,
    /// Folder of the buckets.
    root: PathBuf,
}

/// The key that may not delete.
struct Keeper(String);

#[async_trait]
impl S3Access for Keeper {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = request.credentials() else {
            return Err(s3_error!(AccessDenied, "a signature is required"));
        };
        if credentials.access_key == self.0 && request.s3_op().name().starts_with("Delete") {
            return Err(s3_error!(AccessDenied, "this key may not delete"));
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments {
        listen,
        bucket,
        access_key,
        secret_key,
        keeper_key,
        keeper_secret,
        root,
    } = Arguments::parse();
    std::fs::create_dir_all(root.join(&bucket))
        .with_context(|| format!("make the bucket {bucket}"))?;
    // s3s-fs's error says no more than its Debug form.
    let files = FileSystem::new(&root)
        .map_err(|error| anyhow::anyhow!("open the store in {}: {error:?}", root.display()))?;
    let mut service = S3ServiceBuilder::new(Store { root, files });
    let mut keys = SimpleAuth::from_single(access_key, secret_key);
    if let (Some(key), Some(secret)) = (keeper_key, keeper_secret) {
        keys.register(key.clone(), secret.into());
        service.set_access(Keeper(key));
    }
    service.set_auth(keys);
    let service = service.build();
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    eprintln!("a development store, not for real data: http://{listen} bucket {bucket}");
    let server = Builder::new(TokioExecutor::new());
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                // Answers are small and many; waiting to fill packets would cost 40 ms each.
                socket.set_nodelay(true).context("send answers at once")?;
                let connection = server
                    .serve_connection(TokioIo::new(socket), service.clone())
                    .into_owned();
                // A client that breaks its connection is that client's affair.
                tokio::spawn(async move { connection.await.ok() });
            }
            Err(error) => {
                eprintln!("accept a connection: {error}");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}
