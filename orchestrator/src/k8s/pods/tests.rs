mod target;

use serde_json::{Value, json};

use super::*;
use crate::k8s::fake_api::{FakeApi, Objects};

fn place() -> PodRef {
    PodRef {
        namespace: "default".into(),
        name: "kuard".into(),
    }
}

fn uid() -> PodUid {
    "uid-1".into()
}

fn migration() -> MigrationId {
    "m1".into()
}

fn object() -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "kuard", "namespace": "default", "uid": "uid-1",
            "annotations": { "note": "mine" }, "finalizers": ["example.com/other"] },
        "spec": { "containers": [], "nodeName": "node1" } })
}

/// A server with the source pod, and without the other finalizer unless asked for.
fn api() -> FakeApi {
    let api = FakeApi::default();
    let mut source = object();
    source["metadata"]["finalizers"] = json!([]);
    api.with(|o| o.put(source));
    api
}

fn kuard(api: &FakeApi) -> Option<Value> {
    api.with(|o| o.by_name.get("kuard").cloned())
}

/// As `kubectl delete` does it.
fn user_deletes(objects: &mut Objects) {
    objects.delete("kuard", &json!({}));
}

/// As the kubelet does it every second.
fn kubelet_writes(objects: &mut Objects) {
    let object = objects.by_name["kuard"].clone();
    objects.put(object);
}

async fn hold(api: &FakeApi) -> SourceState {
    Pods::new(api.client())
        .add_hold(&place(), &uid(), &migration())
        .await
        .unwrap()
}

async fn delete(api: &FakeApi) -> Result<SourceDeleted, CallError> {
    Pods::new(api.client())
        .delete_source(&place(), &uid(), &migration())
        .await
}

fn target() -> Pod {
    target_of("m1", "node2")
}

fn target_of(migration: &str, node: &str) -> Pod {
    let target = json!({ "metadata": { "name": "kuard", "namespace": "default",
            "annotations": { MIGRATION_ANNOTATION: migration, HELD_ANNOTATION: migration, NODE_ANNOTATION: node },
            "finalizers": [HOLD_FINALIZER] },
        "spec": { "containers": [] } });
    serde_json::from_value(target).unwrap()
}

/// As a creation does that is carried out when nobody waits for it any more.
fn made_late(api: &FakeApi, migration: &str) -> PodUid {
    let mut late = serde_json::to_value(target_of(migration, "node2")).unwrap();
    late["metadata"]["uid"] = json!("late");
    api.with(|o| o.put(late));
    "late".into()
}

#[tokio::test]
async fn a_hold_is_added_once_and_leaves_the_rest_alone() {
    let api = FakeApi::default();
    api.with(|o| o.put(object()));
    assert_eq!(hold(&api).await, SourceState::Present);
    let meta = kuard(&api).unwrap()["metadata"].clone();
    assert_eq!(
        meta["finalizers"],
        json!(["example.com/other", HOLD_FINALIZER])
    );
    assert_eq!(
        meta["annotations"],
        json!({ "note": "mine", HELD_ANNOTATION: "m1" })
    );
    let version = meta["resourceVersion"].clone();
    assert_eq!(hold(&api).await, SourceState::Present);
    assert_eq!(
        kuard(&api).unwrap()["metadata"]["resourceVersion"],
        version,
        "the second time wrote nothing"
    );
}

#[tokio::test]
async fn a_hold_is_not_put_on_what_is_not_the_source() {
    let api = api();
    api.with(|o| {
        o.by_name.get_mut("kuard").unwrap()["metadata"]["uid"] = json!("uid-9");
    });
    assert_eq!(hold(&api).await, SourceState::OtherPod);
    assert_eq!(hold(&FakeApi::default()).await, SourceState::Gone);
    let api = self::api();
    api.with(user_deletes);
    assert_eq!(hold(&api).await, SourceState::Deleting);
}

#[tokio::test]
async fn a_hold_loses_no_race_against_a_deletion() {
    let api = api();
    api.before_call(1, user_deletes);
    assert_eq!(
        hold(&api).await,
        SourceState::Deleting,
        "deleted between the look and the write"
    );
}

#[tokio::test]
async fn the_source_is_marked_deleted_and_let_go_of_in_this_order() {
    let api = api();
    hold(&api).await;
    api.with(|o| o.calls.clear());
    assert_eq!(delete(&api).await.unwrap(), SourceDeleted::Gone);
    assert_eq!(kuard(&api), None);
    let writes: Vec<_> = api.with(|o| {
        o.calls
            .iter()
            .filter(|c| !c.starts_with("GET"))
            .cloned()
            .collect()
    });
    assert_eq!(writes, ["PATCH kuard", "DELETE kuard", "PATCH kuard"]);
    assert_eq!(delete(&api).await.unwrap(), SourceDeleted::Gone, "again");
}

#[tokio::test]
async fn a_condemned_target_keeps_its_object_until_it_is_let_go_of() {
    let api = api();
    hold(&api).await;
    let pods = Pods::new(api.client());
    for _ in 0..2 {
        let condemned = pods.condemn(&place(), &uid(), &migration()).await;
        assert_eq!(condemned.unwrap(), SourceDeleted::Gone);
        let status = target_status(&serde_json::from_value(kuard(&api).unwrap()).unwrap());
        assert!(status.deleting);
        assert_eq!(status.given_up_by.as_deref(), Some("m1"));
    }
    assert_eq!(delete(&api).await.unwrap(), SourceDeleted::Gone);
    assert_eq!(kuard(&api), None);
}

#[tokio::test]
async fn a_hold_does_not_take_the_place_of_one_that_came_while_it_was_written() {
    let api = api();
    api.before_call(1, |objects| {
        let mut object = objects.by_name["kuard"].clone();
        object["metadata"]["annotations"][HELD_ANNOTATION] = json!("m2");
        objects.put(object);
    });
    let pods = Pods::new(api.client());
    let held = pods.add_hold(&place(), &uid(), &migration()).await;
    assert!(held.is_err(), "{held:?}");
    let note = &kuard(&api).unwrap()["metadata"]["annotations"][HELD_ANNOTATION];
    assert_eq!(*note, json!("m2"));
}

#[tokio::test]
async fn a_deposed_leader_does_not_delete_what_was_released_meanwhile() {
    let api = api();
    hold(&api).await;
    let pods = Pods::new(api.client());
    let released = pods.release_source(&place(), &uid(), &migration()).await;
    released.unwrap();
    let error = delete(&api).await.unwrap_err();
    assert!(error.to_string().contains("not held"), "{error}");
    let there = kuard(&api).unwrap();
    assert_eq!(there["metadata"]["deletionTimestamp"], Value::Null);
}

#[tokio::test]
async fn a_deletion_before_the_commit_is_obeyed_and_not_made_ours() {
    let api = api();
    hold(&api).await;
    api.with(user_deletes);
    let before = kuard(&api);
    assert_eq!(delete(&api).await.unwrap(), SourceDeleted::PodDeleted);
    assert_eq!(kuard(&api), before, "nothing was changed");
    let api = self::api();
    hold(&api).await;
    let calls = api.with(|o| o.calls.len());
    api.before_call(calls + 1, user_deletes);
    assert_eq!(
        delete(&api).await.unwrap(),
        SourceDeleted::PodDeleted,
        "between the look and the mark"
    );
}

#[tokio::test]
async fn a_deletion_after_the_mark_does_not_stop_the_commit() {
    let api = api();
    hold(&api).await;
    let calls = api.with(|o| o.calls.len());
    // Look, mark, look: then the user deletes with 30 s of grace.
    api.before_call(calls + 3, user_deletes);
    assert_eq!(delete(&api).await.unwrap(), SourceDeleted::Gone);
    assert_eq!(
        kuard(&api),
        None,
        "also with somebody's grace period running"
    );
}

#[tokio::test]
async fn a_crash_or_a_lost_answer_anywhere_is_gone_on_from() {
    for lost in 0..8 {
        let api = api();
        hold(&api).await;
        let calls = api.with(|o| o.calls.len());
        api.lose_answer(calls + lost);
        let first = delete(&api).await;
        match first {
            Ok(deleted) => assert_eq!(deleted, SourceDeleted::Gone),
            Err(error) => {
                assert_eq!(
                    error.code(),
                    None,
                    "a lost answer is unknown, never a refusal"
                );
                assert_eq!(
                    delete(&api).await.unwrap(),
                    SourceDeleted::Gone,
                    "lost answer {lost}"
                );
            }
        }
        assert_eq!(kuard(&api), None);
    }
}

#[tokio::test]
async fn the_kubelets_writes_only_cost_another_round() {
    let api = api();
    hold(&api).await;
    let calls = api.with(|o| o.calls.len());
    api.before_call(calls + 1, kubelet_writes);
    api.before_call(calls + 3, kubelet_writes);
    assert_eq!(delete(&api).await.unwrap(), SourceDeleted::Gone);
}

#[tokio::test]
async fn a_pod_kept_by_somebody_is_in_doubt() {
    let api = FakeApi::default();
    api.with(|o| o.put(object()));
    hold(&api).await;
    let error = delete(&api).await.unwrap_err();
    assert_eq!(error.code(), None, "{error}");
    assert!(kuard(&api).is_some());
}

#[tokio::test]
async fn another_pod_of_the_name_is_never_deleted() {
    let api = api();
    api.with(|o| {
        o.by_name.get_mut("kuard").unwrap()["metadata"]["uid"] = json!("uid-9");
    });
    assert_eq!(delete(&api).await.unwrap(), SourceDeleted::Gone);
    let pods = Pods::new(api.client());
    let deleted = pods.delete_source(&place(), &uid(), &migration()).await;
    assert_eq!(deleted.unwrap(), SourceDeleted::Gone);
    assert!(kuard(&api).is_some());
}

#[tokio::test]
async fn a_released_source_is_an_ordinary_pod_again() {
    let api = FakeApi::default();
    api.with(|o| o.put(object()));
    hold(&api).await;
    let pods = Pods::new(api.client());
    for _ in 0..2 {
        pods.release_source(&place(), &uid(), &migration())
            .await
            .unwrap();
        let meta = kuard(&api).unwrap()["metadata"].clone();
        assert_eq!(meta["finalizers"], json!(["example.com/other"]));
        assert_eq!(meta["annotations"], json!({ "note": "mine" }));
    }
}

#[tokio::test]
async fn a_deleted_source_goes_when_it_is_released() {
    let api = api();
    hold(&api).await;
    api.with(|o| o.delete("kuard", &json!({ "gracePeriodSeconds": 0 })));
    assert!(kuard(&api).is_some(), "the hold keeps it");
    Pods::new(api.client())
        .release_source(&place(), &uid(), &migration())
        .await
        .unwrap();
    assert_eq!(kuard(&api), None);
}

#[tokio::test]
async fn another_migrations_hold_is_left_alone() {
    let api = api();
    hold(&api).await;
    let before = kuard(&api);
    Pods::new(api.client())
        .release_source(&place(), &uid(), &"m2".into())
        .await
        .unwrap();
    assert_eq!(kuard(&api), before);
}
