//! kuard: a small web server to be moved about, in the manner of the demo of that name.
//!
//! `/` host, uptime and counters · `/healthy` `/ready` · `/mem?mib=N[&seed=S]` holds N MiB whose content follows from
//! the seed (default 1) · `/mem/digest` computes anew what is held and what should be, and answers 500 if they differ.
//! Flags: `--port=8080`, `--mib=0` (memory held from the start), `--seed=1`.
//!
//! All its state is memory: the counters and the held bytes are right after a migration or it was not one. Runs as
//! root (CRIU without CAP_SYS_RESOURCE dumps no other user).

mod answer;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

const MIB: usize = 1 << 20;
/// More than any story asks for, less than would hurt the machine the lab runs on.
const MIB_MAX: u64 = 4096;

#[derive(Default)]
struct Memory {
    seed: u64,
    words: Vec<u64>,
}

/// The next number of a splitmix64 generator: every word of the memory differs, so no page can be mistaken for another.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Memory {
    fn hold(mib: u64, seed: u64) -> Self {
        let count = mib as usize * MIB / size_of::<u64>();
        let mut state = seed;
        Self {
            seed,
            words: (0..count).map(|_| next(&mut state)).collect(),
        }
    }

    fn digest(words: impl Iterator<Item = u64>) -> u64 {
        // FNV-1a over words: one changed bit anywhere changes it, and it is quick.
        words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
            (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    fn report(&self) -> (u16, String) {
        let mut state = self.seed;
        let (held, due) = (
            Self::digest(self.words.iter().copied()),
            Self::digest(self.words.iter().map(|_| next(&mut state))),
        );
        let status = if held == due { 200 } else { 500 };
        (
            status,
            format!(
                "mib {} seed {} held {held:016x} due {due:016x}\n",
                self.words.len() * size_of::<u64>() / MIB,
                self.seed
            ),
        )
    }
}

fn main() -> ExitCode {
    let flags = answer::flags();
    let port = answer::number(&flags, "port")
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(8080);
    let seed = answer::number(&flags, "seed").unwrap_or(1);
    let memory = Arc::new(RwLock::new(Memory::hold(
        answer::number(&flags, "mib").unwrap_or(0).min(MIB_MAX),
        seed,
    )));
    let (began, requests) = (Instant::now(), AtomicU64::new(0));
    println!("kuard listens on port {port}");
    let page = move |path: &str, query: &str| {
        let count = requests.fetch_add(1, Ordering::Relaxed) + 1;
        match path {
            "/healthy" | "/ready" => (200, "ok\n".to_owned()),
            "/mem" => match answer::number(query, "mib").filter(|mib| *mib <= MIB_MAX) {
                Some(mib) => {
                    let held = Memory::hold(mib, answer::number(query, "seed").unwrap_or(1));
                    let report = held.report();
                    *memory
                        .write()
                        .unwrap_or_else(|poisoned| poisoned.into_inner()) = held;
                    report
                }
                None => (400, format!("say /mem?mib=N with N up to {MIB_MAX}\n")),
            },
            "/mem/digest" => memory
                .read()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .report(),
            "/" => {
                let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                let uptime = began.elapsed().as_millis();
                (
                    200,
                    format!(
                        "host {}\nuptime_ms {uptime}\nrequests {count}\n",
                        host.trim()
                    ),
                )
            }
            _ => (404, "no such page\n".to_owned()),
        }
    };
    match answer::serve(port, page) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kuard: listen on port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_vouched_for_and_one_flipped_bit_is_seen() {
        let mut memory = Memory::hold(1, 7);
        assert_eq!(memory.words.len(), MIB / 8);
        assert_eq!(memory.report().0, 200);
        memory.words[1000] ^= 1;
        assert_eq!(memory.report().0, 500);
    }

    #[test]
    fn the_seed_decides_the_content() {
        assert_eq!(Memory::hold(1, 7).report(), Memory::hold(1, 7).report());
        assert_ne!(Memory::hold(1, 7).report(), Memory::hold(1, 8).report());
    }

    #[test]
    fn a_number_is_found_among_others_and_rubbish_is_none() {
        assert_eq!(answer::number("mib=64&seed=1", "seed"), Some(1));
        assert_eq!(answer::number("port=1 mib=x", "mib"), None);
        assert_eq!(answer::number("amib=3", "mib"), None);
    }
}
