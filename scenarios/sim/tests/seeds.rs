//! What `cargo test` plays: every named case, and a few seeds twice. The hundred thousand are `cargo lab sim`'s.

use lab_sim::{cases::CASES, schedule::Schedule, stage};

#[test]
fn every_case_ends_as_it_may_and_keeps_the_promise() {
    for case in &CASES {
        let told = stage::play((case.schedule)(), &[], false);
        assert!(
            told.violations.is_empty(),
            "{}: {:?}",
            case.name,
            told.violations
        );
        let as_it_may = |end: &String| case.ends.contains(&end.as_str());
        assert!(
            !told.ends.is_empty() && told.ends.iter().all(as_it_may),
            "{}: it ended as {:?}",
            case.name,
            told.ends
        );
    }
}

#[test]
fn the_same_seed_is_the_same_run_event_for_event() {
    for seed in 0..12 {
        let [once, twice] = [(); 2].map(|()| stage::play(Schedule::drawn(seed), &[], false));
        assert_eq!(once.hash, twice.hash, "seed {seed}");
        assert_eq!(once.violations, twice.violations, "seed {seed}");
        assert!(
            once.violations.is_empty(),
            "seed {seed}: {:?}",
            once.violations
        );
    }
}

#[test]
fn another_seed_is_another_run() {
    let hash = |seed| stage::play(Schedule::drawn(seed), &[], false).hash;
    assert_ne!(hash(1), hash(2));
}
