//! Which step is done, and which is not. Pure: requests and memory in, verdicts out.

use std::collections::{HashMap, VecDeque};

use proto::worker::{
    StepReport, StepRequest,
    step_report::{Outcome, Result as StepResult},
};
use tokio_util::sync::CancellationToken;

use super::{LineId, perform};
use crate::journal::{Memory, StepKey, StepKind};

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing: this is the answer.
    Answer(Box<StepReport>),
    /// It is under way or waits; its report will go to this newest call.
    Joined,
    /// Another step of the migration is under way.
    Waits,
    /// Perform it.
    Begin(Box<Work>),
}

/// Who asked: a call of a line. Another line may use the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    /// The line it came by.
    pub line: LineId,
    /// Its number there.
    pub call: u64,
}

/// A step that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// Who wants its report; nobody after the line was lost.
    pub asker: Option<Asker>,
    /// The words of the orchestrator.
    pub request: StepRequest,
    /// Cancelled when a newer step of the same migration waits for this one.
    pub superseded: CancellationToken,
}

/// Per migration one step under way and those behind it.
#[derive(Debug, Default)]
pub(super) struct Desk {
    lanes: HashMap<String, Lane>,
}

#[derive(Debug, Default)]
struct Lane {
    under_way: Option<(StepKey, Work)>,
    waiting: VecDeque<(StepKey, Work)>,
}

impl Desk {
    /// Decides about a request that came by a line.
    pub fn arrive(
        &mut self,
        line: LineId,
        key: &StepKey,
        request: StepRequest,
        memory: &Memory,
    ) -> Verdict {
        let call = request.call;
        let asker = Some(Asker { line, call });
        let lane = self.lanes.entry(key.migration.clone()).or_default();
        if let Some(work) = lane.find(key) {
            work.asker = asker;
            return Verdict::Joined;
        }
        if memory.is_stale(&key.migration, key.revision) || lane.has_newer(key) {
            self.drop_if_idle(&key.migration);
            return Verdict::Answer(Box::new(refusal(key, call)));
        }
        if let Some(report) = remembered(key, memory) {
            self.drop_if_idle(&key.migration);
            return Verdict::Answer(Box::new(StepReport { call, ..report }));
        }
        let work = Work {
            asker,
            request,
            superseded: CancellationToken::new(),
        };
        match &lane.under_way {
            Some((busy, running)) => {
                if busy.revision < key.revision {
                    running.superseded.cancel();
                }
                lane.waiting.push_back((key.clone(), work));
                Verdict::Waits
            }
            None => {
                lane.under_way = Some((key.clone(), work.clone()));
                Verdict::Begin(Box::new(work))
            }
        }
    }

    /// A step has ended: who wants its report.
    pub fn finish(&mut self, key: &StepKey) -> Option<Asker> {
        let lane = self.lanes.get_mut(&key.migration)?;
        let asker = lane.under_way.take().and_then(|(_, work)| work.asker);
        self.drop_if_idle(&key.migration);
        asker
    }

    /// Which step of a migration is to arrive again now, and by which line; to be asked until there is none. One that
    /// has become old while it waited begins nothing, and whoever waits behind it would wait for nobody.
    pub fn next(&mut self, migration: &str) -> Option<(LineId, StepRequest)> {
        let lane = self.lanes.get_mut(migration)?;
        if lane.under_way.is_some() {
            return None;
        }
        let mut waiting = std::iter::from_fn(|| lane.waiting.pop_front());
        let next = waiting.find_map(|(_, work)| Some((work.asker?.line, work.request)));
        self.drop_if_idle(migration);
        next
    }

    /// By which line the step under way for a migration was asked for last.
    pub fn listener(&self, migration: &str) -> Option<LineId> {
        let (_, work) = self.lanes.get(migration)?.under_way.as_ref()?;
        work.asker.map(|asker| asker.line)
    }

    /// A line is gone, and with it whoever asked by it. Steps that had not begun are asked for again by who still
    /// wants them.
    pub fn forget_calls(&mut self, line: LineId) {
        let by_it = |work: &Work| work.asker.is_some_and(|asker| asker.line == line);
        for lane in self.lanes.values_mut() {
            lane.waiting.retain(|(_, work)| !by_it(work));
            if let Some((_, work)) = &mut lane.under_way
                && by_it(work)
            {
                work.asker = None;
            }
        }
    }

    fn drop_if_idle(&mut self, migration: &str) {
        if self
            .lanes
            .get(migration)
            .is_some_and(|lane| lane.under_way.is_none() && lane.waiting.is_empty())
        {
            self.lanes.remove(migration);
        }
    }
}

impl Lane {
    fn find(&mut self, key: &StepKey) -> Option<&mut Work> {
        self.under_way
            .iter_mut()
            .chain(&mut self.waiting)
            .find(|(known, _)| known == key)
            .map(|(_, work)| work)
    }

    fn has_newer(&self, key: &StepKey) -> bool {
        self.under_way
            .iter()
            .chain(&self.waiting)
            .any(|(known, _)| known.revision > key.revision)
    }
}

/// The report of a step that need not, or must not, be done again.
fn remembered(key: &StepKey, memory: &Memory) -> Option<StepReport> {
    let text = memory
        .migration(&key.migration)
        .finished
        .remove(&(key.revision, key.kind))?;
    let report = perform::decode(&text)?;
    let is_final = match report.outcome() {
        Outcome::Done => !was_a_look(&report),
        Outcome::Failed => leads_elsewhere(key.kind),
        Outcome::Unknown | Outcome::Stale | Outcome::Unspecified => false,
    };
    is_final.then_some(report)
}

/// It says how things stood and changed nothing for good: a reboot may have changed them since.
fn was_a_look(report: &StepReport) -> bool {
    match &report.result {
        Some(StepResult::Barred(_)) => true,
        Some(StepResult::Released(released)) => released.doomed,
        Some(
            StepResult::Held(_)
            | StepResult::Delivered(_)
            | StepResult::Exported(_)
            | StepResult::Copied(_),
        )
        | None => false,
    }
}

/// When such a step fails, the migration goes to another phase, so the failure is its last word. The others are due
/// again in the same phase, until they succeed.
fn leads_elsewhere(kind: StepKind) -> bool {
    match kind {
        StepKind::Hold
        | StepKind::Deliver
        | StepKind::ExportImages
        | StepKind::ImportImages
        | StepKind::Copy
        | StepKind::Receive => true,
        StepKind::Disarm
        | StepKind::Destroy
        | StepKind::Release
        | StepKind::Withdraw
        | StepKind::Tidy
        | StepKind::Bar => false,
    }
}

fn refusal(key: &StepKey, call: u64) -> StepReport {
    StepReport {
        call,
        migration_id: key.migration.clone(),
        revision: key.revision,
        outcome: Outcome::Stale.into(),
        detail: format!(
            "revision {} is older than one that this worker has seen or was registered at",
            key.revision
        ),
        spans: Vec::new(),
        result: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Entry;

    fn key(revision: u64, kind: StepKind) -> StepKey {
        StepKey {
            migration: "m".into(),
            revision,
            kind,
        }
    }

    const LINE: LineId = LineId(1);

    fn by(call: u64) -> Option<Asker> {
        Some(Asker { line: LINE, call })
    }

    fn ask(desk: &mut Desk, memory: &Memory, call: u64, key: &StepKey) -> Verdict {
        ask_by(LINE, desk, memory, call, key)
    }

    fn ask_by(line: LineId, desk: &mut Desk, memory: &Memory, call: u64, key: &StepKey) -> Verdict {
        let request = StepRequest {
            call,
            migration_id: "m".into(),
            revision: key.revision,
            kind: None,
        };
        desk.arrive(line, key, request, memory)
    }

    fn finished(key: &StepKey, outcome: Outcome) -> Memory {
        let report = StepReport {
            revision: key.revision,
            outcome: outcome.into(),
            ..StepReport::default()
        };
        let mut memory = Memory::default();
        memory.apply(Entry::Begun(key.clone()));
        memory.apply(Entry::Finished {
            step: key.clone(),
            report: perform::encode(&report),
        });
        memory
    }

    #[test]
    fn a_step_under_way_is_joined_and_its_report_goes_to_the_newest_call() {
        let (mut desk, memory, hold) = (Desk::default(), Memory::default(), key(5, StepKind::Hold));
        assert!(matches!(
            ask(&mut desk, &memory, 1, &hold),
            Verdict::Begin(_)
        ));
        assert!(matches!(ask(&mut desk, &memory, 2, &hold), Verdict::Joined));
        assert_eq!(desk.finish(&hold), by(2));
    }

    #[test]
    fn a_finished_step_is_answered_from_memory_under_the_new_call() {
        let hold = key(5, StepKind::Hold);
        for outcome in [Outcome::Done, Outcome::Failed] {
            let verdict = ask(&mut Desk::default(), &finished(&hold, outcome), 9, &hold);
            let Verdict::Answer(report) = verdict else {
                panic!("{verdict:?}")
            };
            assert_eq!((report.call, report.outcome()), (9, outcome));
        }
    }

    #[test]
    fn what_must_succeed_in_the_end_is_tried_again_after_a_failure_and_in_doubt_everything_is() {
        let release = key(5, StepKind::Release);
        let again = ask(
            &mut Desk::default(),
            &finished(&release, Outcome::Failed),
            9,
            &release,
        );
        assert!(matches!(again, Verdict::Begin(_)));
        let done = ask(
            &mut Desk::default(),
            &finished(&release, Outcome::Done),
            9,
            &release,
        );
        assert!(matches!(done, Verdict::Answer(_)));
        let hold = key(5, StepKind::Hold);
        let unknown = ask(
            &mut Desk::default(),
            &finished(&hold, Outcome::Unknown),
            9,
            &hold,
        );
        assert!(matches!(unknown, Verdict::Begin(_)));
    }

    #[test]
    fn what_was_only_seen_is_looked_at_again() {
        let barred = StepResult::Barred(proto::worker::Barred::default());
        let doomed = StepResult::Released(proto::worker::Released {
            doomed: true,
            ..Default::default()
        });
        let released = StepResult::Released(proto::worker::Released::default());
        for (kind, result, again) in [
            (StepKind::Bar, barred, true),
            (StepKind::Release, doomed, true),
            (StepKind::Release, released, false),
        ] {
            let key = key(5, kind);
            let mut memory = finished(&key, Outcome::Done);
            let report = StepReport {
                revision: 5,
                outcome: Outcome::Done.into(),
                result: Some(result),
                ..StepReport::default()
            };
            memory.apply(Entry::Finished {
                step: key.clone(),
                report: perform::encode(&report),
            });
            let verdict = ask(&mut Desk::default(), &memory, 9, &key);
            assert_eq!(matches!(verdict, Verdict::Begin(_)), again, "{kind:?}");
        }
    }

    #[test]
    fn an_older_revision_is_refused_also_while_the_newer_one_only_waits() {
        let (mut desk, memory) = (Desk::default(), Memory::default());
        assert!(matches!(
            ask(&mut desk, &memory, 1, &key(5, StepKind::Hold)),
            Verdict::Begin(_)
        ));
        assert!(matches!(
            ask(&mut desk, &memory, 2, &key(7, StepKind::Release)),
            Verdict::Waits
        ));
        let verdict = ask(&mut desk, &memory, 3, &key(6, StepKind::Deliver));
        assert!(
            matches!(verdict, Verdict::Answer(report) if report.outcome() == Outcome::Stale && report.call == 3)
        );
        let after = finished(&key(7, StepKind::Release), Outcome::Done);
        let verdict = ask(&mut Desk::default(), &after, 4, &key(5, StepKind::Hold));
        assert!(matches!(verdict, Verdict::Answer(report) if report.outcome() == Outcome::Stale));
    }

    #[test]
    fn a_newer_step_tells_the_one_under_way_to_give_up_and_comes_next() {
        let (mut desk, memory) = (Desk::default(), Memory::default());
        let Verdict::Begin(work) = ask(&mut desk, &memory, 1, &key(5, StepKind::Hold)) else {
            panic!()
        };
        assert!(!work.superseded.is_cancelled());
        ask(&mut desk, &memory, 2, &key(7, StepKind::Release));
        assert!(work.superseded.is_cancelled());
        assert!(desk.next("m").is_none(), "one at a time");
        assert_eq!(desk.finish(&key(5, StepKind::Hold)), by(1));
        assert_eq!(desk.next("m").unwrap().1.call, 2);
    }

    #[test]
    fn behind_a_step_that_became_old_while_it_waited_the_newer_one_begins() {
        let (mut desk, memory) = (Desk::default(), Memory::default());
        let deliver = key(5, StepKind::Deliver);
        ask(&mut desk, &memory, 1, &deliver);
        for revision in [6, 7] {
            let withdraw = key(revision, StepKind::Withdraw);
            let verdict = ask(&mut desk, &memory, revision, &withdraw);
            assert!(matches!(verdict, Verdict::Waits), "{verdict:?}");
        }
        desk.finish(&deliver);
        let mut begun = Vec::new();
        while let Some((line, request)) = desk.next("m") {
            let withdraw = key(request.revision, StepKind::Withdraw);
            match desk.arrive(line, &withdraw, request, &memory) {
                Verdict::Begin(work) => begun.push(work.request.revision),
                Verdict::Answer(report) => assert_eq!(report.outcome(), Outcome::Stale),
                other @ (Verdict::Joined | Verdict::Waits) => panic!("{other:?}"),
            }
        }
        assert_eq!(begun, [7]);
    }

    #[test]
    fn steps_of_other_migrations_do_not_wait() {
        let (mut desk, memory) = (Desk::default(), Memory::default());
        ask(&mut desk, &memory, 1, &key(5, StepKind::Hold));
        let other = StepKey {
            migration: "other".into(),
            revision: 6,
            kind: StepKind::Hold,
        };
        let request = StepRequest {
            call: 2,
            ..StepRequest::default()
        };
        assert!(matches!(
            desk.arrive(LINE, &other, request, &memory),
            Verdict::Begin(_)
        ));
    }

    #[test]
    fn after_a_lost_stream_a_step_goes_on_without_a_listener_until_it_is_asked_for_again() {
        let (mut desk, memory, hold) = (Desk::default(), Memory::default(), key(5, StepKind::Hold));
        ask(&mut desk, &memory, 1, &hold);
        desk.forget_calls(LINE);
        assert!(matches!(ask(&mut desk, &memory, 1, &hold), Verdict::Joined));
        desk.forget_calls(LINE);
        assert_eq!(desk.finish(&hold), None);
    }

    #[test]
    fn a_new_leader_on_another_line_takes_over_and_the_old_ones_line_may_go() {
        let (mut desk, memory, hold) = (Desk::default(), Memory::default(), key(5, StepKind::Hold));
        ask(&mut desk, &memory, 1, &hold);
        let other = LineId(2);
        let verdict = ask_by(other, &mut desk, &memory, 1, &hold);
        assert!(matches!(verdict, Verdict::Joined));
        assert_eq!(desk.listener("m"), Some(other));
        desk.forget_calls(LINE);
        let takes = Some(Asker {
            line: other,
            call: 1,
        });
        assert_eq!(desk.finish(&hold), takes);
    }
}
