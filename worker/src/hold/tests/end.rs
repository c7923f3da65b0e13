//! The ends of a hold: released, or destroyed with its pod.

use super::*;

#[tokio::test]
async fn a_release_thaws_before_it_resumes_removes_the_archives_and_may_be_repeated() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    assert!(bench.folder.path().join("web.tar").exists());
    let released = bench.release().await;
    assert!(released.was_held && released.running, "{released:?}");
    assert!(
        bench
            .log()
            .contains(&"resume id-web under THAWED".to_owned()),
        "{:?}",
        bench.log()
    );
    assert!(!bench.folder.path().join("web.tar").exists());
    let again = bench.release().await;
    assert!(!again.was_held && again.running, "{again:?}");
    assert!(
        bench
            .holder
            .journal
            .recall()
            .await
            .unwrap()
            .holds()
            .is_empty()
    );
}

#[tokio::test]
async fn a_container_that_an_ended_dump_left_thawed_is_resumed_all_the_same() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    let own = bench
        .folder
        .path()
        .join(format!("freezer/kubepods/pod{UID}/id-web"));
    fs::create_dir(&own).unwrap();
    fs::write(own.join("freezer.state"), "THAWED").unwrap();
    bench.shared.world().thawed = Some("id-web".to_owned());
    let released = bench.release().await;
    assert!(released.was_held && released.running, "{released:?}");
}

#[tokio::test]
async fn a_pod_that_a_thaw_would_kill_stays_held_where_its_checkpoint_is_wanted_instead() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    bench.the_kubelet_ends_it();
    let kept = bench.release_unless(true).await;
    assert!(kept.doomed && !kept.running, "{kept:?}");
    assert_eq!(bench.shared.freezer(), "FROZEN");
    let released = bench.release_unless(false).await;
    assert!(!released.doomed && released.was_held, "{released:?}");
    assert_eq!(bench.shared.freezer(), "THAWED");
    // Thawed, it has run: whatever waits in it now, the checkpoint is old.
    let again = bench.release_unless(true).await;
    assert!(!again.doomed, "{again:?}");
}

#[tokio::test]
async fn a_held_pod_that_nothing_threatens_is_released_though_it_could_be_kept() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    let released = bench.release_unless(true).await;
    assert!(released.running && !released.doomed, "{released:?}");
}

#[tokio::test]
async fn releasing_a_pod_that_is_gone_says_so() {
    let bench = Bench::new();
    bench.shared.world().states.clear();
    let released = bench.release().await;
    assert_eq!((released.was_held, released.running), (false, false));
    assert_eq!(released.detail, "the pod is gone from this node");
}

#[tokio::test]
async fn nothing_is_killed_or_thawed_before_the_kubelet_has_begun_to_end_the_pod() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    let holder = bench.holder.clone();
    let destroying =
        tokio::spawn(async move { holder.destroy("m", &pod(), &mut Timeline::default()).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(bench.shared.freezer(), "FROZEN");
    bench.the_kubelet_ends_it();
    while bench.shared.freezer() == "FROZEN" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.shared.world().states.clear();
    destroying.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pod_killed_under_its_hold_is_not_thawed_before_its_kubelet_has_removed_it() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    bench.shared.world().states.clear();
    let holder = bench.holder.clone();
    let destroying =
        tokio::spawn(async move { holder.destroy("m", &pod(), &mut Timeline::default()).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!destroying.is_finished());
    assert_eq!(bench.shared.freezer(), "FROZEN");
    let pods = bench.folder.path().join("freezer/kubepods");
    fs::remove_dir_all(pods.join(format!("pod{UID}"))).unwrap();
    destroying.await.unwrap().unwrap();
}

#[tokio::test]
async fn destroying_waits_until_the_runtime_has_no_task_and_thaws() {
    let bench = Bench::new();
    bench.hold().await.unwrap();
    bench.the_kubelet_ends_it();
    let shared = bench.shared.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        shared.world().states.clear();
    });
    bench
        .holder
        .destroy("m", &pod(), &mut Timeline::default())
        .await
        .unwrap();
    assert_eq!(bench.shared.freezer(), "THAWED");
    assert!(bench.shared.world().states.is_empty());
    bench
        .holder
        .destroy("m", &pod(), &mut Timeline::default())
        .await
        .unwrap();
}
