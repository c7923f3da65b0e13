use super::*;
use crate::inspect::network::Network;

fn process(pid: u32) -> Process {
    let namespaces = vec![
        ("user", "user:[1]".to_owned()),
        ("mnt", "mnt:[2]".to_owned()),
    ];
    Process {
        pid,
        inner_pid: pid - 99,
        parent: 1,
        name: "p".into(),
        state: 'S',
        namespaces,
        ..Process::default()
    }
}

fn file(target: &str) -> OpenFile {
    OpenFile {
        number: 5,
        target: target.into(),
        ..OpenFile::default()
    }
}

fn codes(process: Process) -> Vec<String> {
    let container = Container {
        name: "c".into(),
        init: 100,
        processes: vec![process],
        ..Container::default()
    };
    codes_of(&[container])
}

fn codes_of(containers: &[Container]) -> Vec<String> {
    let node = Node {
        user_namespace: "user:[1]".into(),
        may_raise_limits: false,
    };
    let findings = judge(&node, containers, "10.244.1.2", 1000);
    findings.into_iter().map(|finding| finding.code).collect()
}

#[test]
fn an_ordinary_process_has_no_findings() {
    let mut ordinary = process(100);
    ordinary.files = [
        "/dev/null",
        "pipe:[5]",
        "anon_inode:[eventpoll]",
        "socket:[6]",
        "/app/x",
        "/dev/pts/0",
    ]
    .map(file)
    .to_vec();
    ordinary.files.push(OpenFile {
        is_regular: true,
        size: 5000,
        ..file("/memfd:heap (deleted)")
    });
    ordinary.files.push(OpenFile {
        is_regular: true,
        size: 900,
        ..file("/tmp/small (deleted)")
    });
    assert_eq!(codes(ordinary), Vec::<String>::new());
}

#[test]
fn every_open_file_that_cannot_be_carried_is_refused() {
    let disk = |target: &str| OpenFile {
        is_regular: true,
        ..file(target)
    };
    let cases = [
        (file("anon_inode:[io_uring]"), "IoUring"),
        (file("anon_inode:[userfaultfd]"), "Userfaultfd"),
        (file("/secretmem (deleted)"), "SecretMemory"),
        (
            OpenFile {
                is_message_queue: true,
                ..file("/queue")
            },
            "MessageQueue",
        ),
        (file("/dev/fuse"), "Device"),
        (
            OpenFile {
                number: 0,
                ..file("/dev/pts/3")
            },
            "Terminal",
        ),
        (
            OpenFile {
                size: 1001,
                ..disk("/tmp/x (deleted)")
            },
            "DeletedFileTooLarge",
        ),
        (
            OpenFile {
                links: 1,
                ..disk("/tmp/x (deleted)")
            },
            "DeletedFileWithLinks",
        ),
        (
            OpenFile {
                volume: Some("configmap".into()),
                ..disk("/etc/c/..2026/x")
            },
            "VolumeFileOpen",
        ),
        (
            OpenFile {
                volume: Some("empty-dir".into()),
                ..disk("/cache/x")
            },
            "VolumeFileOpen",
        ),
        (disk("/data/a.db-journal"), "SqliteRollbackJournal"),
    ];
    for (file, code) in cases {
        let target = file.target.clone();
        assert_eq!(
            codes(Process {
                files: vec![file],
                ..process(100)
            }),
            [code],
            "{target}"
        );
    }
}

#[test]
fn every_state_of_a_process_that_cannot_be_carried_is_refused() {
    let own = |kind| vec![("user", "user:[1]".to_owned()), (kind, "x:[9]".to_owned())];
    assert_eq!(
        codes(Process {
            state: 'T',
            ..process(100)
        }),
        ["StoppedProcess"]
    );
    assert_eq!(
        codes(Process {
            tracer: 7,
            ..process(100)
        }),
        ["TracedProcess"]
    );
    assert_eq!(
        codes(Process {
            uid: 1000,
            ..process(100)
        }),
        ["MissingCapability"]
    );
    assert_eq!(
        codes(Process {
            namespaces: own("user"),
            ..process(100)
        }),
        ["OwnNamespace"]
    );
    assert_eq!(
        codes(Process {
            mappings: vec!["/secretmem".into()],
            ..process(100)
        }),
        ["SecretMemory"]
    );
    assert_eq!(
        codes(Process {
            inner_pid: 8,
            ..process(100)
        }),
        ["SharedProcessNamespace"]
    );
}

#[test]
fn a_process_outside_of_the_familys_tree_is_an_exec_session() {
    let child = Process {
        parent: 100,
        inner_pid: 2,
        ..process(101)
    };
    let stranger = Process {
        parent: 50,
        inner_pid: 3,
        ..process(102)
    };
    let grandchild = Process {
        parent: 101,
        inner_pid: 4,
        ..process(103)
    };
    let processes = vec![grandchild, process(100), child, stranger];
    let container = Container {
        name: "c".into(),
        init: 100,
        processes,
        ..Container::default()
    };
    assert_eq!(codes_of(&[container]), ["ExecSession"]);
}

#[test]
fn sockets_on_the_pods_own_address_are_refused_and_connections_are_told() {
    let line = |local: &str, remote: &str, state: &str| {
        format!("0: {local} {remote} {state} 00000000:00000001 00:00000000 00000000 0 0 7 1 0\n")
    };
    let any = "00000000:0000";
    let tcp = line("0201F40A:1F90", any, "0A")
        + &line("00000000:1F91", any, "0A")
        + &line("0201F40A:1F91", "0101F40A:C001", "01");
    let network = Network::parse(&tcp, "", &line("0201F40A:0035", any, "07"), "");
    let container = Container {
        name: "c".into(),
        network,
        ..Container::default()
    };
    let expected = [
        "ListenerOnPodAddress",
        "UdpOnPodAddress",
        "ConnectionsClose",
        "DatagramsLost",
    ];
    assert_eq!(codes_of(&[container]), expected);
}

#[test]
fn system_v_objects_are_refused_only_where_containers_share_them() {
    let one = Container {
        name: "a".into(),
        sysv_objects: 1,
        ..Container::default()
    };
    assert!(codes_of(std::slice::from_ref(&one)).is_empty());
    assert_eq!(codes_of(&[one.clone(), one]), ["SystemVIpc"]);
}
