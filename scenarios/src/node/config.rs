//! What a node finds in its /etc: containerd, CNI, CRIU, kubelet, names.
//!
//! Every setting that differs from a plain installation says why. They come in two sorts: what a node in namespaces
//! cannot do that a machine could, and what makes stories quick (short back-offs) without changing what is told.

use crate::certificates::Pki;
use crate::site::{REGISTRY_NAME, REGISTRY_PORT, Site};
use crate::state::Lab;
use crate::workloads;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Writes node `n`'s configuration below `root`.
pub fn write(lab: &Lab, n: u8, root: &Path) -> Result<()> {
    let site = &lab.site;
    let pki = Pki::of(&lab.folder()?);
    let put = |path: &str, text: &[u8]| -> Result<()> {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a file has a folder")?)
            .with_context(|| format!("create the folder of {}", path.display()))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    put("etc/containerd/config.toml", containerd().as_bytes())?;
    put(
        &format!("etc/containerd/certs.d/{REGISTRY_NAME}/hosts.toml"),
        mirror(site).as_bytes(),
    )?;
    put("etc/cni/net.d/10-lab.conflist", &pretty(&cni(site, n))?)?;
    put("etc/criu/runc.conf", CRIU.as_bytes())?;
    put("etc/kubernetes/kubelet.yaml", &pretty(&kubelet())?)?;
    put(
        "etc/hostname",
        format!("{}\n", Site::node_name(n)).as_bytes(),
    )?;
    put("etc/hosts", hosts(site).as_bytes())?;
    put(
        "etc/resolv.conf",
        b"# The lab has no name server: nothing in it needs a name from outside.\n",
    )?;
    let copies = [
        (pki.file("ca.crt"), "etc/kubernetes/ca.crt"),
        (
            pki.kubeconfig(&Site::node_name(n)),
            "etc/kubernetes/kubelet.kubeconfig",
        ),
        (pki.kubeconfig("proxy"), "etc/kubernetes/proxy.kubeconfig"),
    ];
    for (from, to) in copies {
        put(
            to,
            &fs::read(&from).with_context(|| format!("read {}", from.display()))?,
        )?;
    }
    Ok(())
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).context("write a configuration as JSON")
}

/// The options CRIU is given by runc, on a node prepared for checkpoints as Longshore's documentation asks for:
/// connections are closed (the peer's other end is not moved with the pod), connections just being made are dropped,
/// file locks are kept, and files deleted while open may be up to 64 MiB. The network is not locked: closed connections
/// need no lock, and one left behind by a dump that was ended would keep the pod from hearing anybody ever again.
const CRIU: &str = "tcp-close\nnetwork-lock skip\nskip-in-flight\nfile-locks\nghost-limit 64M\n";

fn containerd() -> String {
    // oom: a node in a namespace may not lower its processes' score below its own.
    // imports: room for what Longshore's `deploy/` adds to a node.
    format!(
        "version = 3\n\
         imports = [\"/etc/containerd/conf.d/*.toml\"]\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\n\
         sandbox = '{pause}'\n\
         [plugins.'io.containerd.cri.v1.images'.registry]\n\
         config_path = '/etc/containerd/certs.d'\n\
         [plugins.'io.containerd.cri.v1.runtime']\n\
         restrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\n\
         bin_dirs = ['/usr/lib/cni']\n\
         conf_dir = '/etc/cni/net.d'\n",
        pause = workloads::PAUSE
    )
}

fn mirror(site: &Site) -> String {
    let address = format!("http://{}:{REGISTRY_PORT}", site.gateway());
    format!(
        "server = \"{address}\"\n[host.\"{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    )
}

fn cni(site: &Site, n: u8) -> Value {
    json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [
        // Pods keep their own address on the way to other nodes and to the host: routes lead back.
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": site.pod_range(n)}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]})
}

fn kubelet() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"}},
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        // It tolerates kernel settings and limits that a node in namespaces may not set.
        "featureGates": {"KubeletInUserNamespace": true, "KubeletCrashLoopBackOffMax": true},
        "oomScoreAdj": 0,
        "enforceNodeAllocatable": [],
        "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local",
        // The host's disk is not the node's: a full host must not make every node evict.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 99, "imageGCLowThresholdPercent": 98,
        "runtimeRequestTimeout": "2m",
        // Stories kill what they test over and over: it shall come back at once.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        "syncFrequency": "10s",
    })
}

fn hosts(site: &Site) -> String {
    let registry = REGISTRY_NAME.split(':').next().unwrap_or(REGISTRY_NAME);
    let mut text = format!("127.0.0.1 localhost\n{} {registry}\n", site.gateway());
    for n in site.node_numbers() {
        text += &format!("{} {}\n", site.node_address(n), Site::node_name(n));
    }
    text
}
