//! The bar of a restore that is given up.

use super::*;

#[tokio::test]
async fn a_bar_silences_freezes_and_looks_in_this_order_and_stands_until_it_is_withdrawn() {
    let bench = Bench::new();
    let barred = bench.holder.bar("m", &pod(), &[], &bench.shared).await;
    assert!(!barred.unwrap().restored);
    assert_eq!(bench.log(), ["silence m under THAWED", "look under FROZEN"]);
    assert_eq!(bench.shared.freezer(), "FROZEN", "nothing thaws it");
    assert!(bench.restarted().is_locked(UID).unwrap());
    bench.the_kubelet_ends_it();
    bench.restarted().end_barred("m", &pod()).await.unwrap();
    assert_eq!(bench.shared.freezer(), "THAWED", "killed, and let go of");
}

#[tokio::test]
async fn a_pod_that_came_up_after_all_runs_on_after_the_bar() {
    let bench = Bench::new();
    bench.shared.world().origin = proto::worker::verified_container::Origin::Restored;
    let barred = bench.holder.bar("m", &pod(), &[], &bench.shared).await;
    assert!(barred.unwrap().restored);
    assert_eq!(bench.shared.freezer(), "THAWED");
}

#[tokio::test]
async fn what_the_log_knows_to_be_restored_is_let_go_and_a_held_pod_is_not() {
    let bench = Bench::new();
    let barred = bench.holder.bar("m", &pod(), &[], &bench.shared).await;
    barred.unwrap();
    bench.holder.unbar("another").await.unwrap();
    assert_eq!(bench.shared.freezer(), "FROZEN");
    bench.holder.unbar("m").await.unwrap();
    assert_eq!(bench.shared.freezer(), "THAWED");
    bench.hold().await.unwrap();
    bench.holder.unbar("m").await.unwrap();
    bench.holder.end_barred("m", &pod()).await.unwrap();
    assert_eq!(bench.shared.freezer(), "FROZEN", "it is held, not barred");
}

#[tokio::test]
async fn a_barred_pod_is_ended_by_its_withdrawal_when_the_journal_that_knew_of_it_is_lost() {
    let bench = Bench::new();
    let barred = bench.holder.bar("m", &pod(), &[], &bench.shared).await;
    assert!(!barred.unwrap().restored);
    bench.the_kubelet_ends_it();
    let forgetful = Holder {
        journal: Journal::open(&bench.folder.path().join("new disk")).unwrap(),
        ..bench.holder.clone()
    };
    forgetful.end_barred("m", &Pod::default()).await.unwrap();
    assert_eq!(bench.shared.freezer(), "FROZEN", "it is not the one");
    forgetful.end_barred("m", &pod()).await.unwrap();
    assert_eq!(bench.shared.freezer(), "THAWED");
}
