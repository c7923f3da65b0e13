//! What must hold in the end, and what the ledger says of one migration.

use std::cell::RefCell;

use orchestrator_core::{
    id::MigrationId,
    migration::{Migration, Phase},
};

use crate::{
    ledger::Ledger,
    sim::{Inner, Sim, Violation},
};

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From now on panics are kept for the verdict instead of printed: tasks that panic go on as if they were gone.
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
    }));
}

/// The panics of this thread since it was last asked.
#[must_use]
pub fn panics() -> Vec<Violation> {
    let panics = PANICS.take().into_iter();
    panics
        .map(|what| Violation {
            at_ms: 0,
            what: format!("panicked: {what}"),
        })
        .collect()
}

fn find<'a>(ledger: &'a Ledger, id: &str) -> Option<&'a Migration> {
    let state = ledger.newest()?;
    state
        .migrations
        .get(&MigrationId::from(id))
        .map(AsRef::as_ref)
}

/// Does the log know it?
#[must_use]
pub fn is_known(ledger: &Ledger, id: &str) -> bool {
    find(ledger, id).is_some()
}

/// Has it ended?
#[must_use]
pub fn has_ended(ledger: &Ledger, id: &str) -> bool {
    find(ledger, id).is_some_and(|migration| migration.phase.ended())
}

/// Has every one?
#[must_use]
pub fn have_all_ended(ledger: &Ledger) -> bool {
    let all = ledger.newest().into_iter();
    all.flat_map(|state| state.migrations.values())
        .all(|migration| migration.phase.ended())
}

/// Its phase, and at which index it was entered.
#[must_use]
pub fn phase(ledger: &Ledger, id: &str) -> Option<(Phase, u64)> {
    find(ledger, id).map(|migration| (migration.phase, migration.revision.0))
}

/// What has not ended, and why.
#[must_use]
pub fn not_ended(ledger: &Ledger) -> String {
    let Some(state) = ledger.newest() else {
        return "nobody ever led".to_owned();
    };
    let open = state.migrations.values().filter(|m| !m.phase.ended());
    let open: Vec<String> = open
        .map(|m| {
            let doubt = m.doubt.as_ref().map(|doubt| &doubt.what.message);
            let stuck = m.stuck.as_ref().map(|stuck| &stuck.message);
            format!("{} is {}, doubt {doubt:?}, stuck {stuck:?}", m.id, m.phase)
        })
        .collect();
    open.join("; ")
}

/// How each migration ended.
#[must_use]
pub fn ends(sim: &Sim) -> Vec<String> {
    sim.ledger(|ledger, _| {
        let all = ledger
            .newest()
            .into_iter()
            .flat_map(|s| s.migrations.values());
        all.map(|m| m.phase.to_string()).collect()
    })
}

/// Nothing is left to be cleared away, and kubelets have done their work.
#[must_use]
pub fn is_tidy(ledger: &Ledger, inner: &mut Inner) -> bool {
    wrong(ledger, inner).is_empty()
}

/// What must hold in the calm.
pub fn check(ledger: &mut Ledger, inner: &mut Inner) {
    if !inner.violations.is_empty() {
        return;
    }
    let at_ms = ledger.now_ms;
    for what in wrong(ledger, inner) {
        inner.violations.push(Violation { at_ms, what });
    }
}

fn wrong(ledger: &Ledger, inner: &mut Inner) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(state) = ledger.newest() else {
        return vec!["nobody ever led".to_owned()];
    };
    for migration in state.migrations.values() {
        if let Some(left) = &migration.left_over {
            wrong.push(format!("{} left something over: {left}", migration.id));
        }
        let below = format!("checkpoints/{}/", migration.id);
        let stored = &inner.truth.stored;
        if !migration.kept && stored.keys().any(|key| key.starts_with(&below)) {
            wrong.push(format!("{} left packs in the store", migration.id));
        }
        let checkpoint = migration.checkpoint.iter().filter(|_| migration.kept);
        for kept in checkpoint.filter(|kept| !stored.is_whole(&kept.manifest_key)) {
            wrong.push(format!(
                "{} keeps {}, which is not whole",
                migration.id, kept.manifest_key
            ));
        }
    }
    for (name, machine) in &inner.truth.machines {
        if !machine.up {
            wrong.push(format!("{name} is down"));
        }
        for (uid, pod) in &machine.pods {
            if pod.frozen {
                wrong.push(format!("pod {uid} is frozen on {name}"));
            }
        }
    }
    pods(inner, state, &mut wrong);
    wrong
}

fn pods(inner: &Inner, state: &orchestrator_core::state::State, wrong: &mut Vec<String>) {
    let names: Vec<(String, String)> = inner.truth.lines.keys().cloned().collect();
    for (pod, container) in names {
        let copies: Vec<(&String, &String, bool)> = inner
            .truth
            .machines
            .iter()
            .flat_map(|(node, machine)| {
                machine
                    .pods
                    .iter()
                    .map(move |(uid, local)| (node, uid, local))
            })
            .filter(|(_, _, local)| local.name == pod)
            .flat_map(|(node, uid, local)| {
                local
                    .alive()
                    .filter(|c| c.name == container)
                    .map(move |c| (node, uid, c.runs()))
            })
            .collect();
        let object = inner.truth.objects.pod(&pod);
        if inner.truth.objects.is_gone_by_user(&pod) {
            if !copies.is_empty() || object.is_some() {
                wrong.push(format!(
                    "{pod}/{container} was deleted by its user and is still there"
                ));
            }
            continue;
        }
        let marks = inner.truth.objects.marks(&pod);
        if !marks.is_empty() {
            wrong.push(format!("{pod} still has our marks {marks:?}"));
        }
        let running: Vec<_> = copies.iter().filter(|(_, _, runs)| *runs).collect();
        let [(node, uid, _)] = running.as_slice() else {
            wrong.push(format!(
                "{pod}/{container} runs in {} places",
                running.len()
            ));
            continue;
        };
        if copies.len() > 1 {
            wrong.push(format!(
                "a held copy of {pod}/{container} is left: {copies:?}"
            ));
        }
        if object.is_none_or(|object| object.uid != **uid || object.node != **node) {
            wrong.push(format!("{pod} runs on {node} without its object"));
        }
        if let Some(what) = elsewhere(state, &pod, node) {
            wrong.push(format!("{pod}/{container}: {what}"));
        }
    }
}

/// The last migration's end says where it runs.
fn elsewhere(state: &orchestrator_core::state::State, pod: &str, node: &str) -> Option<String> {
    let moved = state
        .migrations
        .values()
        .filter(|m| m.request.pod.name == pod);
    let last = moved.max_by_key(|m| m.submitted)?;
    let plan = last.plan.as_ref()?;
    let expected = match last.phase {
        Phase::Succeeded => &plan.target,
        Phase::RolledBack | Phase::Rescued => &plan.source,
        Phase::Planned
        | Phase::Preparing
        | Phase::Copying
        | Phase::Holding
        | Phase::Delivering
        | Phase::Restoring
        | Phase::Rescuing
        | Phase::Retiring
        | Phase::Releasing
        | Phase::Refused
        | Phase::Previewed
        | Phase::Abandoned => return None,
    };
    (expected.0 != node).then(|| format!("{} is {}, and it runs on {node}", last.id, last.phase))
}
