//! `--probe URL`: a client that asks while the pod moves, and says how long nobody answered: the *downtime*, which is
//! not the freeze. It sees what users of that address see: name resolution, Service, network and all.
//!
//! Asking is plain HTTP/1.0 over a fresh connection each time, because a kept connection is closed by the move. An
//! answer is good when its status is below 400.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

/// Between two questions: the downtime is exact to two of these.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A question that isn't answered by then is a bad one: the frozen pod's kernel still takes connections.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);

/// After the end of the migration the first good answer is waited for this long.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    authority: String,
    path: String,
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("http://")
            .ok_or("an address like http://10.96.12.7:8080/ready is needed")?;
        let (host, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if host.is_empty() {
            return Err("there is no host in the address".to_owned());
        }
        let has_port = host
            .rsplit(':')
            .next()
            .is_some_and(|port| port.parse::<u16>().is_ok())
            && host.contains(':');
        let authority = if has_port {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        Ok(Self {
            authority,
            path: path.to_owned(),
        })
    }
}

/// What a client saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Good answers.
    pub good: u64,
    /// Questions without one.
    pub bad: u64,
    /// The longest time between two good answers that had a bad one between them.
    pub downtime: Option<Duration>,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            good,
            bad,
            downtime,
        } = self;
        match (downtime, good) {
            (Some(downtime), _) => write!(
                f,
                "{}ms ({good} good answers, {bad} bad ones)",
                downtime.as_millis()
            ),
            (None, 0) => write!(f, "unknown: no good answer was seen"),
            (None, _) => write!(f, "none seen ({good} good answers, {bad} bad ones)"),
        }
    }
}

/// Takes answers in, in their order.
#[derive(Debug, Default)]
struct Record {
    seen: Seen,
    last_good: Option<Instant>,
    bad_since_good: bool,
}

impl Record {
    fn take(&mut self, good: bool, at: Instant) {
        if !good {
            self.seen.bad += 1;
            self.bad_since_good = true;
            return;
        }
        self.seen.good += 1;
        if let (Some(last), true) = (self.last_good, self.bad_since_good) {
            let gap = at.duration_since(last);
            self.seen.downtime = Some(self.seen.downtime.map_or(gap, |longest| longest.max(gap)));
        }
        self.last_good = Some(at);
        self.bad_since_good = false;
    }
}

/// A client at work.
pub struct Prober {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Seen>,
}

impl Prober {
    /// Begins to ask.
    pub fn start(address: Address) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self {
            stop,
            task: tokio::spawn(ask_until(address, stopped)),
        }
    }

    /// Asks until the next good answer, and gives what was seen.
    pub async fn finish(self) -> Seen {
        // The task is waiting for it, or gone, which is the same.
        let _ = self.stop.send(());
        self.task.await.unwrap_or_default()
    }
}

async fn ask_until(address: Address, mut stopped: oneshot::Receiver<()>) -> Seen {
    let mut record = Record::default();
    let mut give_up: Option<Instant> = None;
    let mut beat = tokio::time::interval(ASK_EVERY);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if give_up.is_none()
            && !matches!(stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        {
            give_up = Some(Instant::now() + LAST_PATIENCE);
        }
        let answered = tokio::time::timeout(ANSWER_WITHIN, ask(&address)).await;
        let good = matches!(answered, Ok(Ok(status)) if status < 400);
        record.take(good, Instant::now());
        if give_up.is_some_and(|until| !record.bad_since_good || Instant::now() > until) {
            return record.seen;
        }
    }
}

async fn ask(address: &Address) -> io::Result<u16> {
    let mut stream = TcpStream::connect(&address.authority).await?;
    let question = format!(
        "GET {} HTTP/1.0\r\nHost: {}\r\n\r\n",
        address.path, address.authority
    );
    stream.write_all(question.as_bytes()).await?;
    // "HTTP/1.1 200": the rest of the answer doesn't matter.
    let mut head = [0u8; 12];
    stream.read_exact(&mut head).await?;
    let status = std::str::from_utf8(&head[9..])
        .ok()
        .and_then(|digits| digits.parse().ok());
    status.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_a_port_and_a_path() {
        let address: Address = "http://10.0.0.1:8080/ready?x=1".parse().unwrap();
        assert_eq!(
            (address.authority.as_str(), address.path.as_str()),
            ("10.0.0.1:8080", "/ready?x=1")
        );
        let address: Address = "http://kuard.default".parse().unwrap();
        assert_eq!(
            (address.authority.as_str(), address.path.as_str()),
            ("kuard.default:80", "/")
        );
        assert!("https://kuard".parse::<Address>().is_err());
        assert!("http:///ready".parse::<Address>().is_err());
    }

    #[test]
    fn downtime_is_from_the_last_good_answer_to_the_first_good_one_over_a_bad_one() {
        let start = Instant::now();
        let mut record = Record::default();
        for (good, ms) in [
            (true, 0),
            (true, 500),
            (false, 510),
            (false, 900),
            (true, 1_300),
            (true, 9_000),
        ] {
            record.take(good, start + Duration::from_millis(ms));
        }
        assert_eq!(
            record.seen,
            Seen {
                good: 4,
                bad: 2,
                downtime: Some(Duration::from_millis(800))
            }
        );
    }

    #[tokio::test]
    async fn a_client_that_is_always_answered_sees_no_downtime() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await;
                let _ = stream.read(&mut [0; 256]).await;
            }
        });
        let prober = Prober::start(address);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let seen = prober.finish().await;
        assert!(seen.good > 1 && seen.downtime.is_none(), "{seen:?}");
    }
}
