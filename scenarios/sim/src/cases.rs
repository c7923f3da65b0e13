//! The holes that were known beforehand (design section 5a), each as a schedule of its own.

use orchestrator_core::migration::Phase;

use crate::{
    faults::{Misfortune, When},
    schedule::{Move, Schedule},
};

/// A schedule that goes through one hole.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What goes wrong.
    pub hole: &'static str,
    /// How.
    pub schedule: fn() -> Schedule,
    /// How its migrations may end.
    pub ends: &'static [&'static str],
}

const fn case(
    name: &'static str,
    hole: &'static str,
    schedule: fn() -> Schedule,
    ends: &'static [&'static str],
) -> Case {
    Case {
        name,
        hole,
        schedule,
        ends,
    }
}

/// All of them.
pub const CASES: [Case; 28] = [
    case("good-day", "nothing goes wrong", three, &["Succeeded"]),
    case(
        "reboot-ends-the-hold",
        "the source node reboots while the pod is held; its kubelet starts what the API still names",
        || in_phase(Phase::Delivering, 0, Misfortune::Reboot(SOURCE.to_owned())),
        &["RolledBack"],
    ),
    case(
        "reboot-at-the-commit",
        "the source node reboots just when its hold is confirmed",
        || in_phase(Phase::Restoring, 8, Misfortune::Reboot(SOURCE.to_owned())),
        &["Succeeded", "RolledBack", "Rescued"],
    ),
    case(
        "failed-restore-is-no-proof",
        "the restore reports an error; only the proof that nothing of it runs lets the rescue begin",
        broken_target,
        &["Rescued"],
    ),
    case(
        "a-rescue-from-a-difference-to-a-kept-one",
        "the second restore fails, too; the rescuing node's worker has died, and with it every base: the store has all of them",
        rescued_twice,
        &["Rescued"],
    ),
    case(
        "fresh-start",
        "the target's runtime starts the checkpoint image afresh",
        fresh_target,
        &["Rescued"],
    ),
    case(
        "worker-dies-around-an-effect",
        "the source's worker dies between pause and report",
        || in_phase(Phase::Holding, 150, kill("worker-node1")),
        &["Succeeded", "RolledBack"],
    ),
    case(
        "worker-forgets",
        "the source's worker loses its journal while it holds the pod",
        || in_phase(Phase::Holding, 100, Misfortune::Forget(SOURCE.to_owned())),
        &["RolledBack"],
    ),
    case(
        "worker-dies-in-a-round",
        "the source's worker dies while it copies the running pod, and may leave it paused",
        dead_in_a_round,
        &["Succeeded"],
    ),
    case(
        "nobody-thaws",
        "every process of ours dies while the pod is held, and comes back",
        everybody_dies,
        &["Succeeded", "RolledBack"],
    ),
    case(
        "held-container-is-killed",
        "a held container is killed by the kubelet or for want of memory",
        held_is_killed,
        &["Rescued", "RolledBack"],
    ),
    case(
        "user-deletes-the-source",
        "the user deletes the pod while it is held",
        || in_phase(Phase::Holding, 100, delete()),
        &["Abandoned", "RolledBack"],
    ),
    case(
        "user-deletes-at-the-commit",
        "the user deletes the pod when its source's object is about to go",
        || in_phase(Phase::Restoring, 3, delete()),
        &["Abandoned", "RolledBack", "Succeeded"],
    ),
    case(
        "user-deletes-the-target",
        "the user deletes the restored pod before the log knows that it was restored, and the leader dies",
        target_is_deleted,
        &["Abandoned"],
    ),
    case(
        "deposed-leader-writes-late",
        "the leader is cut off from its peers at the commit, and its calls arrive late",
        deposed,
        &["Succeeded"],
    ),
    case(
        "disarmed-name-is-asked-again",
        "the target's node reboots after the end: its kubelet asks for the checkpoint's name again",
        || {
            in_phase(
                Phase::Succeeded,
                300,
                Misfortune::Reboot("node2".to_owned()),
            )
        },
        &["Succeeded"],
    ),
    case(
        "chain",
        "a moved pod is moved on, and back, and on",
        chain,
        &["Succeeded"],
    ),
    case(
        "kubelet-starts-it-again",
        "the source's kubelet stands still at the commit and hears of the deletion late",
        || {
            let halt = Misfortune::HaltKubelet(SOURCE.to_owned(), 3_000);
            in_phase(Phase::Restoring, 0, halt)
        },
        &["Succeeded"],
    ),
    case(
        "a-given-up-restore-comes-up",
        "a restore fails, and its kubelet's next try comes up while it is being given up",
        mended_target,
        &["Succeeded", "Rescued"],
    ),
    case(
        "giving-up-is-interrupted",
        "the leader dies while a restore is withdrawn; the next one must not take its pod for never made",
        interrupted_giving_up,
        &["Rescued"],
    ),
    case(
        "a-bar-is-forgotten",
        "the target's worker loses its journal while a restore that it froze is withdrawn, and frozen it never dies",
        forgotten_bar,
        &["Rescued"],
    ),
    case(
        "the-target-reboots-half-restored",
        "one of two containers runs when the target's node reboots; both are restored again by its kubelet",
        half_restored,
        &["Succeeded", "Rescued"],
    ),
    case(
        "a-doomed-source-is-booted-away",
        "a source that was killed under its hold is kept for its checkpoint, and its node reboots before that is known",
        doomed_and_booted,
        &["RolledBack", "Rescued"],
    ),
    case(
        "marks-arrive-late",
        "writes to Kubernetes are carried out seconds after they were given up, also after the undo",
        late_marks,
        &["RolledBack", "Succeeded"],
    ),
    case(
        "a-creation-comes-after-its-pod-was-deleted",
        "a creation that got no answer is carried out when the restored pod's user has deleted it",
        || {
            let mut schedule = late_create();
            schedule.at(Phase::Succeeded, 200, delete());
            schedule
        },
        &["Succeeded"],
    ),
    case(
        "a-creation-comes-in-the-next-moves-gap",
        "a creation that got no answer is carried out when the next move has freed the name and not taken it yet",
        || {
            let mut schedule = late_create();
            schedule.pods[0].moves = chain().pods[0].moves.clone();
            schedule
        },
        &["Succeeded"],
    ),
    case(
        "a-creation-comes-in-the-rescue",
        "a creation that got no answer is carried out when the restore has failed and its pod was removed",
        || {
            let mut schedule = late_create();
            schedule.nodes[1].breaks_restores = true;
            schedule
        },
        &["Rescued", "Succeeded"],
    ),
    case(
        "store-is-cut-off-in-the-hold",
        "the store refuses everything while the checkpoint is stored",
        || in_phase(Phase::Holding, 60, Misfortune::StoreBad(1_000, 4_000)),
        &["RolledBack"],
    ),
];

const SOURCE: &str = "node1";
/// Between the bar and the end of what it froze.
const FORGOTTEN_AFTER_MS: u64 = 600;

fn three() -> Schedule {
    let mut schedule = Schedule::quiet(1);
    schedule.peers = 3;
    schedule.calm_at_ms = 12_000;
    // Once somebody leads.
    schedule.pods[0].moves[0].after_ms = 2_500;
    schedule
}

fn in_phase(phase: Phase, after_ms: u64, what: Misfortune) -> Schedule {
    let mut schedule = three();
    schedule.at(phase, after_ms, what);
    schedule
}

fn late_create() -> Schedule {
    in_phase(Phase::Restoring, 0, Misfortune::LateCreate)
}

fn kill(process: &str) -> Misfortune {
    Misfortune::Kill(process.to_owned())
}

fn delete() -> Misfortune {
    Misfortune::DeletePod("pod1".to_owned())
}

fn dead_in_a_round() -> Schedule {
    let mut schedule = in_phase(Phase::Copying, 150, kill("worker-node1"));
    schedule.rounds_max = 1;
    schedule
}

fn broken_target() -> Schedule {
    let mut schedule = three();
    schedule.nodes[1].breaks_restores = true;
    schedule
}

fn rescued_twice() -> Schedule {
    let mut schedule = broken_target();
    schedule.rounds_max = 1;
    schedule.keep_ms = Some(3_600_000);
    let again = Move {
        after_ms: 500,
        ..schedule.pods[0].moves[0].clone()
    };
    schedule.pods[0].moves.push(again);
    let when = When::Phase("m2".to_owned(), Phase::Restoring, 100);
    schedule.misfortunes.push((when, kill("worker-node1")));
    schedule
}

fn mended_target() -> Schedule {
    let mut schedule = broken_target();
    schedule.at(Phase::Restoring, 200, kill("worker-node2"));
    schedule.calm_at_ms = 4_200;
    schedule
}

fn interrupted_giving_up() -> Schedule {
    let mut schedule = broken_target();
    schedule.at(Phase::Restoring, 520, kill("leader"));
    schedule
}

fn forgotten_bar() -> Schedule {
    let forget = Misfortune::Forget("node2".to_owned());
    let mut schedule = in_phase(Phase::Restoring, FORGOTTEN_AFTER_MS, forget);
    schedule.nodes[1].starts_afresh = true;
    schedule.nodes[1].dies_frozen = false;
    schedule
}

fn half_restored() -> Schedule {
    let reboot = Misfortune::Reboot("node2".to_owned());
    let mut schedule = in_phase(Phase::Restoring, 330, reboot);
    schedule.pods[0].containers.push("c2".to_owned());
    schedule
}

fn doomed_and_booted() -> Schedule {
    let reboot = Misfortune::Reboot(SOURCE.to_owned());
    let mut schedule = in_phase(Phase::Releasing, 30, reboot);
    let accident = Misfortune::Accident(SOURCE.to_owned());
    schedule.at(Phase::Delivering, 0, accident);
    schedule
}

fn late_marks() -> Schedule {
    let mut schedule = in_phase(Phase::Preparing, 30, Misfortune::DeleteMigration(1));
    schedule.faults.is_calm = false;
    schedule.faults.api_late_per_mille = 600;
    schedule.calm_at_ms = 8_000;
    schedule
}

fn fresh_target() -> Schedule {
    let mut schedule = three();
    schedule.nodes[1].starts_afresh = true;
    schedule
}

fn everybody_dies() -> Schedule {
    let mut schedule = three();
    for process in ["peer1", "peer2", "peer3", "worker-node1", "worker-node2"] {
        schedule.at(Phase::Delivering, 1, kill(process));
    }
    schedule
}

fn held_is_killed() -> Schedule {
    let mut schedule = three();
    schedule.nodes[0].dies_frozen = true;
    let accident = Misfortune::Accident(SOURCE.to_owned());
    schedule.at(Phase::Delivering, 0, accident);
    schedule
}

fn target_is_deleted() -> Schedule {
    let mut schedule = in_phase(Phase::Restoring, 180, kill("leader"));
    schedule.at(Phase::Restoring, 400, delete());
    schedule
}

fn deposed() -> Schedule {
    let cut = Misfortune::Isolate("leader".to_owned(), 4_000);
    let mut schedule = in_phase(Phase::Restoring, 30, cut);
    schedule.faults.is_calm = false;
    schedule.faults.api_slow_ms = 900;
    schedule
}

fn chain() -> Schedule {
    let mut schedule = three();
    let again = Move {
        after_ms: 400,
        ..schedule.pods[0].moves[0].clone()
    };
    schedule.pods[0].moves.extend([again.clone(), again]);
    schedule
}
