//! A store that misbehaves on demand: a relay between the workers and the lab's S3 server.
//!
//! Workers are told the relay's address. On a good day bytes go through; in a bad mode connections are refused, slow,
//! cut in the middle of an object, altered on their way, or nothing comes back. What is altered or cut is real traffic
//! of the real client and the real server, so that what finds it out is what would find it out anywhere.

use anyhow::{Context, Result};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What is passed on in one go.
const CHUNK: usize = 16 << 10;
/// All connections together, when slow: a checkpoint of 32 MiB that doesn't compress takes some ten seconds each way.
const SLOW_BYTES_PER_SECOND: u64 = 3 << 20;
/// An answer's first byte, when slow, as from another continent.
const SLOW_FIRST_BYTE: Duration = Duration::from_millis(200);
/// A connection is cut after this: in the middle of a pack, behind every request without one.
const CUT_AFTER: usize = 256 << 10;
/// How often a stopped connection looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How the store behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// As it should.
    Good,
    /// Connections are closed at once, those that are open, too.
    Refusing,
    /// A few MiB a second, and late.
    Slow,
    /// Cut in the middle of an object.
    Cut,
    /// Bytes of every answer are altered.
    Garbage,
    /// Nothing goes through, nothing is closed.
    Silent,
}

const MODES: [Mode; 6] = [
    Mode::Good,
    Mode::Refusing,
    Mode::Slow,
    Mode::Cut,
    Mode::Garbage,
    Mode::Silent,
];

struct Shared {
    mode: AtomicU8,
    /// When the bytes let through so far would have passed at the slow speed.
    paid_until: Mutex<Instant>,
}

impl Shared {
    fn mode(&self) -> Mode {
        let now = self.mode.load(Ordering::Relaxed);
        let found = MODES.into_iter().find(|mode| *mode as u8 == now);
        found.unwrap_or(Mode::Good)
    }

    fn pay(&self, bytes: usize) {
        let cost = Duration::from_secs_f64(bytes as f64 / SLOW_BYTES_PER_SECOND as f64);
        let until = {
            let mut paid = self
                .paid_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *paid = (*paid).max(Instant::now()) + cost;
            *paid
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// The relay. It ends with the process.
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// Listens beside the server and passes everything on to it.
    pub fn start(listen: SocketAddr, server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(listen).context("listen as the store")?;
        let address = listener.local_addr().context("where the store listens")?;
        let shared = Arc::new(Shared {
            mode: AtomicU8::new(Mode::Good as u8),
            paid_until: Mutex::new(Instant::now()),
        });
        let relay = Self {
            address,
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(client, server, &shared));
            }
        });
        Ok(relay)
    }

    /// From now on it behaves like this.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::Relaxed);
    }
}

fn serve(client: TcpStream, server: SocketAddr, shared: &Arc<Shared>) {
    if shared.mode() == Mode::Refusing {
        return;
    }
    // A server that is down is a store that is down: the client sees its connection closed.
    let Ok(server) = TcpStream::connect(server) else {
        return;
    };
    let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    let both = Arc::clone(shared);
    thread::spawn(move || relay(client_too, server_too, &both, Way::There));
    relay(server, client, shared, Way::Back);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

fn relay(mut from: TcpStream, mut to: TcpStream, shared: &Shared, way: Way) {
    let mut chunk = vec![0; CHUNK];
    let mut passed = 0;
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        let bytes = &mut chunk[..count];
        passed += count;
        if !let_through(bytes, passed, shared, way) || to.write_all(bytes).is_err() {
            break;
        }
    }
    // Both ends, both ways: whoever waits on one learns it from the other.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Bends the bytes as the mode wants; false when the connection is to end here.
fn let_through(bytes: &mut [u8], passed: usize, shared: &Shared, way: Way) -> bool {
    while shared.mode() == Mode::Silent {
        thread::sleep(LOOK_EVERY);
    }
    match shared.mode() {
        Mode::Good | Mode::Silent => true,
        Mode::Refusing => false,
        Mode::Cut => passed < CUT_AFTER,
        Mode::Slow => {
            if way == Way::Back {
                thread::sleep(SLOW_FIRST_BYTE);
            }
            shared.pay(bytes.len());
            true
        }
        Mode::Garbage => {
            if way == Way::Back {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x55;
            }
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(ANYWHERE).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut back = client.try_clone().unwrap();
                    std::io::copy(&mut client, &mut back)
                });
            }
        });
        address
    }

    fn say(relay: &Relay, text: &[u8]) -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect(relay.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(text).ok()?;
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).ok()?;
        Some(heard)
    }

    #[test]
    fn every_mode_does_what_it_is_called() {
        let relay = Relay::start(ANYWHERE, echo()).unwrap();
        let text = b"a pack of pages";
        assert_eq!(say(&relay, text).as_deref(), Some(&text[..]));
        relay.set(Mode::Garbage);
        let heard = say(&relay, text).unwrap();
        assert_ne!(heard, text);
        relay.set(Mode::Refusing);
        assert_eq!(say(&relay, text), None);
        relay.set(Mode::Cut);
        assert_eq!(
            say(&relay, text).as_deref(),
            Some(&text[..]),
            "short enough"
        );
        assert_eq!(say(&relay, &vec![7; CUT_AFTER + CHUNK]), None);
        relay.set(Mode::Good);
        assert_eq!(say(&relay, text).as_deref(), Some(&text[..]));
    }
}
