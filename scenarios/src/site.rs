//! The addresses and names of one lab, all from its name and a small number, so that labs side by side cannot meet.
//!
//! ```text
//! bridge lsh<i>   10.(100+i).0.1/24   host side; API server 6443, registry 5000, S3 9000 listen here; traces go to 4317
//! node n          10.(100+i).0.(10+n) behind veth lsh<i>n<n>
//! pods of node n  10.(200+i).n.0/24
//! services        10.96.0.0/16        inside the nodes only, so the same in every lab
//! etcd            127.0.0.1           the one program on loopback (it asks for no password), ports by index
//! ```

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// How many labs one machine can have: the second octets 100..=115 and 200..=215 are theirs.
pub const LABS_MAX: u8 = 16;
/// How many nodes one lab can have; each takes an address and half a gibibyte.
pub const NODES_MAX: u8 = 9;
/// The longest lab name: it becomes part of cgroup and folder names, shown in every listing.
const NAME_CHARS_MAX: usize = 24;

const NODE_NETWORK_OCTET: u8 = 100;
const POD_NETWORK_OCTET: u8 = 200;
const FIRST_NODE_HOST: u8 = 10;
const ETCD_PORT: u16 = 12379;

/// Address range of Services, and the address of the API server's own Service, its first.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// Where programs in the cluster reach the API server.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Ports on the bridge address.
pub const API_PORT: u16 = 6443;
/// The registry for ordinary images.
pub const REGISTRY_PORT: u16 = 5000;
/// The S3 server.
pub const S3_PORT: u16 = 9000;
/// Where the peers send traces: a collector may listen there, or not.
pub const COLLECTOR_PORT: u16 = 4317;
/// The registry's name in image references; nodes resolve it to the bridge address.
pub const REGISTRY_NAME: &str = "registry.lab:5000";

/// One lab's place on the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The name given with `--name`.
    pub name: String,
    /// Which of the machine's labs this is.
    pub index: u8,
    /// How many nodes it has.
    pub nodes: u8,
}

impl Site {
    /// Checks a name a user gave: it goes into file, cgroup and kubeconfig names.
    pub fn check_name(name: &str) -> Result<(), String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty()
            || name.len() > NAME_CHARS_MAX
            || !name.chars().all(fits)
            || name.starts_with('-')
        {
            return Err(format!(
                "a lab's name has 1 to {NAME_CHARS_MAX} of a-z, 0-9 and -, and no - in front: {name:?}"
            ));
        }
        Ok(())
    }

    /// The host's end of the node network.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, NODE_NETWORK_OCTET + self.index, 0, 1)
    }

    /// The address of node `n`, counted from 1.
    pub fn node_address(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, NODE_NETWORK_OCTET + self.index, 0, FIRST_NODE_HOST + n)
    }

    /// The pods of node `n`.
    pub fn pod_range(&self, n: u8) -> String {
        format!("10.{}.{n}.0/24", POD_NETWORK_OCTET + self.index)
    }

    /// The pods of all nodes.
    pub fn all_pods_range(&self) -> String {
        format!("10.{}.0.0/16", POD_NETWORK_OCTET + self.index)
    }

    /// The bridge on the host.
    pub fn bridge(&self) -> String {
        bridge_of(self.index)
    }

    /// The host's end of node `n`'s cable.
    pub fn cable(&self, n: u8) -> String {
        format!("lsh{}n{n}", self.index)
    }

    /// The name of node `n` in Kubernetes and as a host name.
    pub fn node_name(n: u8) -> String {
        format!("node{n}")
    }

    /// The numbers of the nodes.
    pub fn node_numbers(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.nodes
    }

    /// The lab's group in every cgroup hierarchy.
    pub fn cgroup(&self) -> String {
        cgroup_of(&self.name)
    }

    /// etcd's client port and, one above it, its peer port.
    pub fn etcd_port(&self) -> u16 {
        ETCD_PORT + 2 * u16::from(self.index)
    }
}

/// The bridge of the lab with this index.
pub fn bridge_of(index: u8) -> String {
    format!("lsh{index}")
}

/// The cgroup of a lab, known from its name alone so that `down` finds it without any other knowledge.
pub fn cgroup_of(name: &str) -> String {
    format!("longshore-{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn site(index: u8) -> Site {
        Site {
            name: "x".into(),
            index,
            nodes: NODES_MAX,
        }
    }

    #[test]
    fn no_two_labs_share_an_address_an_interface_or_a_port() {
        let mut seen = BTreeSet::new();
        for index in 0..LABS_MAX {
            let site = site(index);
            assert!(seen.insert(site.gateway().to_string()));
            assert!(seen.insert(site.bridge()));
            assert!(seen.insert(site.etcd_port().to_string()));
            assert!(seen.insert((site.etcd_port() + 1).to_string()));
            for n in site.node_numbers() {
                assert!(seen.insert(site.node_address(n).to_string()));
                assert!(seen.insert(site.cable(n)));
                assert!(seen.insert(site.pod_range(n)));
            }
        }
    }

    #[test]
    fn no_network_of_a_lab_touches_the_services_range() {
        for index in 0..LABS_MAX {
            let second = |range: &str| range.split('.').nth(1).map(str::to_owned);
            assert_ne!(
                second(&site(index).gateway().to_string()),
                second(SERVICE_RANGE)
            );
            assert_ne!(second(&site(index).all_pods_range()), second(SERVICE_RANGE));
        }
    }

    #[test]
    fn interface_names_fit_the_kernels_fifteen_characters() {
        assert!(site(LABS_MAX - 1).cable(NODES_MAX).len() <= 15);
    }

    #[test]
    fn a_name_that_would_leave_its_folder_is_refused() {
        for bad in ["", "../x", "a/b", "-x", "UP", "a b", &"x".repeat(25)] {
            assert!(Site::check_name(bad).is_err(), "{bad:?}");
        }
        assert!(Site::check_name("lab-2").is_ok());
    }
}
