//! What a seed draws: the cluster, who moves where and when, and what goes wrong.

use std::collections::BTreeMap;

use orchestrator::consensus::core::{LIMITS, Limits};
use orchestrator_core::migration::Phase;

use crate::{
    dice::Dice,
    faults::{Faults, Misfortune, When},
};

/// Faults stop at the latest then; a schedule is some seconds, because what costs is time going by.
const TROUBLE_MS_MAX: u64 = 9_000;

/// Phases whose steps may be under way for long.
const STEPS: [Phase; 7] = [
    Phase::Holding,
    Phase::Holding,
    Phase::Delivering,
    Phase::Restoring,
    Phase::Rescuing,
    Phase::Retiring,
    Phase::Releasing,
];

/// A pod at the beginning.
#[derive(Clone, Debug)]
pub struct PodSketch {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: String,
    /// Its containers.
    pub containers: Vec<String>,
    /// Its moves, one after the other: how long after the last one, and where to.
    pub moves: Vec<Move>,
}

/// A wish to move.
#[derive(Clone, Debug)]
pub struct Move {
    /// So long after the one before, or the beginning.
    pub after_ms: u64,
    /// Which of the other nodes.
    pub target: u64,
    /// How long the freeze may last.
    pub freeze_budget_ms: u64,
}

/// A node at the beginning.
#[derive(Clone, Debug)]
pub struct NodeSketch {
    /// Its name.
    pub name: String,
    /// Frozen processes die of SIGKILL at once.
    pub dies_frozen: bool,
    /// Its runtime starts checkpoint images afresh.
    pub starts_afresh: bool,
    /// Restores fail on it.
    pub breaks_restores: bool,
    /// So often in a thousand a restore fails on it.
    pub fails_restores_per_mille: u64,
    /// Its wall clock is off by so much.
    pub clock_ms: i64,
}

/// All of it.
#[derive(Debug)]
pub struct Schedule {
    /// From this seed.
    pub seed: u64,
    /// Raft peers.
    pub peers: u64,
    /// Nodes.
    pub nodes: Vec<NodeSketch>,
    /// Pods.
    pub pods: Vec<PodSketch>,
    /// What goes wrong when.
    pub misfortunes: Vec<(When, Misfortune)>,
    /// What goes wrong now and then.
    pub faults: Faults,
    /// From then on nothing goes wrong.
    pub calm_at_ms: u64,
    /// When snapshots are taken.
    pub limits: Limits,
    /// Rounds before each freeze.
    pub rounds_max: u32,
    /// Checkpoints stay in the store for so long, as bases for what comes after.
    pub keep_ms: Option<u64>,
}

impl Schedule {
    /// The quietest: one peer, two nodes, one pod, one move, no faults.
    #[must_use]
    pub fn quiet(seed: u64) -> Self {
        let nodes = (1..=2).map(|n| NodeSketch {
            name: format!("node{n}"),
            dies_frozen: true,
            starts_afresh: false,
            breaks_restores: false,
            fails_restores_per_mille: 0,
            clock_ms: 0,
        });
        let mut faults = Faults::default();
        faults.calm();
        Self {
            seed,
            peers: 1,
            nodes: nodes.collect(),
            pods: vec![PodSketch {
                name: "pod1".to_owned(),
                node: "node1".to_owned(),
                containers: vec!["c1".to_owned()],
                moves: vec![Move {
                    after_ms: 500,
                    target: 0,
                    freeze_budget_ms: 20_000,
                }],
            }],
            misfortunes: Vec::new(),
            faults,
            calm_at_ms: 0,
            limits: LIMITS,
            rounds_max: 0,
            keep_ms: None,
        }
    }

    /// What this seed draws.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 1);
        let dice = &mut dice;
        let mut schedule = Self::quiet(seed);
        // Every fourth, and two with each: the dice of the others fall as they did before there were rounds.
        schedule.rounds_max = if seed % 4 == 1 { 2 } else { 0 };
        // Of these every other one: kept until the next move is under way, or for ever.
        if seed % 8 == 5 {
            schedule.keep_ms = Some(*Dice::new(seed, 4).one(&[300, 2_000, 3_600_000]));
        }
        schedule.peers = if dice.hits(300) { 1 } else { 3 };
        let nodes = dice.of(2..=3);
        schedule.nodes = (1..=nodes).map(|n| node(dice, n)).collect();
        let pods = if dice.hits(250) { 2 } else { 1 };
        schedule.pods = (1..=pods).map(|n| pod(dice, n, nodes)).collect();
        if dice.hits(150) {
            schedule.limits = Limits {
                entries: dice.of(6..=20),
                keep: 3,
                ..LIMITS
            };
        }
        schedule.calm_at_ms = dice.of(2_500..=TROUBLE_MS_MAX);
        schedule.rates(dice);
        let misfortunes = *dice.one(&[0, 1, 1, 2, 2, 3, 4, 6]);
        for _ in 0..misfortunes {
            let when = when(dice, schedule.calm_at_ms);
            let what = misfortune(dice, &schedule);
            schedule.misfortunes.push((when, what));
        }
        schedule.plot(&mut Dice::new(seed, 3));
        schedule
    }

    /// Single misfortunes seldom meet. In one of four schedules some of them conspire against one guard, on the first pod's
    /// first move.
    fn plot(&mut self, dice: &mut Dice) {
        match dice.of(0..=19) {
            0 => self.old_words(dice),
            1 => self.stalled_leader(dice),
            2 => self.hold_ends_in_the_delivery(dice),
            3 => self.hold_ends_at_the_commit(dice),
            4 => self.moody_restores(dice),
            5 => self.undone_behind_its_back(dice),
            6 => self.words_from_before_the_loss(dice),
            _ => {}
        }
    }

    /// So long after the first pod's first move has come to this phase.
    pub fn at(&mut self, phase: Phase, after_ms: u64, what: Misfortune) {
        let when = When::Phase("m1".to_owned(), phase, after_ms);
        self.misfortunes.push((when, what));
    }

    /// A leader's step is on its way for seconds; meanwhile another one leads, the user changes their mind, the worker
    /// dies.
    fn old_words(&mut self, dice: &mut Dice) {
        let phase = *dice.one(&STEPS);
        let node = self.some_node(dice);
        let cut = Misfortune::Cut("leader".to_owned(), node.clone(), dice.of(1_500..=4_500));
        self.at(phase, dice.of(0..=60), cut);
        let gone = if dice.hits(500) {
            Misfortune::Kill("leader".to_owned())
        } else {
            Misfortune::Depose("leader".to_owned(), 4_000)
        };
        self.at(phase, dice.of(60..=400), gone);
        self.second_thoughts(dice, phase, &node);
    }

    /// A leader's log stands still and its driver goes on, while another one leads.
    fn stalled_leader(&mut self, dice: &mut Dice) {
        let phase = *dice.one(&STEPS);
        let node = self.some_node(dice);
        let stall = Misfortune::Stall("leader".to_owned(), dice.of(2_500..=6_000));
        self.at(phase, dice.of(0..=200), stall);
        self.second_thoughts(dice, phase, &node);
    }

    /// A leader's hold and the undo that follows it are on their way to the source for seconds; meanwhile the next leader
    /// undoes the migration, and nobody else has ever asked for that hold.
    fn undone_behind_its_back(&mut self, dice: &mut Dice) {
        let source = self.pods[0].node.clone();
        let cut = Misfortune::Cut("leader".to_owned(), source, dice.of(2_000..=4_500));
        self.at(Phase::Holding, 0, cut);
        let abort = Misfortune::DeleteMigration(1);
        self.at(Phase::Holding, dice.of(5..=60), abort);
        let depose = Misfortune::Depose("leader".to_owned(), 6_000);
        self.at(Phase::Releasing, dice.of(30..=200), depose);
        self.faults.streams_slow_ms = *dice.one(&[20, 100, 400]);
        self.calm_at_ms = 10_000;
    }

    /// A leader waits for Kubernetes in the middle of an undo, its log stands still, and the next leader ends the undo and
    /// moves the pod anew. What the first one says then is older than anything that the worker has done, if it
    /// remembers: it died in between, and perhaps its disk with it.
    fn words_from_before_the_loss(&mut self, dice: &mut Dice) {
        let source = self.pods[0].node.clone();
        self.peers = 3;
        self.faults.api_slow_ms = 30;
        let again = Move {
            after_ms: dice.of(100..=800),
            target: dice.of(0..=7),
            freeze_budget_ms: 20_000,
        };
        self.pods[0].moves.truncate(1);
        self.pods[0].moves.push(again);
        let late = Misfortune::SlowAnswer("leader".to_owned(), dice.of(2_500..=5_500));
        self.at(Phase::Holding, 0, late);
        let abort = Misfortune::DeleteMigration(1);
        self.at(Phase::Holding, dice.of(50..=300), abort);
        let stall = Misfortune::Stall("leader".to_owned(), 9_000);
        self.at(Phase::Releasing, dice.of(60..=300), stall);
        let loss = if dice.hits(500) {
            Misfortune::Kill(format!("worker-{source}"))
        } else {
            Misfortune::Forget(source)
        };
        self.at(Phase::RolledBack, dice.of(0..=100), loss);
        self.calm_at_ms = 14_000;
    }

    fn second_thoughts(&mut self, dice: &mut Dice, phase: Phase, node: &str) {
        if dice.hits(700) {
            self.at(phase, dice.of(300..=3_000), Misfortune::DeleteMigration(1));
        }
        if dice.hits(600) {
            let loss = if dice.hits(500) {
                Misfortune::Kill(format!("worker-{node}"))
            } else {
                Misfortune::Forget(node.to_owned())
            };
            let phase = if dice.hits(500) {
                phase
            } else {
                Phase::Releasing
            };
            self.at(phase, dice.of(0..=2_500), loss);
        }
        self.calm_at_ms = self.calm_at_ms.max(9_000);
    }

    /// The source's node reboots, and is back before the checkpoint is delivered.
    fn hold_ends_in_the_delivery(&mut self, dice: &mut Dice) {
        let source = self.pods[0].node.clone();
        self.at(
            Phase::Delivering,
            dice.of(0..=40),
            Misfortune::Reboot(source.clone()),
        );
        let nodes: Vec<String> = self.nodes.iter().map(|n| n.name.clone()).collect();
        for other in nodes.into_iter().filter(|node| *node != source) {
            let for_ms = dice.of(8_000..=13_000);
            self.at(Phase::Delivering, 0, Misfortune::Isolate(other, for_ms));
        }
        self.calm_at_ms = 18_000;
    }

    /// The source's node reboots once its hold was confirmed, and is back before the leader reaches the API server again.
    fn hold_ends_at_the_commit(&mut self, dice: &mut Dice) {
        let source = self.pods[0].node.clone();
        let after_ms = dice.of(0..=150);
        let for_ms = dice.of(7_000..=11_000);
        let cut = Misfortune::Cut("leader".to_owned(), "api".to_owned(), for_ms);
        self.at(Phase::Restoring, after_ms, cut);
        let later_ms = after_ms + dice.of(0..=100);
        self.at(Phase::Restoring, later_ms, Misfortune::Reboot(source));
        self.calm_at_ms = 18_000;
    }

    /// Restores fail and come up at the next try, and whoever gives one up waits for Kubernetes until it does.
    fn moody_restores(&mut self, dice: &mut Dice) {
        let per_mille = dice.of(300..=700);
        for node in &mut self.nodes {
            node.fails_restores_per_mille = per_mille;
        }
        self.faults.api_slow_ms = *dice.one(&[10, 30, 100, 400]);
        for _ in 0..2 {
            let late = Misfortune::SlowAnswer("leader".to_owned(), dice.of(800..=2_500));
            self.at(Phase::Restoring, dice.of(100..=2_000), late);
        }
        self.calm_at_ms = self.calm_at_ms.max(9_000);
        if dice.hits(300) {
            let node = self.some_node(dice);
            let kill = Misfortune::Kill(format!("worker-{node}"));
            self.at(Phase::Restoring, dice.of(200..=2_500), kill);
        }
    }

    fn some_node(&self, dice: &mut Dice) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|n| n.name.clone()).collect();
        dice.one(&nodes).clone()
    }

    fn rates(&mut self, dice: &mut Dice) {
        let faults = &mut self.faults;
        faults.api_slow_ms = *dice.one(&[10, 30, 100, 400, 3_000]);
        faults.peers_slow_ms = *dice.one(&[5, 20, 60, 150]);
        faults.streams_slow_ms = *dice.one(&[5, 20, 100, 400]);
        if dice.hits(300) {
            faults.api_per_mille = dice.of(10..=150);
        }
        if dice.hits(200) {
            faults.api_late_per_mille = dice.of(10..=200);
        }
        if dice.hits(200) {
            faults.store_per_mille = dice.of(10..=200);
        }
        if dice.hits(100) {
            faults.dump_per_mille = dice.of(100..=600);
        }
        if dice.hits(300) {
            faults.peers_per_mille = dice.of(10..=200);
        }
        if dice.hits(200) {
            faults.streams_per_mille = dice.of(5..=60);
        }
        let mut deaths: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let peers = (1..=self.peers).map(|n| format!("peer{n}"));
        let workers = self.nodes.iter().map(|n| format!("worker-{}", n.name));
        for process in peers.chain(workers) {
            if dice.hits(150) {
                let lives = dice.of(1..=2);
                let ends = (0..lives).map(|_| dice.of(2..=120)).collect();
                deaths.insert(process, ends);
            }
        }
        faults.deaths = deaths;
    }
}

fn node(dice: &mut Dice, n: u64) -> NodeSketch {
    let sign = if dice.hits(500) { 1 } else { -1 };
    NodeSketch {
        name: format!("node{n}"),
        dies_frozen: dice.hits(500),
        starts_afresh: dice.hits(30),
        breaks_restores: dice.hits(60),
        fails_restores_per_mille: 0,
        clock_ms: sign * i64::from(*dice.one(&[0, 0, 3, 40, 900, 300_000])),
    }
}

fn pod(dice: &mut Dice, n: u64, nodes: u64) -> PodSketch {
    let containers = if dice.hits(250) { 2 } else { 1 };
    let moves = *dice.one(&[1, 1, 1, 2, 2, 3]);
    PodSketch {
        name: format!("pod{n}"),
        node: format!("node{}", dice.of(1..=nodes)),
        containers: (1..=containers).map(|n| format!("c{n}")).collect(),
        moves: (0..moves)
            .map(|_| Move {
                after_ms: dice.of(100..=1_500),
                target: dice.of(0..=7),
                freeze_budget_ms: *dice.one(&[20_000, 20_000, 20_000, 20_000, 3_000]),
            })
            .collect(),
    }
}

/// Half of them fall into a phase on purpose: by the clock most would miss the few hundred milliseconds that matter.
fn when(dice: &mut Dice, calm_at_ms: u64) -> When {
    if dice.hits(500) {
        return When::At(dice.of(600..=calm_at_ms - 300));
    }
    let phases = [
        Phase::Preparing,
        Phase::Holding,
        Phase::Holding,
        Phase::Delivering,
        Phase::Restoring,
        Phase::Restoring,
        Phase::Restoring,
        Phase::Rescuing,
        Phase::Retiring,
        Phase::Releasing,
    ];
    let phase = *dice.one(&phases);
    let id = *dice.one(&["m1", "m1", "m2", "m11"]);
    When::Phase(id.to_owned(), phase, dice.of(0..=500))
}

fn misfortune(dice: &mut Dice, schedule: &Schedule) -> Misfortune {
    let nodes: Vec<String> = schedule.nodes.iter().map(|n| n.name.clone()).collect();
    let node = dice.one(&nodes).clone();
    let peer = if dice.hits(400) {
        "leader".to_owned()
    } else {
        format!("peer{}", dice.of(1..=schedule.peers))
    };
    let for_ms = *dice.one(&[300, 1_000, 3_000, 7_000]);
    match dice.of(0..=16) {
        0 if dice.hits(400) => Misfortune::Kill("peers".to_owned()),
        0 | 1 => Misfortune::Kill(peer),
        2 | 3 => Misfortune::Kill(format!("worker-{node}")),
        4 => Misfortune::Forget(node),
        5 | 6 => Misfortune::Reboot(node),
        7 => Misfortune::Accident(node),
        8 => Misfortune::HaltKubelet(node, for_ms),
        9 => Misfortune::Cut(format!("peer{}", dice.of(1..=schedule.peers)), node, for_ms),
        10 => Misfortune::Isolate(peer, for_ms),
        11 => Misfortune::Isolate(node, for_ms),
        12 => {
            let by_ms = *dice.one(&[-3_600_000, -30_000, -500, 500, 30_000, 300_000]);
            let place = if dice.hits(500) { peer } else { node };
            Misfortune::Jump(place, by_ms)
        }
        13 => Misfortune::ApiDown(for_ms),
        14 => {
            let pod = dice.one(&schedule.pods);
            Misfortune::DeletePod(pod.name.clone())
        }
        15 => Misfortune::Depose("leader".to_owned(), for_ms),
        _ if dice.hits(500) => Misfortune::StoreBad(dice.of(200..=1_000), for_ms),
        _ => Misfortune::DeleteMigration(usize::try_from(dice.of(1..=2)).unwrap_or(1)),
    }
}
