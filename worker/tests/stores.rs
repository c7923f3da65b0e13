//! The worker's store on real S3 servers: the same tests for all, on the one that `cargo lab test --store NAME` starts.
//!
//! ```text
//! tests ──────────────────────► server          put, get, list, delete; who may what
//!   └──► relay (stores/relay) ──┘               slow, throttled, cut: real traffic, bent on its way
//! ```
//! They need a server, so plain `cargo test` leaves them out. It is told of by the worker's own variables, and by those
//! of a second key that may read but not delete.
#![allow(
    clippy::unwrap_used,
    reason = "what is missing here is a mistake in the test"
)]

#[path = "stores/relay.rs"]
mod relay;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use relay::{Bent, Relay};
use worker::store::{
    Fault, Store, StoreError,
    remove::remove_below,
    s3::{S3, S3Place},
};

const WHY: &str = "needs an S3 server: cargo lab test --store NAME";
/// As many requests as the data path has in flight.
const IN_FLIGHT: usize = 16;
/// More than a page of a list, which is a thousand on every server.
const MANY: usize = 1_100;
/// The largest object the data path makes.
const PACK: usize = 8 << 20;
/// As of a store on another continent.
const SLOW: Duration = Duration::from_millis(40);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: {WHY}"))
}

fn place() -> S3Place {
    S3Place {
        endpoint: variable("S3_ENDPOINT"),
        region: variable("S3_REGION"),
        bucket: variable("S3_BUCKET"),
        access_key_id: variable("AWS_ACCESS_KEY_ID"),
        secret_access_key: variable("AWS_SECRET_ACCESS_KEY"),
    }
}

fn through(relay: &Relay) -> S3 {
    S3::new(S3Place {
        endpoint: relay.endpoint(),
        ..place()
    })
}

/// Bytes that don't repeat, other ones for every seed.
fn bytes(seed: u64, length: usize) -> Bytes {
    let mut reader = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    let mut bytes = vec![0; length];
    reader.fill(&mut bytes);
    bytes.into()
}

/// A prefix for one test, cleared of what an earlier run left.
async fn prefix(store: &S3, test: &str) -> String {
    let prefix = format!("tests/{test}/");
    remove_below(store, &prefix).await.unwrap();
    prefix
}

fn fault<T: std::fmt::Debug>(result: Result<T, StoreError>) -> (Fault, String) {
    let error = result.unwrap_err();
    let text = error.to_string();
    (error.fault, text)
}

#[tokio::test]
#[ignore = "needs an S3 server: cargo lab test --store NAME"]
async fn an_object_is_what_was_put_last_until_it_is_deleted() {
    let store = S3::new(place());
    let prefix = prefix(&store, "object").await;
    let key = format!("{prefix}a/b-c_d.e");
    assert!(!store.exists(&key).await.unwrap());
    assert!(matches!(fault(store.get(&key).await).0, Fault::Missing));
    for object in [bytes(1, PACK), Bytes::new(), bytes(2, 100_003)] {
        store.put(&key, object.clone()).await.unwrap();
        assert!(store.get(&key).await.unwrap() == object);
    }
    assert!(store.exists(&key).await.unwrap());
    store.delete(&key).await.unwrap();
    store.delete(&key).await.unwrap();
    assert!(!store.exists(&key).await.unwrap());
    assert_eq!(store.list(&prefix).await.unwrap(), [""; 0]);
}

#[tokio::test]
#[ignore = "needs an S3 server: cargo lab test --store NAME"]
async fn a_list_has_every_object_of_its_prefix_in_order_and_no_other() {
    let store = S3::new(place());
    let prefix = prefix(&store, "list").await;
    let mut keys: Vec<String> = (0..MANY).map(|n| format!("{prefix}in/{n:05}")).collect();
    keys.push(format!("{prefix}in.other"));
    stream::iter(&keys)
        .map(|key| store.put(key, bytes(3, 10)))
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>()
        .await
        .unwrap();
    let found = store.list(&format!("{prefix}in/")).await.unwrap();
    assert_eq!(found, keys[..MANY]);
    remove_below(&store, &prefix).await.unwrap();
    assert_eq!(store.list(&prefix).await.unwrap(), [""; 0]);
}

#[tokio::test]
#[ignore = "needs an S3 server: cargo lab test --store NAME"]
async fn a_wrong_secret_or_an_unknown_key_is_called_that_and_not_tried_again() {
    let secret = S3Place {
        secret_access_key: "wrong".to_owned(),
        ..place()
    };
    let key = S3Place {
        // The form of Garage's keys: one of another form is no key at all there, and told so.
        access_key_id: "GK000000000000000000000000".to_owned(),
        ..place()
    };
    for place in [secret, key] {
        let store = S3::new(place);
        let began = Instant::now();
        let faults = [
            fault(store.put("tests/wrong", Bytes::new()).await),
            fault(store.get("tests/wrong").await),
            fault(store.list("tests/").await),
            fault(store.delete("tests/wrong").await),
        ];
        for (fault, text) in faults {
            assert!(matches!(fault, Fault::Forbidden { .. }), "{text}");
            assert!(text.contains("AWS_SECRET_ACCESS_KEY"), "{text}");
            assert!(!text.contains(&variable("AWS_SECRET_ACCESS_KEY")), "{text}");
        }
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test]
#[ignore = "needs an S3 server: cargo lab test --store NAME"]
async fn a_bucket_that_is_not_there_is_called_that() {
    let store = S3::new(S3Place {
        bucket: "no-such-bucket".to_owned(),
        ..place()
    });
    let faults = [
        fault(store.put("tests/bucket", Bytes::new()).await),
        fault(store.get("tests/bucket").await),
        fault(store.list("tests/").await),
    ];
    for (fault, text) in faults {
        assert!(matches!(fault, Fault::NoBucket), "{text}");
        assert!(text.contains("S3_BUCKET"), "{text}");
    }
}

#[tokio::test]
#[ignore = "needs an S3 server: cargo lab test --store NAME"]
async fn a_key_that_may_not_delete_reads_is_told_so_and_the_object_stays() {
    let store = S3::new(place());
    let prefix = prefix(&store, "forbidden").await;
    let key = format!("{prefix}kept");
    store.put(&key, bytes(4, 1_000)).await.unwrap();
    let reader = S3::new(S3Place {
        access_key_id: variable("READER_ACCESS_KEY_ID"),
        secret_access_key: variable("READER_SECRET_ACCESS_KEY"),
        ..place()
    });
    assert!(reader.get(&key).await.unwrap() == bytes(4, 1_000));
    for refused in [
        reader.delete(&key).await,
        remove_below(&reader, &prefix).await,
    ] {
        let (fault, text) = fault(refused);
        assert!(matches!(fault, Fault::Forbidden { .. }), "{text}");
        assert!(text.contains("policy"), "{text}");
    }
    assert!(store.exists(&key).await.unwrap());
    store.delete(&key).await.unwrap();
}

#[tokio::test]
#[ignore = "needs an S3 server: cargo lab test --store NAME"]
async fn a_late_first_byte_is_waited_for_by_all_requests_in_flight_together() {
    const OBJECTS: usize = 64;
    let relay = Relay::start(&variable("S3_ENDPOINT")).await;
    let store = through(&relay);
    let prefix = prefix(&store, "slow").await;
    let keys: Vec<String> = (0..OBJECTS).map(|n| format!("{prefix}{n}")).collect();
    for key in &keys {
        store.put(key, bytes(5, 1 << 10)).await.unwrap();
    }
    relay.bend(Bent::Late(SLOW));
    let began = Instant::now();
    let got: Vec<Bytes> = stream::iter(&keys)
        .map(|key| store.get(key))
        .buffer_unordered(IN_FLIGHT)
        .try_collect()
        .await
        .unwrap();
    let took = began.elapsed();
    assert_eq!(got.len(), OBJECTS);
    let rounds = u32::try_from(OBJECTS / IN_FLIGHT).unwrap();
    assert!(took >= SLOW * rounds, "it was not slow: {took:?}");
    assert!(took < SLOW * 32, "one after the other: {took:?}");
    relay.bend(Bent::Not);
    remove_below(&store, &prefix).await.unwrap();
}

#[tokio::test]
#[ignore = "needs an S3 server: cargo lab test --store NAME"]
async fn a_store_that_throttles_is_asked_again_and_one_that_goes_on_is_called_busy() {
    let relay = Relay::start(&variable("S3_ENDPOINT")).await;
    let store = through(&relay);
    let prefix = prefix(&store, "throttled").await;
    let key = format!("{prefix}object");
    relay.bend(Bent::Throttled { times: 2 });
    store.put(&key, bytes(6, 1 << 20)).await.unwrap();
    relay.bend(Bent::Throttled { times: 2 });
    assert!(store.get(&key).await.unwrap() == bytes(6, 1 << 20));
    relay.bend(Bent::Throttled { times: usize::MAX });
    for refused in [
        store.get(&key).await.map(drop),
        store.put(&key, Bytes::new()).await,
        store.delete(&key).await,
    ] {
        let (fault, text) = fault(refused);
        assert!(matches!(fault, Fault::Busy { .. }), "{text}");
        assert!(text.contains("SlowDown"), "{text}");
    }
    relay.bend(Bent::Not);
    remove_below(&store, &prefix).await.unwrap();
}

#[tokio::test]
#[ignore = "needs an S3 server: cargo lab test --store NAME"]
async fn a_body_that_is_cut_is_asked_for_again_and_never_taken_for_a_short_object() {
    let relay = Relay::start(&variable("S3_ENDPOINT")).await;
    let store = through(&relay);
    let prefix = prefix(&store, "cut").await;
    let key = format!("{prefix}object");
    // An upload that is cut: it is sent again, whole.
    relay.bend(Bent::Cut { times: 1 });
    store.put(&key, bytes(7, PACK)).await.unwrap();
    relay.bend(Bent::Cut { times: 2 });
    assert!(store.get(&key).await.unwrap() == bytes(7, PACK));
    relay.bend(Bent::Cut { times: usize::MAX });
    let (fault, text) = fault(store.get(&key).await);
    assert!(matches!(fault, Fault::Unreachable { .. }), "{text}");
    assert!(text.contains("within the object 3 times"), "{text}");
    relay.bend(Bent::Not);
    assert!(store.get(&key).await.unwrap() == bytes(7, PACK));
    remove_below(&store, &prefix).await.unwrap();
}
