//! Mounts of a container, from its mountinfo.

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is in the container.
    pub point: String,
    /// Which folder of its file system is mounted.
    pub root: String,
}

impl Mount {
    /// Type of the Kubernetes volume that it is, when it is one: `empty-dir`, `configmap`, `secret`, `projected` …
    pub fn volume(&self) -> Option<&str> {
        let (_, rest) = self.root.split_once("/volumes/kubernetes.io~")?;
        rest.split('/').next()
    }
}

/// Every mount, in the order of the file.
pub(super) fn parse(mountinfo: &str) -> Vec<Mount> {
    let fields = mountinfo
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.len() > 4)
        .map(|fields| Mount {
            root: unescape(fields[3]),
            point: unescape(fields[4]),
        })
        .collect()
}

/// The mount that a path is on.
pub(super) fn of<'a>(path: &str, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let is_above = |mount: &&Mount| {
        let point = mount.point.trim_end_matches('/');
        path.strip_prefix(point)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    // Of two at one place the later one is seen; max_by_key takes the last of equals.
    mounts
        .iter()
        .filter(is_above)
        .max_by_key(|mount| mount.point.len())
}

/// The folder that holds what the container changed in its root file system, as the node sees it.
pub(super) fn upper_folder(mountinfo: &str) -> Option<String> {
    let root = mountinfo
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"))?;
    let options = root.rsplit(' ').next()?;
    options
        .split(',')
        .find_map(|option| option.strip_prefix("upperdir="))
        .map(unescape)
}

/// Spaces and such are written as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
600 500 0:60 / / rw,relatime - overlay overlay rw,lowerdir=/l/1:/l/2,upperdir=/snapshots/9/fs,workdir=/snapshots/9/work
601 600 0:61 / /proc rw - proc proc rw
602 600 8:1 /var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/my\\040map /etc/conf ro - ext4 /dev/root rw
603 600 8:1 /var/lib/kubelet/pods/u/etc-hosts /etc/hosts rw - ext4 /dev/root rw
";

    #[test]
    fn a_path_is_on_the_deepest_mount_above_it() {
        let mounts = parse(SAMPLE);
        assert_eq!(
            of("/etc/conf/..data/x", &mounts).unwrap().volume(),
            Some("configmap")
        );
        assert_eq!(of("/etc/config", &mounts).unwrap().point, "/");
        assert_eq!(of("/etc/hosts", &mounts).unwrap().volume(), None);
        assert!(mounts[2].root.ends_with("my map"));
    }

    #[test]
    fn the_upper_folder_is_the_root_overlays() {
        assert_eq!(upper_folder(SAMPLE).as_deref(), Some("/snapshots/9/fs"));
        assert_eq!(upper_folder(""), None);
    }
}
