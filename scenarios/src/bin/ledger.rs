//! ledger: counts, and lets nobody doubt it.
//!
//! Every 10 ms a number one higher than the last is printed to standard output, appended to a file in the root file
//! system, and becomes the answer over HTTP: a gap or a repeat can be seen in any of the three. `/` the number ·
//! `/log` the file's last number and whether the file is whole, `500` if not · `/healthy` `/ready`.
//! Flags: `--port=8080`, `--period-ms=10`.
//!
//! The count is in memory alone and starts at 1 with an emptied file: a ledger that was restarted instead of restored
//! shows small numbers again, whoever reads. It sleeps and never looks at a clock, so no jump of clocks between two
//! nodes shows. A line is one write: a checkpoint falls between lines or before one is counted, never within.

mod answer;

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const BOOK: &str = "/ledger.log";
const PERIOD_MS: u64 = 10;

fn main() -> ExitCode {
    let flags = answer::flags();
    let port = answer::number(&flags, "port")
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(8080);
    let period = Duration::from_millis(answer::number(&flags, "period-ms").unwrap_or(PERIOD_MS));
    // Two ledgers in one pod have root file systems of their own, but when run by hand they share one.
    let book = if port == 8080 {
        BOOK.to_owned()
    } else {
        BOOK.replace(".log", &format!("-{port}.log"))
    };
    let current = Arc::new(AtomicU64::new(0));
    let (counter, path) = (Arc::clone(&current), book.clone());
    thread::spawn(move || {
        if let Err(error) = count(&path, period, &counter) {
            // A ledger that can't write is of no use to anyone: better gone than answering an old number.
            eprintln!("ledger: write {path}: {error}");
            std::process::exit(1);
        }
    });
    let page = move |path: &str, _: &str| match path {
        "/" => (200, format!("{}\n", current.load(Ordering::Acquire))),
        "/healthy" | "/ready" => (200, "ok\n".to_owned()),
        "/log" => match fs::read_to_string(&book) {
            Ok(text) => inspect(&text),
            Err(error) => (500, format!("read {book}: {error}\n")),
        },
        _ => (404, "no such page\n".to_owned()),
    };
    match answer::serve(port, page) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ledger: listen on port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count(book: &str, period: Duration, current: &AtomicU64) -> io::Result<()> {
    let mut book = File::create(book)?;
    let mut out = io::stdout();
    for number in 1u64.. {
        let line = format!("{number}\n");
        book.write_all(line.as_bytes())?;
        out.write_all(line.as_bytes())?;
        out.flush()?;
        // Last: what is answered over HTTP is in the book and in the log.
        current.store(number, Ordering::Release);
        thread::sleep(period);
    }
    Ok(())
}

/// Whether the book holds 1, 2, 3 … without a gap or a repeat, and its last number.
fn inspect(text: &str) -> (u16, String) {
    let mut last = 0u64;
    // The line being written just now is no line yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        match line.parse::<u64>() {
            Ok(number) if number == last + 1 => last = number,
            Ok(number) if number <= last => return (500, format!("last {last} repeat {number}\n")),
            Ok(number) => return (500, format!("last {last} gap before {number}\n")),
            Err(_) => return (500, format!("last {last} rubbish {line:?}\n")),
        }
    }
    (200, format!("last {last} whole\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_book_is_told_from_one_with_a_gap_a_repeat_or_rubbish() {
        assert_eq!(inspect("1\n2\n3\n"), (200, "last 3 whole\n".into()));
        assert_eq!(inspect("1\n2\n4\n"), (500, "last 2 gap before 4\n".into()));
        assert_eq!(inspect("1\n2\n2\n"), (500, "last 2 repeat 2\n".into()));
        assert_eq!(inspect("1\n2\nx\n"), (500, "last 2 rubbish \"x\"\n".into()));
    }

    #[test]
    fn a_line_half_written_is_not_judged() {
        assert_eq!(inspect("1\n2\n1"), (200, "last 2 whole\n".into()));
        assert_eq!(inspect(""), (200, "last 0 whole\n".into()));
    }
}
