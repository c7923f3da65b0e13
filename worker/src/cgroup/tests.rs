use super::*;

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

/// A folder tree that stands in for a version 1 freezer: files keep what is written.
fn freezer() -> (tempfile::TempDir, Cgroups, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let pod = root
        .path()
        .join(format!("freezer/kubepods/besteffort/pod{UID}"));
    for folder in [pod.clone(), pod.join("sandbox"), pod.join("container")] {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("freezer.state"), "THAWED\n").unwrap();
        fs::write(folder.join("cgroup.procs"), "").unwrap();
    }
    let cgroups = Cgroups::at(root.path()).unwrap();
    (root, cgroups, pod)
}

fn v1(path: &str) -> String {
    format!("9:memory:/x\n8:freezer:{path}\n1:name=systemd:/y\n")
}

#[tokio::test]
async fn the_pods_folder_is_frozen_and_nothing_else() {
    let (root, cgroups, pod) = freezer();
    let text = v1(&format!("/kubepods/besteffort/pod{UID}/container"));
    let cgroup = cgroups.of_process(1, &text, UID).unwrap();
    assert_eq!(cgroup.folder(), pod);
    cgroup.freeze().await.unwrap();
    assert_eq!(
        fs::read_to_string(pod.join("freezer.state")).unwrap(),
        "FROZEN"
    );
    assert_eq!(
        fs::read_to_string(pod.join("container/freezer.state")).unwrap(),
        "THAWED\n"
    );
    assert!(!root.path().join("freezer/freezer.state").exists());
    assert_eq!(cgroups.frozen_pods().unwrap(), [UID]);
    cgroup.thaw().await.unwrap();
    assert!(cgroups.frozen_pods().unwrap().is_empty());
}

#[test]
fn a_path_without_the_pods_uid_is_never_made_into_a_pods_cgroup() {
    let (_root, cgroups, _pod) = freezer();
    let other = "11111111-4b5a-6978-8796-a5b4c3d2e1f0";
    for path in [
        "/",
        "/kubepods",
        "/kubepods/besteffort",
        "/lab-node1",
        "",
        "/../pod",
        &format!("/pod{other}/c"),
    ] {
        assert!(cgroups.of_process(1, &v1(path), UID).is_err(), "{path}");
    }
    // The container itself must lie below the pod's folder: freezing it would be the wrong lock.
    assert!(
        cgroups
            .of_process(1, &v1(&format!("/kubepods/pod{UID}")), UID)
            .is_err()
    );
    // An empty or short UID is in every name.
    for uid in ["", "0", "pod"] {
        assert!(
            cgroups
                .of_process(1, &v1(&format!("/kubepods/pod{UID}/c")), uid)
                .is_err(),
            "{uid}"
        );
    }
}

#[test]
fn the_systemd_drivers_names_and_nested_cgroups_are_understood() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("cgroup.controllers"), "cpu").unwrap();
    let cgroups = Cgroups::at(root.path()).unwrap();
    let pod = format!(
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
        UID.replace('-', "_")
    );
    let text = format!("0::/{pod}/cri-containerd-abc.scope/init.scope\n");
    let cgroup = cgroups.of_process(1, &text, UID).unwrap();
    assert_eq!(cgroup.folder(), root.path().join(&pod));
    assert!(cgroups.of_process(1, &v1("/x"), UID).is_err());
}

#[test]
fn a_pod_is_found_by_its_name_alone() {
    let (_root, cgroups, pod) = freezer();
    assert_eq!(cgroups.find(UID).unwrap().unwrap().folder(), pod);
    assert_eq!(
        cgroups
            .find("11111111-4b5a-6978-8796-a5b4c3d2e1f0")
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn killing_ends_the_processes_below_and_thaws_pod_and_containers() {
    let (_root, cgroups, pod) = freezer();
    let mut victim = std::process::Command::new("sleep")
        .arg("100")
        .spawn()
        .unwrap();
    fs::write(
        pod.join("container/cgroup.procs"),
        format!("{}\n", victim.id()),
    )
    .unwrap();
    fs::write(pod.join("freezer.state"), "FROZEN").unwrap();
    fs::write(pod.join("container/freezer.state"), "FROZEN").unwrap();
    cgroups.find(UID).unwrap().unwrap().kill().await.unwrap();
    let status = victim.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
    for folder in [pod.clone(), pod.join("container")] {
        assert_eq!(
            fs::read_to_string(folder.join("freezer.state")).unwrap(),
            "THAWED"
        );
    }
}

#[tokio::test]
async fn a_version_2_freeze_counts_only_when_the_kernel_says_it_came_true() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("cgroup.controllers"), "").unwrap();
    let pod = root.path().join(format!("kubepods/pod{UID}"));
    fs::create_dir_all(&pod).unwrap();
    fs::write(pod.join("cgroup.freeze"), "0").unwrap();
    fs::write(pod.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
    let cgroup = Cgroups::at(root.path())
        .unwrap()
        .find(UID)
        .unwrap()
        .unwrap();
    let error = cgroup.freeze().await.unwrap_err();
    assert!(matches!(error, CgroupError::Unsettled { .. }), "{error}");
    assert_eq!(fs::read_to_string(pod.join("cgroup.freeze")).unwrap(), "1");
    fs::write(pod.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
    cgroup.freeze().await.unwrap();
}
