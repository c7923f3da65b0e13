//! Pushing images of an OCI layout to the lab's registry.
//!
//! What the registry has is not sent again, so repeating a push costs a few requests.

use crate::http::{self, Answer};
use crate::oci::MANIFEST_TYPE;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Longest silence of a registry on the same machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Pushes the images of `layout` whose names belong to the registry called `name`.
pub fn push(layout: &Path, name: &str, address: SocketAddr) -> Result<()> {
    let index = read_json(&layout.join("index.json"))?;
    for line in index["manifests"].as_array().into_iter().flatten() {
        let image = line["annotations"]["io.containerd.image.name"]
            .as_str()
            .context("an image of the layout has no name")?;
        if let Some((repository, tag)) = image
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(|rest| rest.split_once(':'))
        {
            push_image(layout, line, repository, tag, address)
                .with_context(|| format!("push {image}"))?;
        }
    }
    Ok(())
}

fn push_image(
    layout: &Path,
    line: &Value,
    repository: &str,
    tag: &str,
    address: SocketAddr,
) -> Result<()> {
    let manifest_path = blob_path(layout, line)?;
    let manifest = read_json(&manifest_path)?;
    let layers = manifest["layers"].as_array().into_iter().flatten();
    for blob in layers.chain([&manifest["config"]]) {
        push_blob(layout, blob, repository, address)?;
    }
    // Last: a tag must never name an image that isn't whole.
    let bytes = fs::read(&manifest_path).context("read the manifest")?;
    let headers = [("Content-Type", MANIFEST_TYPE)];
    let path = format!("/v2/{repository}/manifests/{tag}");
    expect(
        201,
        http::request(
            address,
            "PUT",
            &path,
            &headers,
            (bytes.len() as u64, &bytes[..]),
            ANSWER_WITHIN,
        )?,
    )?;
    Ok(())
}

fn push_blob(layout: &Path, blob: &Value, repository: &str, address: SocketAddr) -> Result<()> {
    let digest = blob["digest"].as_str().context("a blob has no digest")?;
    let nothing = || (0, io::empty());
    let there = http::request(
        address,
        "HEAD",
        &format!("/v2/{repository}/blobs/{digest}"),
        &[],
        nothing(),
        ANSWER_WITHIN,
    )?;
    if there.status == 200 {
        return Ok(());
    }
    let begun = expect(
        202,
        http::request(
            address,
            "POST",
            &format!("/v2/{repository}/blobs/uploads/"),
            &[],
            nothing(),
            ANSWER_WITHIN,
        )?,
    )?;
    let location = begun
        .header("location")
        .context("the registry gave no place to upload to")?;
    let path = location
        .find("/v2/")
        .map(|at| &location[at..])
        .with_context(|| format!("understand the upload place {location}"))?;
    let path = format!(
        "{path}{}digest={digest}",
        if path.contains('?') { '&' } else { '?' }
    );
    let file = File::open(blob_path(layout, blob)?).context("open a blob")?;
    let size = file.metadata().context("look at a blob")?.len();
    let headers = [("Content-Type", "application/octet-stream")];
    expect(
        201,
        http::request(address, "PUT", &path, &headers, (size, file), ANSWER_WITHIN)?,
    )?;
    Ok(())
}

fn expect(status: u16, answer: Answer) -> Result<Answer> {
    if answer.status != status {
        bail!(
            "the registry answered {} instead of {status}: {}",
            answer.status,
            answer.text()
        );
    }
    Ok(answer)
}

fn blob_path(layout: &Path, described: &Value) -> Result<std::path::PathBuf> {
    let digest = described["digest"]
        .as_str()
        .context("a blob has no digest")?;
    Ok(layout.join("blobs").join(digest.replace(':', "/")))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}
