//! The image of the programs that come from Debian: Python with numpy, a Java virtual machine, postgres.
//!
//! One tree holds them all, made once and kept like the node tree; buildah, which the benches have anyway, brings it
//! into the lab's registry as it is, for only the lab's first pod of it pulls it.

use crate::bench::recipe::Recipe;
use crate::cache::{Part, run_logged};
use crate::http;
use crate::parts;
use crate::site::{REGISTRY_NAME, REGISTRY_PORT};
use crate::state::Lab;
use crate::steps::Steps;
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PACKAGES: &[&str] = &[
    "python3-numpy",
    "openjdk-21-jdk-headless",
    "postgresql",
    // for the library below
    "gcc",
    "libc6-dev",
];
const WEIGHTS: &str = include_str!("../../../lab/bench/weights.py");
const CHURN: &str = include_str!("../../../lab/bench/Churn.java");
const OWNER: &str = include_str!("../../../lab/bench/owner.c");
/// Raised when the image is made in another way of the same tree.
const IMAGE_RECIPE: &str = "2";
const DATA: &str = "bench/data";
const REPOSITORY: &str = "bench";
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Raised when the tree is made in another way from the same packages and sources.
const RECIPE: &str = "1";
/// Compiles ours inside the tree, gives postgres a name without its version, and makes an empty database. Its owner is
/// the user postgres, so it is made by that one, who need not be able to log in for that.
const FINISH: &str = r#"set -e
cd /bench
javac Churn.java
cc -shared -fPIC -o owner.so owner.c
bin=$(echo /usr/lib/postgresql/*/bin)
ln -s "$bin/postgres" postgres
ln -s "$bin/pgbench" pgbench
install --directory --owner=postgres --mode=0700 data
setpriv --reuid=postgres --regid=postgres --clear-groups "$bin/initdb" --auth=trust --username=postgres --pgdata=/bench/data
echo 'host all all all trust' >> data/pg_hba.conf
apt-get clean
rm -rf /var/lib/apt/lists /usr/share/doc /usr/share/man
"#;

/// Java looks for itself in /proc, initdb for memory in /dev; both are there for this command only.
const INSIDE: &str =
    r#"mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && exec chroot "$1" sh -c "$2""#;

/// The tree's part.
pub fn part() -> Part {
    Part::new(
        "bench-tree",
        [
            ("recipe", RECIPE.into()),
            ("packages", PACKAGES.join(",").into_bytes()),
            ("weights", WEIGHTS.into()),
            ("churn", CHURN.into()),
            ("owner", OWNER.into()),
            ("finish", FINISH.into()),
        ],
    )
}

/// Makes the tree unless it is there.
pub fn tree(steps: &Steps) -> Result<PathBuf> {
    let part = part();
    if part.is_there() {
        return part.path();
    }
    steps.run("build the tree of Debian's programs", || part.ensure(make))
}

fn make(target: &Path) -> Result<()> {
    parts::debian(target, PACKAGES)?;
    let folder = target.join("bench");
    fs::create_dir(&folder).context("create the tree's folder of ours")?;
    for (name, text) in [
        ("weights.py", WEIGHTS),
        ("Churn.java", CHURN),
        ("owner.c", OWNER),
    ] {
        fs::write(folder.join(name), text).with_context(|| format!("write {name}"))?;
    }
    let mut finish = Command::new("unshare");
    finish
        .args(["--mount", "sh", "-c", INSIDE, "sh"])
        .arg(target)
        .arg(FINISH);
    run_logged("bench-tree", &mut finish).context("finish the tree of Debian's programs")
}

/// The image's name as nodes know it. A tree of another making is another image: nodes keep what they have pulled.
pub fn name() -> String {
    format!("{REGISTRY_NAME}/{REPOSITORY}:{}", tag())
}

fn tag() -> String {
    format!("{}-{IMAGE_RECIPE}", part().key())
}

/// Brings the image into the lab's registry, unless it is there.
pub fn push(lab: &Lab, tree: &Path, steps: &Steps) -> Result<()> {
    let (gateway, tag) = (lab.site.gateway(), tag());
    let tags = format!("/v2/{REPOSITORY}/tags/list");
    let known = http::get(
        SocketAddr::from((gateway, REGISTRY_PORT)),
        &tags,
        ANSWER_WITHIN,
    )
    .context("ask the lab's registry for its images")?;
    if known.status == 200 && known.text().contains(&tag) {
        return Ok(());
    }
    let buildah = Recipe::prepare(lab, steps)?;
    steps.run("push the image of Debian's programs", || {
        let container = buildah.run(&["from", "scratch"])?;
        let container = container.trim();
        let from = tree.display().to_string();
        let built = format!("localhost/{REPOSITORY}:{tag}");
        buildah.run(&["add", "--quiet", container, &from, "/"])?;
        // To buildah all is root's; the database must not be.
        let data = format!("{from}/{DATA}");
        let owner = "--chown=postgres:postgres";
        buildah.run(&[
            "add",
            "--quiet",
            owner,
            container,
            &data,
            &format!("/{DATA}"),
        ])?;
        buildah.run(&["commit", "--quiet", "--rm", container, &built])?;
        let to = format!("docker://{gateway}:{REGISTRY_PORT}/{REPOSITORY}:{tag}");
        buildah.run(&["push", "--quiet", "--tls-verify=false", &built, &to])?;
        buildah.run(&["rmi", "--all", "--force"])?;
        Ok(())
    })
}
