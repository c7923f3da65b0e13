//! `lab-sim`: what `cargo lab sim` runs.

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use lab_sim::{schedule::Schedule, stage, verdict};

/// Runs production code on seeds.
#[derive(Parser)]
struct Arguments {
    /// Seeds FROM..TO.
    #[arg(long, value_name = "FROM..TO", value_parser = seeds, default_value = "0..1000")]
    seeds: (u64, u64),
    /// One seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Print its events.
    #[arg(long)]
    trace: bool,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("FROM..TO is wanted")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
    Ok((number(from)?, number(to)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    verdict::keep_panics();
    let (from, to) = match arguments.seed {
        Some(seed) => (seed, seed + 1),
        None => arguments.seeds,
    };
    let began = Instant::now();
    let mut violated = 0_u64;
    let mut ends = std::collections::BTreeMap::<String, u64>::new();
    let mut events = 0;
    for seed in from..to {
        let told = stage::play(Schedule::drawn(seed), None, arguments.trace);
        for line in &told.lines {
            println!("{line}");
        }
        events += told.events;
        for end in told.ends {
            *ends.entry(end).or_default() += 1;
        }
        if !told.violations.is_empty() {
            violated += 1;
            println!(
                "seed {seed}: {} (replay: cargo lab sim --seed {seed} --trace)",
                told.violations[0].what
            );
        }
        if arguments.trace {
            println!(
                "hash {:016x}, {} ms of its own time",
                told.hash, told.virtual_ms
            );
        }
    }
    eprintln!(
        "{ends:?} {events} events, {:.2} ms a schedule",
        began.elapsed().as_secs_f64() * 1e3 / (to - from).max(1) as f64
    );
    println!("{} schedules, {violated} violations", to - from);
    if violated == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
