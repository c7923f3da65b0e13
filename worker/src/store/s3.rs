//! Any S3 server, configured so that AWS, Ceph, Garage and the lab's own server all understand.
//!
//! * Path style, because a bucket's own host name needs DNS that clusters seldom have.
//! * Checksums only where required: many servers refuse the trailers that SDKs send by default. Nothing is lost,
//!   since whoever reads an object compares its blake3.
//! * Objects go as whole bodies in memory: their length is known and every attempt can send them again.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation,
        ResponseChecksumValidation, SharedHttpClient, StalledStreamProtectionConfig,
        http::HttpResponse, retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use bytes::Bytes;

use super::{Fault, Store, StoreError, Stored};

/// Tries of one request: with the SDK's backoff (up to 1, 2, 4 s) a hiccup of some seconds is survived, and a store
/// that is down is reported before a freeze budget of tens of seconds has gone.
const ATTEMPTS_MAX: u32 = 4;
/// Tries of one object whose body is cut off on its way.
const BODY_ATTEMPTS_MAX: u32 = 3;
/// Before the second try, and twice that before the third: what cut the first off has had a moment to pass.
const BODY_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// A server on the same network that did not accept within this is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One attempt of one request: 8 MiB in this time is 0.3 MB/s, below which a migration makes no sense.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// A download that stands still this long is given up and tried again.
const STALL_GRACE: Duration = Duration::from_secs(20);

/// Where and who: from S3_ENDPOINT, S3_REGION, S3_BUCKET, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
#[derive(Clone)]
pub struct S3Place {
    /// For example `http://10.0.0.5:9000`.
    pub endpoint: String,
    /// "us-east-1" when the server doesn't care.
    pub region: String,
    /// The bucket; it must exist.
    pub bucket: String,
    /// Name of the key.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: String,
}

/// TLS needs the system's authorities and panics without any; a plain endpoint must not.
fn http_client(endpoint: &str) -> SharedHttpClient {
    let builder = aws_smithy_http_client::Builder::new();
    match endpoint.starts_with("https:") {
        true => builder
            .tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc))
            .build_https(),
        false => builder.build_http(),
    }
}

/// A bucket of an S3 server.
pub struct S3 {
    client: Client,
    bucket: String,
    endpoint: String,
}

impl S3 {
    /// Connects nothing yet: the first request does.
    pub fn new(place: S3Place) -> Self {
        let S3Place {
            endpoint,
            region,
            bucket,
            access_key_id,
            secret_access_key,
        } = place;
        let http = http_client(&endpoint);
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .endpoint_url(&endpoint)
            .force_path_style(true)
            .region(Region::new(region))
            .credentials_provider(Credentials::new(
                access_key_id,
                secret_access_key,
                None,
                None,
                "environment",
            ))
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .build(),
            )
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled()
                    .upload_enabled(false)
                    .grace_period(STALL_GRACE)
                    .build(),
            )
            .build();
        Self {
            client: Client::from_conf(config),
            bucket,
            endpoint,
        }
    }

    fn error(&self, verb: &'static str, key: &str, fault: Fault) -> StoreError {
        StoreError {
            verb,
            key: key.to_owned(),
            bucket: self.bucket.clone(),
            endpoint: self.endpoint.clone(),
            fault,
        }
    }
}

#[async_trait]
impl Store for S3 {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .body(ByteStream::from(bytes));
        // A signature over the body would cost both sides a sha256 of every byte. What the store has is proved by the
        // reader instead, against the manifest's hashes, before anything is committed.
        request
            .customize()
            .disable_payload_signing()
            .send()
            .await
            .map_err(|error| self.error("put", key, fault(&error)))?;
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let mut attempt = 1;
        loop {
            let answer = self
                .client
                .get_object()
                .bucket(&self.bucket)
                .key(key)
                .send()
                .await;
            let object = answer.map_err(|error| self.error("get", key, fault(&error)))?;
            // The SDK's own attempts end where the body begins.
            match object.body.collect().await {
                Ok(body) => return Ok(body.into_bytes()),
                Err(error) if attempt < BODY_ATTEMPTS_MAX => {
                    tracing::info!(key, attempt, %error, "an object was lost on its way, asked again");
                    tokio::time::sleep(BODY_AGAIN_AFTER * attempt).await;
                    attempt += 1;
                }
                Err(error) => {
                    let detail = format!(
                        "lost within the object {attempt} times, the last time by: {}",
                        innermost(&error)
                    );
                    return Err(self.error("get", key, Fault::Unreachable { detail }));
                }
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let answer = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await;
        match answer.map_err(|error| self.error("delete", key, fault(&error))) {
            Err(StoreError {
                fault: Fault::Missing,
                ..
            })
            | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.survey(prefix).await?;
        Ok(listed.into_iter().map(|object| object.key).collect())
    }

    async fn survey(&self, prefix: &str) -> Result<Vec<Stored>, StoreError> {
        let mut listed = Vec::new();
        let mut pages = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.error("list", prefix, fault(&error)))?;
            let before = listed.len();
            listed.extend(page.contents().iter().filter_map(|object| {
                let time = object.last_modified().map(|time| time.secs());
                Some(Stored {
                    key: object.key()?.to_owned(),
                    bytes: object
                        .size()
                        .and_then(|size| size.try_into().ok())
                        .unwrap_or(0),
                    unix_s: time.and_then(|secs| secs.try_into().ok()).unwrap_or(0),
                })
            }));
            let named = listed.len() - before;
            miscounted(page.key_count(), named).map_or(Ok(()), |detail| {
                Err(self.error("list", prefix, Fault::Untrue { detail }))
            })?;
        }
        Ok(listed)
    }

    async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        let answer = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await;
        match answer.map_err(|error| self.error("look for", key, fault(&error))) {
            Ok(_) => Ok(true),
            Err(StoreError {
                fault: Fault::Missing,
                ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What an SDK error means. Codes come first: they are the same on every server; a HEAD has no body and so only a
/// status.
fn fault<E>(error: &SdkError<E, HttpResponse>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    let code = error.code().unwrap_or_default();
    let detail = || match (code, error.message()) {
        ("", None) => status.map_or_else(
            || DisplayErrorContext(error).to_string(),
            |status| format!("HTTP {status}"),
        ),
        (code, Some(message)) => format!("{code}: {message}"),
        (code, None) => code.to_owned(),
    };
    match (code, status) {
        ("NoSuchBucket", _) => Fault::NoBucket,
        ("NoSuchKey" | "NotFound", _) | (_, Some(404)) => Fault::Missing,
        (_, Some(401 | 403)) => Fault::Forbidden { detail: detail() },
        (_, Some(429 | 500 | 502 | 503 | 504)) => Fault::Busy {
            detail: detail(),
            attempts: ATTEMPTS_MAX,
        },
        (_, Some(_)) => Fault::Other { detail: detail() },
        (_, None) if matches!(error, SdkError::ConstructionFailure(_)) => Fault::Other {
            detail: innermost(error),
        },
        (_, None) => Fault::Unreachable {
            detail: innermost(error),
        },
    }
}

/// The last cause: "connection refused" says more than the five layers around it.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// A list that was altered on its way may have lost its objects and still be one: its parser passes over what it does
/// not know and takes the end of the text for the end of the list. What is not named would never be removed. The
/// number is part of every answer to ListObjectsV2 (S3 API reference, `KeyCount`), so that an answer without it has
/// lost more.
fn miscounted(says: Option<i32>, names: usize) -> Option<String> {
    let Some(says) = says else {
        return Some("it is a list that does not say how many objects it names".to_owned());
    };
    (usize::try_from(says) != Ok(names))
        .then(|| format!("it counts {says} objects and names {names}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_list_that_names_fewer_objects_than_it_counts_is_not_believed() {
        assert_eq!(miscounted(Some(2), 2), None);
        assert!(miscounted(None, 0).is_some(), "it does not say");
        assert!(miscounted(Some(1), 0).is_some());
        assert!(miscounted(Some(-1), 0).is_some());
    }

    /// What the lab's server says of one object.
    const LISTED: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
        <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>longshore</Name>\
        <Prefix>checkpoints/m/</Prefix><MaxKeys>1000</MaxKeys><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>\
        <Contents><Key>checkpoints/m/packs/7d15</Key><LastModified>2026-11-30T23:41:59.000Z</LastModified>\
        <Size>4096</Size></Contents></ListBucketResult>";

    /// A server that answers every request with the next of these bodies.
    fn server(bodies: Vec<Vec<u8>>) -> S3 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for (body, client) in bodies.into_iter().zip(listener.incoming()) {
                let mut client = client.unwrap();
                let mut heard = Vec::new();
                while !heard.ends_with(b"\r\n\r\n") {
                    let mut some = [0; 4096];
                    let count = client.read(&mut some).unwrap();
                    heard.extend_from_slice(&some[..count]);
                }
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
                );
                client.write_all(head.as_bytes()).unwrap();
                client.write_all(&body).unwrap();
            }
        });
        S3::new(S3Place {
            endpoint,
            region: "us-east-1".to_owned(),
            bucket: "longshore".to_owned(),
            access_key_id: "a".to_owned(),
            secret_access_key: "b".to_owned(),
        })
    }

    #[tokio::test]
    async fn no_altered_byte_makes_a_list_empty() {
        let mut bodies = Vec::new();
        for place in 0..LISTED.len() {
            let mut body = LISTED.as_bytes().to_vec();
            body[place] ^= 0x55;
            bodies.push(body);
        }
        let s3 = server(bodies);
        let mut believed = Vec::new();
        for place in 0..LISTED.len() {
            if let Ok(keys) = s3.list("checkpoints/m/").await
                && keys.is_empty()
            {
                believed.push(&LISTED[place.saturating_sub(8)..(place + 8).min(LISTED.len())]);
            }
        }
        assert!(believed.is_empty(), "{believed:?}");
    }
}
