//! Sockets of a pod, from the tables in /proc/PID/net.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// States of TCP as the kernel numbers them.
const LISTEN: u8 = 0x0a;
const TIME_WAIT: u8 = 0x06;
const CLOSE: u8 = 0x07;

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: u8,
    /// Bytes that nobody read yet.
    pub received: u64,
    pub inode: u64,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Network {
    pub tcp: Vec<Socket>,
    pub udp: Vec<Socket>,
    pub multipath: u64,
}

impl Network {
    /// From the four tables.
    pub fn parse(tcp: &str, tcp6: &str, udp: &str, udp6: &str) -> Self {
        let both =
            |four: &str, six: &str| four.lines().chain(six.lines()).filter_map(socket).collect();
        Self {
            tcp: both(tcp, tcp6),
            udp: both(udp, udp6),
            multipath: 0,
        }
    }

    /// And the number of multipath TCP sockets, from the list of protocols.
    pub fn with_protocols(self, protocols: &str) -> Self {
        let count = |line: &str| {
            let mut words = line.split_whitespace();
            words.next().filter(|name| name.starts_with("MPTCP"))?;
            words.nth(1)?.parse::<u64>().ok()
        };
        Self {
            multipath: protocols.lines().filter_map(count).sum(),
            ..self
        }
    }
}

impl Socket {
    pub fn is_listening(&self) -> bool {
        self.state == LISTEN
    }

    /// It has a peer that will see it close.
    pub fn is_connected(&self) -> bool {
        self.state != LISTEN && self.state != TIME_WAIT && self.state != CLOSE
    }

    /// Between processes of the pod.
    pub fn is_inside(&self) -> bool {
        self.remote.ip().is_loopback() || self.remote.ip() == self.local.ip()
    }
}

fn socket(line: &str) -> Option<Socket> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (local, remote) = (address(words.get(1)?)?, address(words.get(2)?)?);
    let state = u8::from_str_radix(words.get(3)?, 16).ok()?;
    let received = u64::from_str_radix(words.get(4)?.split_once(':')?.1, 16).ok()?;
    let inode = words.get(9)?.parse().ok()?;
    Some(Socket {
        local,
        remote,
        state,
        received,
        inode,
    })
}

/// Addresses are written as words of four bytes in the machine's order, ports as numbers.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .map(|at| {
            u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16)
                .ok()
                .map(u32::to_ne_bytes)
        })
        .collect::<Option<_>>()?;
    let ip = match words.as_slice() {
        [four] => IpAddr::V4(Ipv4Addr::from(*four)),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&[*a, *b, *c, *d].concat());
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0201F40A:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0201F40A:1F90 0101F40A:C001 01 00000000:00000005 00:00000000 00000000     0        0 112 1 0 20 4 30 10 -1
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 113 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000201F40A:1F91 0000000000000000FFFF00000201F40A:C002 01 00000000:00000000 00:00000000 00000000     0        0 114 1 0
";

    #[test]
    fn sockets_are_read_with_their_addresses_and_states() {
        let network = Network::parse(TCP, TCP6, "", "");
        assert_eq!(network.tcp.len(), 4);
        assert_eq!(network.tcp[0].local, "10.244.1.2:8080".parse().unwrap());
        assert!(network.tcp[0].is_listening() && !network.tcp[0].is_connected());
        assert!(network.tcp[1].is_connected() && !network.tcp[1].is_inside());
        assert_eq!(network.tcp[1].received, 5);
        assert!(network.tcp[2].local.ip().is_unspecified());
        assert_eq!(
            network.tcp[3].local.ip(),
            "10.244.1.2".parse::<IpAddr>().unwrap()
        );
        assert!(network.tcp[3].is_inside());
    }

    #[test]
    fn multipath_sockets_are_counted() {
        let text = "protocol  size sockets  memory press\nMPTCPv6   2048      0      0   no\nMPTCP     1976      3      0   no\nTCP 1 9 0\n";
        assert_eq!(Network::default().with_protocols(text).multipath, 3);
    }
}
