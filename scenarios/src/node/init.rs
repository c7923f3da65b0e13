//! The first process of a node: puts the node's world together, then buries its dead.
//!
//! It starts in namespaces of its own (mounts, host name, IPC, process numbers, network, cgroups), so every mount
//! made here is seen by this node only and gone with its last process: `down` has nothing to unmount. The root is an
//! overlay over the shared tree; what the runtime and the kubelet keep lies in plain folders beside it, because an
//! overlay cannot be stacked on an overlay.

use crate::cgroup::{Hierarchy, Kind};
use anyhow::{Context, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, unmount,
};
use rustix::process::{WaitOptions, pivot_root, wait};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Device files of the host every node has.
const DEVICES: &[&str] = &[
    "null", "zero", "full", "random", "urandom", "tty", "fuse", "kmsg",
];
/// How often a first process without children looks again.
const IDLE: Duration = Duration::from_millis(500);

/// All a node's first process needs to know, in a file beside the node.
#[derive(Debug, Serialize, Deserialize)]
pub struct World {
    /// The node's host name.
    pub name: String,
    /// The shared tree at the bottom of the root.
    pub base: PathBuf,
    /// The node's own folder, with `upper`, `work` and `root` in it.
    pub folder: PathBuf,
    /// Folders and files of the host shown in the node: from, to.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// The cgroup trees to mount.
    pub hierarchies: Vec<Hierarchy>,
}

/// Becomes the node's first process; never returns but by failing.
pub fn run(world_file: &Path) -> Result<()> {
    let text = fs::read(world_file).with_context(|| format!("read {}", world_file.display()))?;
    let world: World = serde_json::from_slice(&text)
        .with_context(|| format!("understand {}", world_file.display()))?;
    build(&world)?;
    loop {
        // Orphans of the whole node become children of this process and would stay as zombies. With none there is
        // nothing to wait for yet, and an interrupted wait is simply done again.
        if wait(WaitOptions::empty()).is_err() {
            thread::sleep(IDLE);
        }
    }
}

fn build(world: &World) -> Result<()> {
    rustix::system::sethostname(world.name.as_bytes()).context("set the host name")?;
    let root = world.folder.join("root");
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("keep the node's mounts to the node")?;
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        world.base.display(),
        world.folder.join("upper").display(),
        world.folder.join("work").display()
    );
    special("overlay", &root, &layers).context("mount the node's root")?;
    special("proc", &root.join("proc"), "").context("mount /proc")?;
    special("sysfs", &root.join("sys"), "").context("mount /sys")?;
    mount_cgroups(&root, &world.hierarchies)?;
    make_devices(&root)?;
    special("tmpfs", &root.join("run"), "mode=755").context("mount /run")?;
    special("tmpfs", &root.join("tmp"), "mode=1777").context("mount /tmp")?;
    for (from, to) in &world.binds {
        let to = root.join(to.strip_prefix("/").unwrap_or(to));
        make_target(from, &to)?;
        mount_bind_recursive(from, &to)
            .with_context(|| format!("show {} in the node", from.display()))?;
    }
    enter(&root)?;
    for setting in ["ip_forward", "conf/all/route_localnet"] {
        fs::write(Path::new("/proc/sys/net/ipv4").join(setting), "1")
            .with_context(|| format!("switch on {setting}"))?;
    }
    // The last thing done: who starts the node waits for it.
    fs::write("/run/node-is-built", "").context("say that the node is built")
}

fn mount_cgroups(root: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    if hierarchies
        .iter()
        .all(|hierarchy| hierarchy.mount != Path::new("/sys/fs/cgroup"))
    {
        special("tmpfs", &root.join("sys/fs/cgroup"), "mode=755")
            .context("mount /sys/fs/cgroup")?;
    }
    for Hierarchy { mount, kind } in hierarchies {
        let target = inside(mount);
        fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
        match kind {
            // A tree with a name and no controller is mounted by saying so.
            Kind::V1(options) if options.starts_with("name=") => {
                special("cgroup", &target, &format!("none,{options}"))
            }
            Kind::V1(options) => special("cgroup", &target, options),
            Kind::V2 => special("cgroup2", &target, ""),
        }
        .with_context(|| format!("mount {}", mount.display()))?;
    }
    Ok(())
}

fn make_devices(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    special("tmpfs", &dev, "mode=755").context("mount /dev")?;
    for device in DEVICES.iter().map(Path::new) {
        let host = Path::new("/dev").join(device);
        if host.exists() {
            let target = dev.join(device);
            fs::write(&target, "").with_context(|| format!("create {}", target.display()))?;
            mount_bind(&host, &target)
                .with_context(|| format!("show {} in the node", host.display()))?;
        }
    }
    for folder in ["pts", "shm"] {
        fs::create_dir(dev.join(folder)).with_context(|| format!("create /dev/{folder}"))?;
    }
    special(
        "devpts",
        &dev.join("pts"),
        "newinstance,ptmxmode=0666,mode=620",
    )
    .context("mount /dev/pts")?;
    special("tmpfs", &dev.join("shm"), "mode=1777").context("mount /dev/shm")?;
    for (link, to) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(to, dev.join(link)).with_context(|| format!("link /dev/{link}"))?;
    }
    Ok(())
}

/// A mount point of the same sort as what will be mounted there.
fn make_target(from: &Path, to: &Path) -> Result<()> {
    let folder = if from.is_dir() {
        to
    } else {
        to.parent().unwrap_or(to)
    };
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    if !from.is_dir() && !to.exists() {
        fs::write(to, "").with_context(|| format!("create {}", to.display()))?;
    }
    Ok(())
}

/// Makes `root` the root and lets go of the host's.
fn enter(root: &Path) -> Result<()> {
    let host = root.join("host");
    fs::create_dir_all(&host).context("make a place for the host's root")?;
    std::env::set_current_dir(root).context("step into the node's root")?;
    pivot_root(".", "host").context("make the node's root the root")?;
    std::env::set_current_dir("/").context("step to the new root")?;
    unmount("/host", UnmountFlags::DETACH).context("let go of the host's root")?;
    fs::remove_dir("/host").context("remove the place of the host's root")?;
    // Containers' mounts propagate as on a machine of its own.
    mount_change(
        "/",
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )
    .context("let mounts propagate in the node")
}

fn special(kind: &str, target: &Path, options: &str) -> Result<()> {
    let options = CString::new(options).context("mount options hold no zero byte")?;
    mount(kind, target, kind, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mount {kind} at {}", target.display()))
}
