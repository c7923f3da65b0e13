//! What was seen, judged. The rules are what was found by trying, thing by thing, what stock CRIU carries. A finding
//! names the process, the file, and a way out where there is one.

use std::net::IpAddr;

use proto::worker::{Finding, Severity};

use super::{
    Container, Node, family, finding,
    network::Socket,
    process::{OpenFile, Process},
    refuse,
};

/// Devices that every container has and CRIU opens again by their path.
const ORDINARY_DEVICES: [&str; 9] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/shm",
];

/// Open files that CRIU can't dump, by how their name in /proc begins.
const UNDUMPABLE: [(&str, &str, &str); 7] = [
    ("anon_inode:[io_uring]", "IoUring", "io_uring"),
    ("anon_inode:[userfaultfd]", "Userfaultfd", "userfaultfd"),
    ("/secretmem", "SecretMemory", "memfd_secret"),
    (
        "anon_inode:[perf_event]",
        "PerfEvent",
        "a performance counter",
    ),
    ("anon_inode:bpf", "Bpf", "BPF"),
    ("anon_inode:[bpf", "Bpf", "BPF"),
    ("anon_inode:kvm", "Kvm", "a virtual machine"),
];

/// Every finding, in the order of the containers.
pub(super) fn judge(
    node: &Node,
    containers: &[Container],
    pod_ip: &str,
    ghost_limit_bytes: u64,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for container in containers {
        of_container(container, &mut findings);
        let family = family(container.init, &container.processes);
        let first = container
            .processes
            .iter()
            .find(|process| process.pid == container.init);
        for process in &container.processes {
            of_process(node, container, process, first, &mut findings);
            if !family.contains(&process.pid) {
                findings.push(refuse(
                    "ExecSession",
                    format!("{} was started from outside into the container (kubectl exec, or an exec probe)", who(container, process)),
                    "end the exec session, or let the exec probe run less often",
                ));
            }
            for file in &process.files {
                of_file(container, process, file, ghost_limit_bytes, &mut findings);
            }
        }
    }
    if containers.len() > 1
        && containers
            .iter()
            .any(|container| container.sysv_objects > 0)
    {
        findings.push(refuse(
            "SystemVIpc",
            "the pod has several containers and System V IPC objects; they are shared, and only the first restored \
             container could have them"
                .to_owned(),
            "use POSIX shared memory in memory files, or a pod of one container",
        ));
    }
    // The network is the pod's: every container shows the same.
    if let Some(container) = containers.first() {
        of_network(container, pod_ip.parse().ok(), &mut findings);
    }
    findings
}

fn of_container(container: &Container, findings: &mut Vec<Finding>) {
    let name = &container.name;
    if container.has_terminal {
        let message = format!("container {name} has a terminal (tty: true)");
        findings.push(refuse("Terminal", message, "run the pod without tty"));
    }
    if let Some(file) = container.shared_files.first() {
        let (message, count) = (
            format!("container {name} has files in /dev/shm ({file}"),
            container.shared_files.len(),
        );
        let message = format!(
            "{message}{}); they would not move",
            if count > 1 { " and others" } else { "" }
        );
        findings.push(refuse(
            "SharedMemoryFiles",
            message,
            "let the program use memfd_create or anonymous memory",
        ));
    }
    let first = container
        .processes
        .iter()
        .find(|process| process.pid == container.init);
    if first.is_some_and(|process| process.inner_pid > 1) {
        let message =
            format!("container {name} shares its process namespace with others of the pod");
        findings.push(refuse(
            "SharedProcessNamespace",
            message,
            "set shareProcessNamespace: false",
        ));
    }
    if container.network.multipath > 0 {
        let message = format!(
            "{} sockets of the pod use multipath TCP",
            container.network.multipath
        );
        findings.push(refuse(
            "MultipathTcp",
            message,
            "for Go programs set the environment variable GODEBUG=multipathtcp=0",
        ));
    }
}

fn of_process(
    node: &Node,
    container: &Container,
    process: &Process,
    first: Option<&Process>,
    findings: &mut Vec<Finding>,
) {
    let who = who(container, process);
    if process.state == 'T' {
        let message = format!("{who} is stopped (SIGSTOP): a dump of it would hang");
        findings.push(refuse(
            "StoppedProcess",
            message,
            "continue it (kill -CONT), or end it",
        ));
    }
    if process.tracer != 0 {
        let message = format!("{who} is traced by process {}", process.tracer);
        findings.push(refuse(
            "TracedProcess",
            message,
            "end the debugger or strace",
        ));
    }
    if !node.may_raise_limits && process.uid != 0 {
        let message = format!(
            "{who} runs as user {}, and this node lacks CAP_SYS_RESOURCE, without which CRIU can dump only root's processes",
            process.uid
        );
        findings.push(refuse(
            "MissingCapability",
            message,
            "give the node CAP_SYS_RESOURCE, or run the container as root",
        ));
    }
    for (kind, namespace) in &process.namespaces {
        let expected = match (*kind, first) {
            ("user", _) => Some(node.user_namespace.as_str()),
            (_, Some(first)) => first
                .namespaces
                .iter()
                .find(|(other, _)| other == kind)
                .map(|(_, name)| name.as_str()),
            (_, None) => None,
        };
        if expected.is_some_and(|expected| {
            !expected.is_empty() && !namespace.is_empty() && expected != namespace
        }) {
            let message = format!("{who} is in a {kind} namespace of its own");
            findings.push(refuse(
                "OwnNamespace",
                message,
                "for user namespaces: hostUsers must not be false",
            ));
        }
    }
    let maps = |prefix: &str| process.mappings.iter().any(|name| name.starts_with(prefix));
    if maps("/secretmem") {
        findings.push(refuse(
            "SecretMemory",
            format!("{who} uses memfd_secret"),
            "",
        ));
    }
    if maps("/anon_hugepage") || maps("/dev/hugepages") {
        let message = format!("{who} uses huge pages: the target needs as many free ones");
        findings.push(finding(
            Severity::Warn,
            "HugePages",
            message,
            "reserve huge pages on the target",
        ));
    }
}

fn of_volume(what: &str, file: &OpenFile) -> Option<Finding> {
    let (message, remedy) = match file.volume.as_deref()? {
        "configmap" | "secret" | "projected" | "downward-api" => (
            format!("{what}, on a volume whose folder has another name on the target"),
            "let the program close the file after reading it",
        ),
        kind => (
            format!("{what}, on a volume ({kind}) whose content does not move"),
            "close the file, or keep it in the container's own file system",
        ),
    };
    Some(refuse("VolumeFileOpen", message, remedy))
}

fn of_file(
    container: &Container,
    process: &Process,
    file: &OpenFile,
    ghost_limit_bytes: u64,
    findings: &mut Vec<Finding>,
) {
    let what = format!(
        "{} has {} open as {}",
        who(container, process),
        file.target,
        file.number
    );
    if let Some((_, code, name)) = UNDUMPABLE
        .iter()
        .find(|(begin, ..)| file.target.starts_with(begin))
    {
        let message = format!(
            "{} uses {name} (file {})",
            who(container, process),
            file.number
        );
        findings.push(refuse(
            code,
            message,
            "let the program work without it; many have a setting for that",
        ));
        return;
    }
    if file.is_message_queue {
        findings.push(refuse(
            "MessageQueue",
            format!("{what}: a POSIX message queue"),
            "",
        ));
        return;
    }
    let is_ordinary = ORDINARY_DEVICES.iter().any(|device| {
        file.target
            .strip_prefix(device)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest == " (deleted)")
    });
    if file.target.starts_with("/dev/pts/") && file.number <= 2 {
        findings.push(refuse(
            "Terminal",
            format!("{what}: a terminal"),
            "run the pod without tty and stdin",
        ));
    } else if file.target.starts_with("/dev/") && !is_ordinary && !file.is_regular {
        findings.push(refuse(
            "Device",
            format!("{what}: a device"),
            "pods that use devices can't move",
        ));
    }
    let names_disk = file.is_regular
        && !["/memfd:", "/dev/", "/SYSV"]
            .iter()
            .any(|name| file.target.starts_with(name));
    if names_disk && file.target.ends_with(" (deleted)") {
        of_deleted(&what, file, ghost_limit_bytes, findings);
    }
    findings.extend(of_volume(&what, file));
    if names_disk && file.target.ends_with("-journal") {
        findings.push(finding(
            Severity::Warn,
            "SqliteRollbackJournal",
            format!(
                "{what}: sqlite in rollback-journal mode finds its file moved and becomes read-only"
            ),
            "use sqlite's WAL mode",
        ));
    }
}

fn of_deleted(what: &str, file: &OpenFile, ghost_limit_bytes: u64, findings: &mut Vec<Finding>) {
    if file.links > 0 {
        let message = format!(
            "{what}, which was deleted while another name or a layer of the image still has it"
        );
        findings.push(refuse("DeletedFileWithLinks", message, "close the file"));
    } else if file.size > ghost_limit_bytes {
        let message = format!(
            "{what}, a deleted file of {} bytes; the limit is {ghost_limit_bytes}",
            file.size
        );
        findings.push(refuse(
            "DeletedFileTooLarge",
            message,
            "raise ghost-limit in /etc/criu/runc.conf on all nodes",
        ));
    }
}

fn of_network(container: &Container, pod_ip: Option<IpAddr>, findings: &mut Vec<Finding>) {
    let network = &container.network;
    let on_pod_ip = |socket: &&Socket| Some(socket.local.ip()) == pod_ip;
    let open = "listen on 0.0.0.0 or ::, for the pod's address is another one on the target";
    for socket in network
        .tcp
        .iter()
        .filter(|socket| socket.is_listening())
        .filter(on_pod_ip)
    {
        let message = format!("the pod listens on its own address {} (TCP)", socket.local);
        findings.push(refuse("ListenerOnPodAddress", message, open));
    }
    for socket in network.udp.iter().filter(on_pod_ip) {
        let message = format!(
            "the pod has a UDP socket on its own address {}",
            socket.local
        );
        findings.push(refuse("UdpOnPodAddress", message, open));
    }
    let connected: Vec<&Socket> = network
        .tcp
        .iter()
        .filter(|socket| socket.is_connected())
        .collect();
    let inside = connected.iter().filter(|socket| socket.is_inside()).count();
    if let Some(socket) = connected.iter().find(|socket| !socket.is_inside()) {
        let message = format!(
            "{} TCP connections of the pod will be closed (one is {} - {})",
            connected.len() - inside,
            socket.local,
            socket.remote
        );
        findings.push(finding(
            Severity::Warn,
            "ConnectionsClose",
            message,
            "clients and program must connect again",
        ));
    }
    if inside > 0 {
        let message = format!(
            "{inside} ends of TCP connections between processes of the pod will be closed, too"
        );
        findings.push(finding(
            Severity::Warn,
            "InnerConnectionsClose",
            message,
            "use unix sockets inside the pod",
        ));
    }
    if network.udp.iter().any(|socket| socket.received > 0) {
        let message = "datagrams that wait in UDP sockets will be lost".to_owned();
        findings.push(finding(Severity::Warn, "DatagramsLost", message, ""));
    }
}

fn who(container: &Container, process: &Process) -> String {
    format!(
        "process {} ({}) of container {}",
        process.inner_pid.max(1),
        process.name,
        container.name
    )
}

#[cfg(test)]
mod tests;
