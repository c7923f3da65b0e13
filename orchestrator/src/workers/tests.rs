use super::*;

#[test]
fn a_clock_that_is_ahead_is_corrected_back() {
    let clock = measure(1_000, 5_000_000_000_500, 2_000);
    assert_eq!(clock.correct(5_000_000_000_500), 1_500);
    assert_eq!(clock.round_trip_ns, 1_000);
}

#[test]
fn a_shorter_round_trip_is_believed_until_it_is_old_or_a_clock_was_set() {
    const MS: u64 = 1_000_000;
    let clock = |offset_ms: i64, round_trip_ms: u64| Clock {
        offset_ns: offset_ms * 1_000_000,
        round_trip_ns: round_trip_ms * MS,
    };
    let (good, slow) = (clock(0, 2), clock(35, 80));
    assert_eq!(slow.improved_by(good, 0), good);
    assert_eq!(good.improved_by(slow, 10_000 * MS), good, "5 ms of drift");
    assert_eq!(good.improved_by(slow, 78_000 * MS), slow, "39 ms of drift");
    let set = clock(300_000, 80);
    assert_eq!(good.improved_by(set, 10_000 * MS), set);
}

#[tokio::test]
async fn a_call_to_a_lost_worker_ends_as_lost_and_not_as_failed() {
    let workers = Workers::new();
    let node = NodeName::from("node1");
    let (outbox, mut sent) = mpsc::channel(4);
    let generation = workers.attach(&node, outbox);
    let asking = {
        let (workers, node) = (workers.clone(), node.clone());
        let kind = question::Kind::HasImages(proto::worker::HasImages::default());
        tokio::spawn(async move { workers.ask(&node, kind, Duration::from_secs(5)).await })
    };
    sent.recv().await.expect("the question is sent");
    workers.detach(&node, generation);
    let error = asking
        .await
        .expect("no panic")
        .expect_err("no answer can have come");
    assert!(matches!(error, CallError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn an_old_stream_that_ends_late_does_not_end_the_new_one() {
    let workers = Workers::new();
    let node = NodeName::from("node1");
    let old = workers.attach(&node, mpsc::channel(1).0);
    let _new = workers.attach(&node, mpsc::channel(1).0);
    workers.detach(&node, old);
    assert!(workers.connected().contains_key(&node));
}

#[tokio::test]
async fn progress_is_the_last_word_of_a_step_and_goes_with_it() {
    let workers = Workers::new();
    let node = NodeName::from("node1");
    let (outbox, mut sent) = mpsc::channel(4);
    let generation = workers.attach(&node, outbox);
    let say = |kind| {
        let message = FromWorker { kind: Some(kind) };
        workers.receive(&node, generation, message);
    };
    let stepping = {
        let (workers, node) = (workers.clone(), node.clone());
        let kind = step_request::Kind::Tidy(proto::worker::Tidy::default());
        let within = Duration::from_secs(5);
        tokio::spawn(async move { workers.step(&node, "m", 7, kind, within).await })
    };
    let Some(to_worker::Kind::Step(step)) = sent.recv().await.and_then(|sent| sent.kind) else {
        panic!("a step was expected");
    };
    for done in [1, 2] {
        say(from_worker::Kind::Progress(Progress {
            migration_id: "m".to_owned(),
            done,
            ..Progress::default()
        }));
    }
    let progress = workers.progress();
    assert_eq!(progress.borrow()[&"m".into()].done, 2);
    say(from_worker::Kind::Report(StepReport {
        call: step.call,
        ..StepReport::default()
    }));
    stepping.await.expect("no panic").expect("a report");
    assert!(progress.borrow().is_empty());
}

#[tokio::test]
async fn an_answer_reaches_the_one_who_asked() {
    let workers = Workers::new();
    let node = NodeName::from("node1");
    let (outbox, mut sent) = mpsc::channel(4);
    let generation = workers.attach(&node, outbox);
    let asking = {
        let (workers, node) = (workers.clone(), node.clone());
        let kind = question::Kind::HasImages(proto::worker::HasImages::default());
        tokio::spawn(async move { workers.ask(&node, kind, Duration::from_secs(5)).await })
    };
    let Some(to_worker::Kind::Question(question)) =
        sent.recv().await.and_then(|message| message.kind)
    else {
        panic!("a question was expected");
    };
    let images = proto::worker::ImagesState {
        missing: vec!["a".to_owned()],
    };
    let answer = Answer {
        call: question.call,
        error: String::new(),
        kind: Some(answer::Kind::Images(images)),
    };
    workers.receive(
        &node,
        generation,
        FromWorker {
            kind: Some(from_worker::Kind::Answer(answer)),
        },
    );
    assert!(
        matches!(asking.await.expect("no panic"), Ok(answer::Kind::Images(state)) if state.missing == ["a"])
    );
}
