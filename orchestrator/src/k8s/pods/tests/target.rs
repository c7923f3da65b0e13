//! The pod that takes the source's place: made, bound, given up, and what is told of it.

use super::*;

#[tokio::test]
async fn the_target_is_made_and_bound_once() {
    for (lost, what) in [(0, "made"), (1, "bound")] {
        let api = FakeApi::default();
        let pods = Pods::new(api.client());
        api.lose_answer(lost);
        let first = pods.create_target(&place(), &target()).await;
        assert!(first.is_err(), "{what}, but we were not told");
        let made = pods.create_target(&place(), &target()).await.unwrap();
        assert_eq!(pods.create_target(&place(), &target()).await.unwrap(), made);
        let there = kuard(&api).unwrap();
        assert_eq!(there["metadata"]["uid"], json!(made.0));
        assert_eq!(there["spec"]["nodeName"], json!("node2"));
        let binds = api.with(|o| o.calls.iter().filter(|c| c.starts_with("BIND")).count());
        assert_eq!(binds, 1, "{what}");
    }
}

#[tokio::test]
async fn what_was_given_up_between_a_look_and_the_binding_is_not_bound() {
    let api = FakeApi::default();
    let pods = Pods::new(api.client());
    api.before_call(1, |objects| {
        let mut object = objects.by_name["kuard"].clone();
        object["metadata"]["annotations"][COMMITTED_ANNOTATION] = json!("m1");
        objects.put(object);
    });
    let error = pods.create_target(&place(), &target()).await.unwrap_err();
    assert!(matches!(
        error,
        CreateError::Call(CallError::Unknown { .. })
    ));
    assert_eq!(kuard(&api).unwrap()["spec"]["nodeName"], Value::Null);
    let error = pods.create_target(&place(), &target()).await.unwrap_err();
    assert!(matches!(error, CreateError::Taken { .. }), "{error}");
}

#[tokio::test]
async fn a_late_target_of_an_earlier_migration_makes_room() {
    let api = FakeApi::default();
    made_late(&api, "m0");
    let pods = Pods::new(api.client());
    let error = pods.create_target(&place(), &target()).await.unwrap_err();
    assert!(
        matches!(&error, CreateError::Call(error) if error.code() == Some(409)),
        "it is tried again: {error}"
    );
    assert_eq!(kuard(&api), None);
    pods.create_target(&place(), &target()).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_bound_or_not_held_for_it_is_never_removed_as_a_late_one() {
    let bound = |object: &mut Value| object["spec"]["nodeName"] = json!("node2");
    let copied = |object: &mut Value| {
        object["metadata"]["annotations"] = json!({ MIGRATION_ANNOTATION: "m0" });
        object["metadata"]["finalizers"] = json!([]);
    };
    let other = |object: &mut Value| object["metadata"]["uid"] = json!("uid-9");
    let changes: [&dyn Fn(&mut Value); 3] = [&bound, &copied, &other];
    for change in changes {
        let api = FakeApi::default();
        let uid = made_late(&api, "m0");
        api.with(|o| change(o.by_name.get_mut("kuard").unwrap()));
        let before = kuard(&api);
        let pods = Pods::new(api.client());
        // What it answers doesn't matter here.
        let _ = pods.remove_unbound(&place(), &uid, &"m0".into()).await;
        assert_eq!(kuard(&api), before);
    }
}

#[tokio::test]
async fn a_late_target_is_removed_whatever_answer_is_lost_and_never_looks_deleted_by_its_user() {
    for lost in 0..7 {
        let api = FakeApi::default();
        let uid = made_late(&api, "m0");
        api.lose_answer(lost);
        let pods = Pods::new(api.client());
        for _ in 0..2 {
            let removed = pods.remove_unbound(&place(), &uid, &"m0".into()).await;
            if let Some(there) = kuard(&api) {
                assert!(removed.is_err(), "lost answer {lost}");
                let status = target_status(&serde_json::from_value(there).unwrap());
                assert!(!status.deleting || status.given_up_by.is_some());
            }
        }
        assert_eq!(kuard(&api), None, "lost answer {lost}");
    }
}

#[tokio::test]
async fn a_held_source_never_passes_for_its_target() {
    let api = api();
    hold(&api).await;
    let pods = Pods::new(api.client());
    // A rescue makes its pod on the source's own node.
    for node in ["node2", "node1"] {
        let target = target_of("m1", node);
        let error = pods.create_target(&place(), &target).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the name default/kuard is taken by the pod with UID uid-1"
        );
    }
}

#[tokio::test]
async fn a_hold_without_its_note_is_released_and_another_pods_is_not() {
    let api = api();
    hold(&api).await;
    api.with(|o| {
        let meta = &mut o.by_name.get_mut("kuard").unwrap()["metadata"];
        meta["annotations"] = json!({});
    });
    let pods = Pods::new(api.client());
    pods.release_source(&place(), &"uid-9".into(), &migration())
        .await
        .unwrap();
    assert_eq!(
        kuard(&api).unwrap()["metadata"]["finalizers"],
        json!([HOLD_FINALIZER])
    );
    pods.release_source(&place(), &uid(), &migration())
        .await
        .unwrap();
    assert_eq!(kuard(&api).unwrap()["metadata"]["finalizers"], json!([]));
}

#[tokio::test]
async fn a_target_elsewhere_or_deleted_is_not_this_one() {
    let api = FakeApi::default();
    let pods = Pods::new(api.client());
    pods.create_target(&place(), &target()).await.unwrap();
    let rescue = target_of("m1", "node1");
    assert!(matches!(
        pods.create_target(&place(), &rescue).await,
        Err(CreateError::Taken { .. })
    ));
    api.with(user_deletes);
    let error = pods.create_target(&place(), &target()).await.unwrap_err();
    assert!(
        error.to_string().ends_with("which is being deleted"),
        "{error}"
    );
}

#[test]
fn the_targets_state_is_told() {
    let mut there = object();
    there["status"] = json!({ "phase": "Running", "podIP": "10.0.2.7",
        "conditions": [{ "type": "Ready", "status": "True" }],
        "containerStatuses": [
            { "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
              "containerID": "containerd://c1", "state": { "running": {} } },
            { "name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 2,
              "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "restore failed" } } }] });
    let status = target_status(&serde_json::from_value(there).unwrap());
    assert!(status.ready && !status.deleting);
    assert_eq!(
        (status.phase.as_str(), status.pod_ip.as_str()),
        ("Running", "10.0.2.7")
    );
    let [a, b] = &status.containers[..] else {
        panic!("two containers");
    };
    assert_eq!(
        (a.running, a.restarts, a.container_id.as_str()),
        (true, 0, "c1")
    );
    assert_eq!(
        (b.running, b.restarts, b.not_running.as_str()),
        (false, 2, "CrashLoopBackOff: restore failed")
    );
}
