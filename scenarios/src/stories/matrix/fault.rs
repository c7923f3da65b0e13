//! What can go wrong, and how it is done to a real lab and undone.

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::{fmt, thread, time::Duration};

use super::{
    super::{
        Stage,
        harm::{Changed, LAME_CRIU, Stopped, WHOLE_CRIU, process, shell, signal},
        peers::Peer,
    },
    proxy::{Mode, Relay},
};
use crate::{
    control,
    node::{self, Program},
    process::{self as programs, wait_for},
    site::Site,
    state::Lab,
};

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    LeaderKilled,
    FollowerKilled,
    SourceWorkerKilled,
    TargetWorkerKilled,
    SourceKubeletStopped,
    TargetKubeletStopped,
    SourceContainerdStopped,
    TargetContainerdStopped,
    SourceCut,
    TargetCut,
    SourceLost,
    S3Refusing,
    S3Slow,
    S3Cut,
    S3Garbage,
    TargetDiskFull,
    RestoreFailing,
    ApiDown,
    SourceClockOff,
    TargetClockOff,
}

/// All of them, in the order of the table.
pub const FAULTS: [Fault; 20] = [
    Fault::LeaderKilled,
    Fault::FollowerKilled,
    Fault::SourceWorkerKilled,
    Fault::TargetWorkerKilled,
    Fault::SourceKubeletStopped,
    Fault::TargetKubeletStopped,
    Fault::SourceContainerdStopped,
    Fault::TargetContainerdStopped,
    Fault::SourceCut,
    Fault::TargetCut,
    Fault::SourceLost,
    Fault::S3Refusing,
    Fault::S3Slow,
    Fault::S3Cut,
    Fault::S3Garbage,
    Fault::TargetDiskFull,
    Fault::RestoreFailing,
    Fault::ApiDown,
    Fault::SourceClockOff,
    Fault::TargetClockOff,
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaderKilled => "leader-killed",
            Self::FollowerKilled => "follower-killed",
            Self::SourceWorkerKilled => "source-worker-killed",
            Self::TargetWorkerKilled => "target-worker-killed",
            Self::SourceKubeletStopped => "source-kubelet-stopped",
            Self::TargetKubeletStopped => "target-kubelet-stopped",
            Self::SourceContainerdStopped => "source-containerd-stopped",
            Self::TargetContainerdStopped => "target-containerd-stopped",
            Self::SourceCut => "source-cut",
            Self::TargetCut => "target-cut",
            Self::SourceLost => "source-lost",
            Self::S3Refusing => "s3-refusing",
            Self::S3Slow => "s3-slow",
            Self::S3Cut => "s3-cut",
            Self::S3Garbage => "s3-garbage",
            Self::TargetDiskFull => "target-disk-full",
            Self::RestoreFailing => "restore-failing",
            Self::ApiDown => "api-down",
            Self::SourceClockOff => "source-clock-off",
            Self::TargetClockOff => "target-clock-off",
        })
    }
}

/// How long the API server is away: longer than any single call waits.
const API_DOWN: Duration = Duration::from_secs(20);
/// How long a node is cut off, or one of its daemons stopped: longer than the worker's stream bears, shorter than
/// Kubernetes takes to call a node lost (40 s).
const NODE_AWAY: Duration = Duration::from_secs(8);
/// How long the store misbehaves.
const STORE_AWAY: Duration = Duration::from_secs(6);
/// A process that was killed is started again by its kubelet at once, or after a back-off.
const AT_ONCE: Duration = Duration::ZERO;

/// Where the worker of a node keeps what it rebuilds: a small disk of its own, so that it can be filled.
pub const SMALL_DISK: &str = "/var/lib/longshore/layers";
/// What fills it.
const FILLER: &str = "/var/lib/longshore/layers/filler";

/// What strikes need to know beforehand: looking it up takes longer than some phases last.
pub struct Aim {
    source: u8,
    target: u8,
    victim: Option<u32>,
}

/// Something broken, mended when dropped.
pub struct Broken<'a> {
    mend: Option<Box<dyn FnOnce() -> Result<()> + 'a>>,
}

impl Broken<'_> {
    fn nothing() -> Self {
        Self { mend: None }
    }
}

impl<'a> Broken<'a> {
    fn until(mend: impl FnOnce() -> Result<()> + 'a) -> Self {
        Self {
            mend: Some(Box::new(mend)),
        }
    }

    fn held_by<T: 'a>(guard: T) -> Self {
        Self::until(move || {
            drop(guard);
            Ok(())
        })
    }
}

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.mend.take().map(|mend| mend()) {
            eprintln!("something was not mended: {error:#}");
        }
    }
}

impl Fault {
    /// How long it lasts, unless the migration ends first.
    pub fn lasts(self) -> Duration {
        match self {
            Self::LeaderKilled
            | Self::FollowerKilled
            | Self::SourceWorkerKilled
            | Self::TargetWorkerKilled => AT_ONCE,
            Self::SourceKubeletStopped
            | Self::TargetKubeletStopped
            | Self::SourceContainerdStopped
            | Self::TargetContainerdStopped
            | Self::SourceCut
            | Self::TargetCut
            | Self::SourceLost => NODE_AWAY,
            Self::S3Refusing | Self::S3Cut | Self::S3Garbage | Self::TargetDiskFull => STORE_AWAY,
            Self::S3Slow | Self::RestoreFailing => API_DOWN,
            Self::ApiDown => API_DOWN,
            Self::SourceClockOff | Self::TargetClockOff => AT_ONCE,
        }
    }

    /// Looks for the victim.
    pub fn aim(self, stage: &Stage, source: u8, target: u8) -> Result<Aim> {
        let lab = &stage.lab;
        let victim = match self {
            Self::LeaderKilled => Some(Peer::leader(stage)?.pid),
            Self::FollowerKilled => Some(Peer::follower(stage)?.pid),
            Self::SourceWorkerKilled => Some(process(lab, source, "worker")?),
            Self::TargetWorkerKilled => Some(process(lab, target, "worker")?),
            Self::SourceKubeletStopped => Some(process(lab, source, "kubelet")?),
            Self::TargetKubeletStopped => Some(process(lab, target, "kubelet")?),
            Self::SourceContainerdStopped => Some(process(lab, source, "containerd")?),
            Self::TargetContainerdStopped => Some(process(lab, target, "containerd")?),
            Self::ApiDown => {
                let lab = Lab::expect(&lab.site.name)?;
                Some(
                    lab.processes
                        .get("apiserver")
                        .context("there is an API server")?
                        .pid,
                )
            }
            Self::SourceCut
            | Self::TargetCut
            | Self::SourceLost
            | Self::S3Refusing
            | Self::S3Slow
            | Self::S3Cut
            | Self::S3Garbage
            | Self::TargetDiskFull
            | Self::RestoreFailing
            | Self::SourceClockOff
            | Self::TargetClockOff => None,
        };
        Ok(Aim {
            source,
            target,
            victim,
        })
    }

    /// Does it.
    pub fn strike<'a>(self, stage: &'a Stage, relay: &'a Relay, aim: &Aim) -> Result<Broken<'a>> {
        let victim = || aim.victim.context("somebody was aimed at");
        match self {
            Self::LeaderKilled
            | Self::FollowerKilled
            | Self::SourceWorkerKilled
            | Self::TargetWorkerKilled => {
                signal(victim()?, Signal::KILL)?;
                Ok(Broken::nothing())
            }
            Self::SourceKubeletStopped
            | Self::TargetKubeletStopped
            | Self::SourceContainerdStopped
            | Self::TargetContainerdStopped => Ok(Broken::held_by(Stopped::process(victim()?)?)),
            Self::SourceCut | Self::SourceLost => cut(stage, aim.source),
            Self::TargetCut => cut(stage, aim.target),
            Self::S3Refusing => Ok(bad_store(relay, Mode::Refusing)),
            Self::S3Slow => Ok(bad_store(relay, Mode::Slow)),
            Self::S3Cut => Ok(bad_store(relay, Mode::Cut)),
            Self::S3Garbage => Ok(bad_store(relay, Mode::Garbage)),
            Self::TargetDiskFull => fill_disk(stage, aim.target),
            Self::RestoreFailing => {
                let lame = Changed::node(stage, aim.target, LAME_CRIU, WHOLE_CRIU)?;
                Ok(Broken::held_by(lame))
            }
            Self::ApiDown => api_down(stage, victim()?),
            Self::SourceClockOff => clock_off(stage, aim.source),
            Self::TargetClockOff => clock_off(stage, aim.target),
        }
    }
}

fn bad_store(relay: &Relay, mode: Mode) -> Broken<'_> {
    relay.set(mode);
    Broken::until(|| {
        relay.set(Mode::Good);
        Ok(())
    })
}

/// Pulls the node's cable out of the bridge: nothing reaches it, nothing comes from it.
fn cut(stage: &Stage, n: u8) -> Result<Broken<'_>> {
    let cable = stage.lab.site.cable(n);
    programs::run("ip", ["link", "set", &cable, "down"]).context("pull a node's cable")?;
    Ok(Broken::until(move || {
        programs::run("ip", ["link", "set", &cable, "up"])
            .map(drop)
            .context("plug a node's cable in")
    }))
}

fn fill_disk(stage: &Stage, n: u8) -> Result<Broken<'_>> {
    let fill = format!("cat /dev/zero > {FILLER} 2>/dev/null || true");
    shell(&stage.lab, n, &fill)?;
    Ok(Broken::until(move || {
        shell(&stage.lab, n, &format!("rm -f {FILLER}")).map(drop)
    }))
}

/// Killed, and started again when it is over: what was connected sees its connections closed.
fn api_down(stage: &Stage, pid: u32) -> Result<Broken<'_>> {
    signal(pid, Signal::KILL)?;
    Ok(Broken::until(move || {
        let mut lab = Lab::expect(&stage.lab.site.name)?;
        control::start_api(&mut lab)?;
        for n in lab.site.node_numbers() {
            // A kubelet or a proxy that gave up meanwhile: an ordinary machine's init would start it again.
            node::start(&mut lab, n, Program::Kubelet)?;
            node::start(&mut lab, n, Program::Proxy)?;
        }
        Ok(())
    }))
}

/// Where the workers of the matrix read how far their clock is off.
pub const CLOCK_FILE: &str = "/var/lib/longshore/clock-off";
/// Five minutes ahead.
const OFF: &str = "+300";

fn clock_off(stage: &Stage, n: u8) -> Result<Broken<'_>> {
    shell(&stage.lab, n, &format!("echo {OFF} > {CLOCK_FILE}"))?;
    Ok(Broken::until(move || {
        shell(&stage.lab, n, &format!("echo +0 > {CLOCK_FILE}")).map(drop)
    }))
}

/// Waits until Kubernetes shows the node's worker as gone, as a person would before declaring the node lost.
pub fn seen_gone(stage: &Stage, node: &str) -> Result<()> {
    let gone = wait_for(
        "the cut node to be seen as gone",
        Duration::from_secs(30),
        || {
            let found = stage.cluster.json(&["get", "migrationnode", node])?;
            Ok((found["spec"]["connected"] == false).then_some(()))
        },
    );
    if gone.is_err() {
        bail!("{node} was cut off, and its worker is still shown as connected");
    }
    thread::sleep(Duration::from_millis(500));
    Ok(())
}

/// The number in a node's name.
pub fn number(stage: &Stage, node: &str) -> Result<u8> {
    let mut numbers = stage.lab.site.node_numbers();
    let found = numbers.find(|n| Site::node_name(*n) == node);
    found.with_context(|| format!("{node} is a node of the lab"))
}
