//! A small HTTP/1.1 client for the lab and its stories: one request, one connection, one time limit.
//!
//! Enough for workloads' pages, probes and a registry's uploads on the machine's own bridge; not for the internet.

use anyhow::{Context, Result, bail};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status code.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// GETs a path; any status is an answer.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer> {
    request(address, "GET", path, &[], (0, io::empty()), limit)
}

/// Sends a request with a body of known size. `limit` is for connecting and for each read and write, so an endpoint
/// that answers nothing is noticed after it.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: (u64, impl Read),
    limit: Duration,
) -> Result<Answer> {
    let described = || format!("{method} http://{address}{path}");
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(described)?;
    stream
        .set_read_timeout(Some(limit))
        .and_then(|()| stream.set_write_timeout(Some(limit)))
        .with_context(described)?;
    let (size, mut content) = body;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {size}\r\n"
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream
        .write_all(format!("{head}\r\n").as_bytes())
        .with_context(described)?;
    io::copy(&mut content, &mut stream).with_context(described)?;
    read_answer(BufReader::new(stream), method == "HEAD").with_context(described)
}

fn read_answer(mut stream: impl BufRead, head_only: bool) -> Result<Answer> {
    let mut line = String::new();
    stream
        .read_line(&mut line)
        .context("read the status line")?;
    let status = line
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("understand the status line {line:?}"))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).context("read a header")?;
        if line == "\r\n" {
            break;
        }
        let Some((name, value)) = line
            .strip_suffix("\r\n")
            .and_then(|header| header.split_once(':'))
        else {
            bail!("the answer was cut off, or is none, at the header {line:?}");
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer {
        status,
        headers,
        body: Vec::new(),
    };
    if head_only {
        return Ok(answer);
    }
    if answer
        .header("transfer-encoding")
        .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    {
        answer.body = read_chunks(stream)?;
    } else if let Some(size) = answer
        .header("content-length")
        .and_then(|size| size.parse::<usize>().ok())
    {
        answer.body = vec![0; size];
        stream
            .read_exact(&mut answer.body)
            .context("read the body")?;
    } else {
        stream
            .read_to_end(&mut answer.body)
            .context("read the body")?;
    }
    Ok(answer)
}

fn read_chunks(mut stream: impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).context("read a chunk's size")?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16)
            .with_context(|| format!("understand the chunk size {line:?}"))?;
        let start = body.len();
        body.resize(start + size, 0);
        stream
            .read_exact(&mut body[start..])
            .context("read a chunk")?;
        stream
            .read_line(&mut String::new())
            .context("read a chunk's end")?;
        if size == 0 {
            return Ok(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn answer(text: &str) -> Result<Answer> {
        read_answer(BufReader::new(text.as_bytes()), false)
    }

    #[test]
    fn a_body_is_read_by_length_by_chunks_or_to_the_end() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nhello",
        ] {
            assert_eq!(answer(text).unwrap().text(), "hello");
        }
    }

    #[test]
    fn an_answer_cut_off_is_an_error_and_not_a_short_body() {
        assert!(answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello").is_err());
        assert!(answer("HTTP/1.1 200 OK\r\nContent-Le").is_err());
        assert!(answer("").is_err());
    }

    #[test]
    fn an_endpoint_that_says_nothing_is_given_up_after_the_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let silent = thread::spawn(move || {
            listener
                .accept()
                .map(|accepted| (accepted, thread::sleep(Duration::from_millis(600))))
        });
        let error = get(address, "/", Duration::from_millis(100)).unwrap_err();
        assert!(
            error.to_string().contains("GET http://127.0.0.1"),
            "{error}"
        );
        silent.join().unwrap().unwrap();
    }
}
