mod faulty;
mod wire;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use proto::peer::{Envelope, Message as WireMessage, envelope, peers_client::PeersClient};
use raft::eraftpb::{Message, MessageType};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use self::wire::{GROUP, PATIENCE, Wires, everybody_has, leader, register, set, three};
use super::{membership, record::Record};
use crate::{
    consensus::{
        format::raft_to_bytes,
        node::{AskError, ProposeError},
    },
    tls::{Authority, Identity, peer_name},
};

/// The promise of losing a leader.
const FAILOVER_WITHIN: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_leader_that_is_cut_off_and_everybody_agrees_in_the_end() {
    let (wires, group) = three().await;
    let first = leader(&group, &[1, 2, 3]).await;
    group[&first]
        .log
        .propose(register("before"))
        .await
        .unwrap()
        .1
        .unwrap();

    let began = Instant::now();
    wires.cut(first, false);
    let others: Vec<u64> = (1..=3).filter(|id| *id != first).collect();
    let second = leader(&group, &others).await;
    group[&second]
        .log
        .propose(register("meanwhile"))
        .await
        .unwrap()
        .1
        .unwrap();
    let took = began.elapsed();
    println!("from the cut to the next applied command: {took:?}");
    assert!(took < FAILOVER_WITHIN, "{took:?}");
    // The old one has no majority: it can't confirm, and what it is asked for meanwhile is never applied.
    assert!(group[&first].log.confirm().await.is_err());
    let lost = group[&first].log.propose(register("lost")).await;
    assert!(
        matches!(
            lost,
            Err(ProposeError::NotLeader { .. } | ProposeError::Dropped)
        ),
        "{lost:?}"
    );

    wires.cut(first, true);
    group[&second]
        .log
        .propose(register("after"))
        .await
        .unwrap()
        .1
        .unwrap();
    everybody_has(&group, &[1, 2, 3], "after").await;
    let states: Vec<_> = group
        .values()
        .map(|peer| peer.log.state().borrow().clone())
        .collect();
    assert!(states.iter().all(|state| *state == states[0]));
    assert!(!states[0].workers.contains_key(&"lost".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_is_handed_over_in_less_than_an_election() {
    let (_wires, group) = three().await;
    let first = leader(&group, &[1, 2, 3]).await;
    let began = Instant::now();
    group[&first].log.hand_over().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != first).collect();
    let second = leader(&group, &others).await;
    group[&second]
        .log
        .propose(register("next"))
        .await
        .unwrap()
        .1
        .unwrap();
    println!("handed over and applied after {:?}", began.elapsed());
    assert!(
        began.elapsed() < Duration::from_millis(450),
        "{:?}",
        began.elapsed()
    );
    let refused = group[&first].log.transfer(second).await;
    assert_eq!(
        refused,
        Err(AskError::NotLeader {
            leader: Some(second)
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_too_far_behind_for_the_log_gets_a_snapshot() {
    let (wires, group) = three().await;
    let first = leader(&group, &[1, 2, 3]).await;
    let behind = if first == 3 { 2 } else { 3 };
    wires.cut(behind, false);
    for n in 0..100 {
        let node = format!("node{n}");
        group[&first]
            .log
            .propose(register(&node))
            .await
            .unwrap()
            .1
            .unwrap();
    }
    wires.cut(behind, true);
    everybody_has(&group, &[1, 2, 3], "node99").await;
    group[&first]
        .log
        .propose(register("behind it"))
        .await
        .unwrap()
        .1
        .unwrap();
    everybody_has(&group, &[behind], "behind it").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_disk_is_gone_is_replaced_by_one_with_a_new_id_and_refused_if_it_comes_back() {
    let (mut wires, mut group) = three().await;
    let first = leader(&group, &[1, 2, 3]).await;
    let gone = if first == 3 { 2 } else { 3 };
    let lost = group.remove(&gone).unwrap();
    let its = lost.parts.clone();
    lost.stop().await;

    let record = Record::founding(GROUP, 3)
        .without(gone)
        .and(u32::try_from(gone).unwrap() - 1, 4);
    let (_record_out, record) = watch::channel(Some(record));
    tokio::spawn(membership::run(group[&first].log.clone(), record));
    group.insert(4, wires.start(4, &[]).await);
    let mut members = group[&4].log.members();
    let wanted = set(&[first, 6 - first - gone, 4]);
    let swapped = members.wait_for(|now| now.voters == wanted && now.outgoing.is_empty());
    tokio::time::timeout(PATIENCE, swapped)
        .await
        .expect("the group has three voters again")
        .unwrap();
    group[&first]
        .log
        .propose(register("after"))
        .await
        .unwrap()
        .1
        .unwrap();
    everybody_has(&group, &[4], "after").await;

    let stranger = speak(
        &its.identity,
        wires.ports[&first],
        first,
        its.greeting(first),
        None,
    )
    .await;
    assert!(stranger.message().contains("removed"), "{stranger}");
    assert_eq!(group[&first].refusals("removed"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_hands_over_and_is_back_once_there_is_room() {
    let (_wires, group) = three().await;
    let first = leader(&group, &[1, 2, 3]).await;
    group[&first].faults.full.store(true, Ordering::Relaxed);
    // Its own disk is not needed for a majority, but it can't apply what it hasn't written.
    let unanswered = group[&first].log.propose(register("unanswered"));
    let unanswered = tokio::time::timeout(PATIENCE, unanswered).await.unwrap();
    assert!(unanswered.is_err(), "{unanswered:?}");
    let others: Vec<u64> = (1..=3).filter(|id| *id != first).collect();
    let second = leader(&group, &others).await;
    let applied = group[&second].log.propose(register("meanwhile")).await;
    applied.unwrap().1.unwrap();
    group[&first].faults.full.store(false, Ordering::Relaxed);
    everybody_has(&group, &[1, 2, 3], "meanwhile").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_with_a_slow_disk_delays_nobody() {
    let (_wires, group) = three().await;
    let first = leader(&group, &[1, 2, 3]).await;
    let slow = if first == 3 { 2 } else { 3 };
    group[&slow].faults.sync_ms.store(700, Ordering::Relaxed);
    let began = Instant::now();
    for n in 0..20 {
        let applied = group[&first].log.propose(register(&format!("n{n}"))).await;
        applied.unwrap().1.unwrap();
    }
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        leader(&group, &[1, 2, 3]).await,
        first,
        "nobody was unseated"
    );
    everybody_has(&group, &[slow], "n19").await;
}

/// Greets, says perhaps one message more, and gives back how it ended.
async fn speak(
    identity: &Identity,
    port: u16,
    to: u64,
    greeting: proto::peer::Greeting,
    message: Option<Message>,
) -> tonic::Status {
    let channel = dial(identity, port, to).await.unwrap();
    let mut said = vec![envelope::Kind::Greeting(greeting)];
    said.extend(message.map(|message| {
        let raft = raft_to_bytes("a message", &message).unwrap();
        envelope::Kind::Message(WireMessage { raft })
    }));
    let said = said.into_iter().map(|kind| Envelope { kind: Some(kind) });
    let said = tokio_stream::iter(said.collect::<Vec<_>>());
    match PeersClient::new(channel).deliver(said).await {
        Ok(_) => tonic::Status::ok("taken"),
        Err(status) => status,
    }
}

async fn dial(identity: &Identity, port: u16, to: u64) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?
        .tls_config(identity.towards(&peer_name(GROUP, to)))?
        .connect()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_counted() {
    let mut wires = Wires::among(&[1, 2]).await;
    let peer = wires.start(1, &[1, 2]).await;
    let port = wires.ports[&1];
    let second = wires.identity(GROUP, 2);
    let greeting = |from: u64, group: Uuid| proto::peer::Greeting {
        protocol: 1,
        group: group.to_string(),
        from,
        to: 1,
        address: None,
    };
    let message = |from: u64| {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgHeartbeat);
        (message.from, message.to, message.term) = (from, 1, 9);
        Some(message)
    };
    // As a control: the real second one is taken.
    let taken = speak(&second, port, 1, greeting(2, GROUP), None).await;
    assert_eq!(taken.message(), "taken");

    let as_third = speak(&second, port, 1, greeting(3, GROUP), message(3)).await;
    assert_eq!(as_third.message(), "other_name");
    let unknown = wires.identity(GROUP, 9);
    let unknown = speak(&unknown, port, 1, greeting(9, GROUP), message(9)).await;
    assert_eq!(unknown.message(), "no_member");
    let foreign = wires.identity(Uuid::nil(), 2);
    let foreign = speak(&foreign, port, 1, greeting(2, Uuid::nil()), message(2)).await;
    assert_eq!(foreign.message(), "other_group");
    let forged = speak(&second, port, 1, greeting(2, GROUP), message(3)).await;
    assert_eq!(forged.message(), "other_name");

    // Another authority's certificate, or none, ends in the handshake.
    let other = Authority::make().unwrap();
    let mut forged = other.issue(&[peer_name(GROUP, 2)]).unwrap();
    forged.authority.clone_from(&wires.authority.certificate);
    if let Ok(channel) = dial(&forged, port, 1).await {
        let said = tokio_stream::iter(Vec::<Envelope>::new());
        PeersClient::new(channel).deliver(said).await.unwrap_err();
    }
    let counted = tokio::time::timeout(PATIENCE, async {
        while peer.refusals("no_certificate") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    counted.await.expect("the failed handshake is counted");
    let refused = |reason| peer.refusals(reason);
    assert_eq!(
        (
            refused("other_name"),
            refused("no_member"),
            refused("other_group")
        ),
        (2, 1, 1)
    );
    // Nothing of all this reached raft: a heartbeat of term 9 would have raised the term.
    assert!(peer.log.describe().await.unwrap().term < 9);
    peer.stop().await;
}
