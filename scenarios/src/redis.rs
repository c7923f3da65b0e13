//! Redis' protocol, as far as stories and benches speak it.

use anyhow::{Context, Result, bail};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A frozen redis says nothing; who speaks to it then looks where the pod is.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// One connection, speaking redis' protocol.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Result<Self> {
        Self::open_for(address, ANSWER_WITHIN)
    }

    /// Connects, and waits for an answer this long.
    pub fn open_for(address: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)
            .with_context(|| format!("connect to redis at {address}"))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends commands all together, then reads their answers.
    pub fn ask(&mut self, commands: &[Vec<String>]) -> Result<Vec<Option<String>>> {
        let mut text = String::new();
        for words in commands {
            text += &format!("*{}\r\n", words.len());
            for word in words {
                text += &format!("${}\r\n{word}\r\n", word.len());
            }
        }
        self.0
            .get_mut()
            .write_all(text.as_bytes())
            .context("ask redis")?;
        commands.iter().map(|_| self.answer()).collect()
    }

    /// A simple string, a number or a bulk string; `None` for a key that is not there.
    fn answer(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("read redis' answer")?;
        let Some(line) = line.strip_suffix("\r\n") else {
            bail!("redis' answer was cut off at {line:?}")
        };
        match line.split_at_checked(1) {
            Some(("+" | ":", text)) => Ok(Some(text.to_owned())),
            Some(("$", "-1")) => Ok(None),
            Some(("$", size)) => {
                let mut bytes = vec![0; size.parse::<usize>()? + 2];
                self.0.read_exact(&mut bytes).context("read redis' value")?;
                bytes.truncate(bytes.len() - 2);
                Ok(Some(
                    String::from_utf8(bytes).context("understand redis' value")?,
                ))
            }
            Some(_) | None => bail!("redis answered {line:?}"),
        }
    }
}

/// A command's words.
pub fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn answers_of_every_kind_are_read_and_an_error_is_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .write_all(b"+OK\r\n:7\r\n$3\r\na\r\n\r\n$-1\r\n-ERR no\r\n")
                .unwrap();
            stream
        });
        let mut connection = Connection::open(address).unwrap();
        let _open = server.join().unwrap();
        let mut text = || connection.answer();
        assert_eq!(text().unwrap().as_deref(), Some("OK"));
        assert_eq!(text().unwrap().as_deref(), Some("7"));
        assert_eq!(text().unwrap().as_deref(), Some("a\r\n"));
        assert_eq!(text().unwrap(), None);
        assert!(text().unwrap_err().to_string().contains("ERR no"));
    }
}
