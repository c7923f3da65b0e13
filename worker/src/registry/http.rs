//! The five questions of the registry protocol that a pull asks, answered.

use std::{ops::Range, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{Stream, TryStreamExt, stream};
use pages::source::ReadAt;
use serde_json::json;

use super::{Answers, BASES, Base, CHECKPOINTS, Registry, StandsFor};
use crate::rebuild::{Built, layer::Layer, sha256};

/// Reads of a layer: large enough that a pull is bound by the disk.
const READ_BYTES: usize = 1 << 20;

/// The routes; everything else is not found, nothing can be written.
pub(super) fn routes(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/v2/", get(async || StatusCode::OK))
        .route("/v2/{*rest}", get(answer))
        .with_state(registry)
}

/// What a request asks for, taken apart.
enum Asked<'a> {
    Manifest { name: &'a str, reference: &'a str },
    Blob { name: &'a str, digest: &'a str },
}

/// What stands behind a repository name.
enum Source {
    Checkpoint(std::path::PathBuf, Box<Built>),
    /// One base image (a disarmed checkpoint's; its digest), or any of them.
    Base(Option<String>),
}

struct Refusal(StatusCode, &'static str, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, code, message) = self;
        (
            status,
            axum::Json(json!({"errors": [{"code": code, "message": message}]})),
        )
            .into_response()
    }
}

async fn answer(
    State(registry): State<Arc<Registry>>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let asked = parse(&rest)
        .ok_or_else(|| unknown("NAME_UNKNOWN", format!("nothing is served at {rest}")))?;
    let answers = registry.answers.borrow().clone();
    match asked {
        Asked::Manifest { name, reference } => manifest(&registry, &answers, name, reference).await,
        Asked::Blob { name, digest } => blob(&registry, &answers, name, digest, &headers).await,
    }
}

fn parse(rest: &str) -> Option<Asked<'_>> {
    let (rest, last) = rest.rsplit_once('/')?;
    let (name, kind) = rest.rsplit_once('/')?;
    match kind {
        "manifests" => Some(Asked::Manifest {
            name,
            reference: last,
        }),
        "blobs" => Some(Asked::Blob { name, digest: last }),
        _ => None,
    }
}

/// What a name stands for now; a tag must be the one that was given out.
fn source(
    registry: &Registry,
    answers: &Answers,
    name: &str,
    tag: Option<&str>,
) -> Result<Source, Refusal> {
    if name.starts_with(BASES) {
        return Ok(Source::Base(None));
    }
    let not_served = || {
        unknown(
            "NAME_UNKNOWN",
            format!("{name} is not served here, or not any more"),
        )
    };
    let key = name.strip_prefix(CHECKPOINTS).ok_or_else(not_served)?;
    let checkpoint = answers.checkpoints.get(key).ok_or_else(not_served)?;
    if tag.is_some_and(|tag| tag != checkpoint.tag) {
        return Err(unknown(
            "MANIFEST_UNKNOWN",
            format!("{name} has no tag {}", tag.unwrap_or_default()),
        ));
    }
    match &checkpoint.stands_for {
        StandsFor::Base { pod_uid: _ } => Ok(Source::Base(Some(checkpoint.base.clone()))),
        StandsFor::Nobody => Err(unknown(
            "MANIFEST_UNKNOWN",
            format!("the restore of {name} is being given up"),
        )),
        StandsFor::Checkpoint { folder } => match registry.built(folder) {
            Some(built) => Ok(Source::Checkpoint(
                registry.state_dir.join(folder),
                Box::new(built),
            )),
            None => Err(unknown(
                "MANIFEST_UNKNOWN",
                format!("the image of {name} is gone from this node's disk"),
            )),
        },
    }
}

async fn manifest(
    registry: &Registry,
    answers: &Answers,
    name: &str,
    reference: &str,
) -> Result<Response, Refusal> {
    let is_digest = reference.starts_with("sha256:");
    let unknown_manifest = || {
        unknown(
            "MANIFEST_UNKNOWN",
            format!("{name} has no manifest {reference}"),
        )
    };
    match source(registry, answers, name, (!is_digest).then_some(reference))? {
        Source::Checkpoint(_, built) => {
            let digest = sha256(built.manifest.as_bytes());
            if is_digest && digest != reference {
                return Err(unknown_manifest());
            }
            Ok(document(
                &digest,
                "application/vnd.oci.image.manifest.v1+json",
                Bytes::from(built.manifest),
            ))
        }
        Source::Base(one) => {
            let digest = match (&one, is_digest) {
                (_, true) => reference,
                (Some(base), false) => base,
                // A base image has no tags of its own: a tag could move.
                (None, false) => return Err(unknown_manifest()),
            };
            let media_type =
                media_type(answers, one.as_deref(), digest).ok_or_else(unknown_manifest)?;
            let content = registry
                .images
                .document(digest)
                .await
                .map_err(|error| unavailable(&error))?;
            let content = content.ok_or_else(|| gone(digest))?;
            Ok(document(digest, media_type, content))
        }
    }
}

async fn blob(
    registry: &Registry,
    answers: &Answers,
    name: &str,
    digest: &str,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let unknown_blob = || unknown("BLOB_UNKNOWN", format!("{name} has no blob {digest}"));
    match source(registry, answers, name, None)? {
        Source::Checkpoint(folder, built) => {
            if digest == sha256(built.config.as_bytes()) {
                return Ok(document(
                    digest,
                    "application/octet-stream",
                    Bytes::from(built.config),
                ));
            }
            if digest != built.layer_digest {
                return Err(unknown_blob());
            }
            let range = range(headers, built.layer_size)?;
            let failed =
                |error: std::io::Error| internal(format!("read the layer of {name}: {error}"));
            let layer = tokio::task::spawn_blocking(move || Layer::open(&folder));
            let layer = layer.await.map_err(std::io::Error::other).flatten();
            let layer = layer.map_err(failed)?;
            let wanted = range.clone().unwrap_or(0..built.layer_size);
            let body = Body::from_stream(read(layer, wanted));
            Ok(bytes(digest, body, range, built.layer_size))
        }
        Source::Base(one) => {
            media_type(answers, one.as_deref(), digest).ok_or_else(unknown_blob)?;
            let size = registry
                .images
                .size(digest)
                .await
                .map_err(|error| unavailable(&error))?;
            let size = size.ok_or_else(|| gone(digest))?;
            let range = range(headers, size)?;
            let Range { start, end } = range.clone().unwrap_or(0..size);
            if start == end {
                return Ok(bytes(digest, Body::empty(), range, size));
            }
            let parts = registry
                .images
                .read(digest, start, end - start)
                .await
                .map_err(|error| unavailable(&error))?;
            Ok(bytes(
                digest,
                Body::from_stream(parts.map_err(std::io::Error::other)),
                range,
                size,
            ))
        }
    }
}

/// The bytes of a range, read by threads that may block.
fn read(layer: Layer, range: Range<u64>) -> impl Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold((layer, range), |(layer, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let read = move || {
            let len = (range.end - range.start).min(READ_BYTES as u64);
            let mut buffer = vec![0; len as usize];
            layer.view().read_exact_at(&mut buffer, range.start)?;
            Ok(Some((
                Bytes::from(buffer),
                (layer, range.start + len..range.end),
            )))
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(std::io::Error::other)?
    })
}

/// Only digests of entered images have one.
fn media_type<'a>(answers: &'a Answers, one: Option<&str>, digest: &str) -> Option<&'a str> {
    let of = |base: &'a Base| base.blobs.get(digest).map(String::as_str);
    match one {
        Some(base) => answers.bases.get(base).and_then(of),
        None => answers.bases.values().find_map(of),
    }
}

/// `bytes=A-` and `bytes=A-B`; what is not understood may be answered with the whole.
fn range(headers: &HeaderMap, size: u64) -> Result<Option<Range<u64>>, Refusal> {
    let Some(asked) = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
    else {
        return Ok(None);
    };
    let Some((start, end)) = asked
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
    else {
        return Ok(None);
    };
    let Ok(start) = start.parse::<u64>() else {
        return Ok(None);
    };
    let end = match end {
        "" => size,
        end => match end.parse::<u64>() {
            Ok(last) => last.saturating_add(1).min(size),
            Err(_) => return Ok(None),
        },
    };
    if start >= size || start >= end {
        let reason = format!("{asked} of {size} bytes");
        return Err(Refusal(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "RANGE_INVALID",
            reason,
        ));
    }
    Ok(Some(start..end))
}

fn document(digest: &str, media_type: &str, content: Bytes) -> Response {
    let size = content.len() as u64;
    let mut response = bytes(digest, Body::from(content), None, size);
    let media_type = HeaderValue::from_str(media_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    response
}

fn bytes(digest: &str, body: Body, range: Option<Range<u64>>, size: u64) -> Response {
    let length = range.as_ref().map_or(size, |range| range.end - range.start);
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(digest) = HeaderValue::from_str(digest) {
        headers.insert("docker-content-digest", digest);
    }
    if let Some(Range { start, end }) = range {
        if let Ok(value) = HeaderValue::from_str(&format!("bytes {start}-{}/{size}", end - 1)) {
            headers.insert(header::CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn unknown(code: &'static str, message: String) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, code, message)
}

fn gone(digest: &str) -> Refusal {
    let reason = "is not in containerd's content store any more; is discard_unpacked_layers set on this node?";
    unknown("BLOB_UNKNOWN", format!("{digest} {reason}"))
}

fn unavailable(error: &dyn std::error::Error) -> Refusal {
    Refusal(
        StatusCode::SERVICE_UNAVAILABLE,
        "UNAVAILABLE",
        error.to_string(),
    )
}

fn internal(message: String) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
}
