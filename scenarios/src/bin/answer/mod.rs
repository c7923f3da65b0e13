//! The HTTP server of the workloads: threads, blocking reads, one request per connection.
//!
//! Plain on purpose: what a checkpoint must carry is what a stock CRIU can carry. Listens on every address, since a
//! moved pod has another; ordinary epoll-free sockets, no io_uring; the standard library asks for plain TCP, not MPTCP.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// A client that sends nothing holds a thread no longer than this.
const CLIENT_WITHIN: Duration = Duration::from_secs(10);

/// Answers requests on `port` with what `page` makes of their path and query, for ever.
pub fn serve(
    port: u16,
    page: impl Fn(&str, &str) -> (u16, String) + Send + Sync + 'static,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let page = Arc::new(page);
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        let page = Arc::clone(&page);
        // A client that went away is no concern of the next one.
        thread::spawn(move || answer(client, page.as_ref()).ok());
    }
    Ok(())
}

fn answer(
    mut client: TcpStream,
    page: impl Fn(&str, &str) -> (u16, String),
) -> std::io::Result<()> {
    client.set_read_timeout(Some(CLIENT_WITHIN))?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
    }
    let target = request.split_whitespace().nth(1).unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (status, body) = page(path, query);
    let reason = if status == 200 { "OK" } else { "Not so" };
    write!(
        client,
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A number from a query like `mib=64&seed=1`, or from the command line in the same form.
pub fn number(query: &str, name: &str) -> Option<u64> {
    query
        .split(['&', ' '])
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// The command line as `name=value` words: `--port=8081` becomes `port=8081`.
pub fn flags() -> String {
    std::env::args()
        .skip(1)
        .map(|word| word.trim_start_matches('-').to_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
