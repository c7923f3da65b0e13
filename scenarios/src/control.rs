//! The control plane: etcd, API server, controllers, scheduler, and the registry for ordinary images, on the host in
//! the lab's cgroups, listening on the lab's bridge.
//!
//! etcd asks for no password, so it alone listens on the loopback. It writes without waiting for the disk: a lab's
//! data need not survive the machine. Service account tokens with an audience, and TokenReview, work as anywhere.

use crate::certificates::Pki;
use crate::cluster::Cluster;
use crate::http;
use crate::parts;
use crate::process;
use crate::site::{API_PORT, REGISTRY_PORT, SERVICE_RANGE};
use crate::state::Lab;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The cgroup of everything that runs on the host.
pub const UNIT: &str = "control";
/// Cold caches and a busy machine included; a warm start takes five seconds.
const API_WITHIN: Duration = Duration::from_secs(90);
const LISTENING_WITHIN: Duration = Duration::from_secs(30);

/// Starts etcd and the API server, and waits until the API answers.
pub fn start_api(lab: &mut Lab) -> Result<()> {
    start_etcd(lab)?;
    let (site, pki) = (&lab.site, Pki::of(&lab.folder()?));
    let file = |name: &str| pki.file(name).display().to_string();
    let arguments = [
        format!("--etcd-servers=http://127.0.0.1:{}", site.etcd_port()),
        format!("--bind-address={}", site.gateway()),
        format!("--advertise-address={}", site.gateway()),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!(
            "--kubelet-client-certificate={}",
            file("kubelet-client.crt")
        ),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!(
            "--service-account-key-file={}",
            file("service-accounts.pub")
        ),
        format!(
            "--service-account-signing-key-file={}",
            file("service-accounts.key")
        ),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged".into(),
        // Ends without asking connected clients to leave first: they are all ours.
        "--shutdown-delay-duration=0s".into(),
        "--v=1".into(),
    ];
    start_kube(lab, "apiserver", "kube-apiserver", &arguments)?;
    let cluster = Cluster::of(lab)?;
    process::wait_for("the API server to be ready", API_WITHIN, || {
        process::check_alive(lab, "etcd")?;
        process::check_alive(lab, "apiserver")?;
        Ok(cluster.is_ready().then_some(()))
    })
}

/// One that runs is left alone: a story kills the API server without it.
fn start_etcd(lab: &mut Lab) -> Result<()> {
    if lab.runs("etcd") {
        return Ok(());
    }
    let base = lab
        .base
        .clone()
        .context("the node root filesystem is not there yet")?;
    let port = lab.site.etcd_port();
    let (client, peer) = (
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{}", port + 1),
    );
    let mut command = process::in_group(lab, UNIT)?;
    command
        .args(parts::program(&base, "usr/bin/etcd")?)
        .arg("--data-dir")
        .arg(lab.folder()?.join("etcd"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("default={peer}"),
        ])
        .args(["--unsafe-no-fsync", "--log-level", "warn"]);
    process::start(lab, "etcd", &command)?;
    wait_listening(lab, "etcd", SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

/// Starts the controllers and the scheduler; they find the API when it is there.
///
/// Those that run are left alone: a scheduler ends itself when it missed the deletion of a pod whose name is on another
/// node by now ("cache is corrupted"), which an API server that was away brings about, and is to be started again.
pub fn start_controllers(lab: &mut Lab) -> Result<()> {
    let pki = Pki::of(&lab.folder()?);
    let file = |name: &str| pki.file(name).display().to_string();
    let clients = |component: &str| {
        let config = pki.kubeconfig(component).display().to_string();
        let flags = [
            "kubeconfig",
            "authentication-kubeconfig",
            "authorization-kubeconfig",
        ];
        let mut arguments: Vec<String> = flags
            .iter()
            .map(|flag| format!("--{flag}={config}"))
            .collect();
        // One of each: none has to win an election. Served on the bridge address, which every lab has for itself.
        arguments.extend([
            "--leader-elect=false".into(),
            format!("--bind-address={}", lab.site.gateway()),
        ]);
        arguments
    };
    let mut controllers = clients("controllers");
    controllers.extend([
        format!(
            "--service-account-private-key-file={}",
            file("service-accounts.key")
        ),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        "--use-service-account-credentials".into(),
    ]);
    let scheduler = clients("scheduler");
    if !lab.runs("controllers") {
        start_kube(lab, "controllers", "kube-controller-manager", &controllers)?;
    }
    if !lab.runs("scheduler") {
        start_kube(lab, "scheduler", "kube-scheduler", &scheduler)?;
    }
    Ok(())
}

/// Who may pull from the registry when it asks.
pub struct Login {
    /// The user.
    pub user: &'static str,
    /// The password.
    pub password: &'static str,
    /// As the registry keeps it: bcrypt.
    hash: &'static str,
}

/// The one login of [`start_asking_registry`].
pub const REGISTRY_LOGIN: Login = Login {
    user: "lab",
    password: "lab4-secret",
    hash: "$2b$05$abcdefghijklmnopqrstuuSm.BsOgo9pmruW4g3C9ZIetzxekucYC",
};

/// Starts the registry for ordinary images.
pub fn start_registry(lab: &mut Lab) -> Result<()> {
    start_registry_with(lab, json!({}), 200)
}

/// The same registry, but for those who know the password.
pub fn start_asking_registry(lab: &mut Lab) -> Result<()> {
    let Login { user, hash, .. } = REGISTRY_LOGIN;
    let passwords = lab.folder()?.join("registry").join("passwords");
    fs::write(&passwords, format!("{user}:{hash}\n"))
        .with_context(|| format!("write {}", passwords.display()))?;
    let auth = json!({"htpasswd": {"realm": "lab", "path": passwords}});
    start_registry_with(lab, auth, 401)
}

/// `status` is what it answers to those who bring no password.
fn start_registry_with(lab: &mut Lab, auth: Value, status: u16) -> Result<()> {
    let base = lab
        .base
        .clone()
        .context("the node root filesystem is not there yet")?;
    let folder = lab.folder()?.join("registry");
    fs::create_dir_all(folder.join("data")).context("create the registry's folder")?;
    let address = SocketAddr::from((lab.site.gateway(), REGISTRY_PORT));
    let config = json!({
        "version": 0.1, "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": folder.join("data")}, "delete": {"enabled": true}},
        "http": {"addr": address.to_string()}, "auth": auth,
    });
    let config_file = folder.join("config.json");
    fs::write(&config_file, config.to_string())
        .with_context(|| format!("write {}", config_file.display()))?;
    let mut command = process::in_group(lab, UNIT)?;
    command
        .args(parts::program(&base, "usr/bin/docker-registry")?)
        .arg("serve")
        .arg(&config_file);
    process::start(lab, "registry", &command)?;
    process::wait_for("the registry to answer", LISTENING_WITHIN, || {
        process::check_alive(lab, "registry")?;
        Ok(http::get(address, "/v2/", Duration::from_secs(1))
            .ok()
            .filter(|answer| answer.status == status)
            .map(drop))
    })
}

/// Waits until a component accepts connections.
pub fn wait_listening(lab: &Lab, component: &str, address: SocketAddr) -> Result<()> {
    process::wait_for(
        &format!("{component} to listen on {address}"),
        LISTENING_WITHIN,
        || {
            process::check_alive(lab, component)?;
            Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))
                .ok()
                .map(drop))
        },
    )
}

fn start_kube(lab: &mut Lab, component: &str, program: &str, arguments: &[String]) -> Result<()> {
    let path = kube_program(lab, program)?;
    let mut command = process::in_group(lab, UNIT)?;
    command.arg(path).args(arguments);
    process::start(lab, component, &command)?;
    Ok(())
}

/// One of the Kubernetes programs this lab runs on.
pub fn kube_program(lab: &Lab, program: &str) -> Result<PathBuf> {
    let kube: &Path = lab
        .kube
        .as_deref()
        .context("the Kubernetes programs are not there yet")?;
    Ok(kube.join(program))
}
