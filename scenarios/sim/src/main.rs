//! `lab-sim`: what `cargo lab sim` runs.

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use lab_sim::{
    cases,
    mistakes::{Known, MISTAKES},
    runs,
    schedule::Schedule,
    stage,
    stage::Told,
    verdict,
};

/// As the daemon has, and the sooner is a schedule played.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs production code on seeds, in a world that breaks.
#[derive(Parser)]
#[command(name = "cargo lab sim")]
struct Arguments {
    /// Play the schedules of these seeds.
    #[arg(long, value_name = "FROM..TO", value_parser = seeds, default_value = "0..100000")]
    seeds: (u64, u64),
    /// Play one seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Play one named case.
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    case: Option<String>,
    /// List the named cases: the holes that are known beforehand.
    #[arg(long)]
    cases: bool,
    /// Make each deliberate mistake, or the one of `--mistake`, and see it caught.
    #[arg(long)]
    mistakes: bool,
    /// Make one deliberate mistake while playing one seed or case, or with `--mistakes`.
    #[arg(long, value_name = "NAME")]
    mistake: Option<String>,
    /// Print every event of the one seed or case.
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
    let well = if arguments.cases {
        list_cases();
        true
    } else if arguments.mistakes {
        mistakes(arguments.mistake.as_deref())
    } else if let Some(seed) = arguments.seed {
        one(&arguments, Schedule::drawn(seed))
    } else if let Some(name) = &arguments.case {
        match cases::CASES.iter().find(|case| case.name == name) {
            Some(case) => one(&arguments, (case.schedule)()),
            None => {
                eprintln!("there is no case {name:?}; see --cases");
                false
            }
        }
    } else {
        many(arguments.seeds)
    };
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one(arguments: &Arguments, schedule: Schedule) -> bool {
    let wanted = arguments.mistake.as_deref();
    let known = MISTAKES.iter().find(|known| Some(known.name) == wanted);
    if wanted.is_some() && known.is_none() {
        eprintln!("there is no such mistake; they are:");
        MISTAKES
            .iter()
            .for_each(|known| eprintln!("  {}", known.name));
        return false;
    }
    let told = stage::play(
        schedule,
        known.map_or(&[][..], |known| known.mistakes),
        arguments.trace,
    );
    let Told {
        violations,
        hash,
        events,
        virtual_ms,
        ends,
        lines,
    } = told;
    for line in lines {
        println!("{line}");
    }
    println!(
        "{events} events ({hash:016x}) in {}.{:03} s of its own time; migrations ended as {}",
        virtual_ms / 1_000,
        virtual_ms % 1_000,
        ends.join(", ")
    );
    for violation in &violations {
        println!("violation at {} ms: {}", violation.at_ms, violation.what);
    }
    println!(
        "1 schedules, {} violations",
        usize::from(!violations.is_empty())
    );
    violations.is_empty()
}

fn many((from, to): (u64, u64)) -> bool {
    let began = Instant::now();
    let sum = runs::many(from, to, |seed, what| {
        println!("seed {seed}: {what}\n  replay it with: cargo lab sim --seed {seed} --trace");
    });
    let ends: Vec<String> = sum
        .ends
        .iter()
        .map(|(end, n)| format!("{n} {end}"))
        .collect();
    println!(
        "{} events in {:.1} s; migrations ended as {}",
        sum.events,
        began.elapsed().as_secs_f64(),
        ends.join(", ")
    );
    println!(
        "{} schedules, {} violations",
        sum.schedules,
        sum.violated.len()
    );
    sum.violated.is_empty()
}

fn mistakes(only: Option<&str>) -> bool {
    let mut all = true;
    println!("| mistake | made by | caught after seeds | of at most | by |");
    println!("| --- | --- | --- | --- | --- |");
    let wanted = |known: &&Known| only.is_none_or(|name| known.name == name);
    for known in MISTAKES.iter().filter(wanted) {
        let (after, by) = match runs::caught(known) {
            Some((seed, what)) => ((seed + 1).to_string(), what),
            None => {
                all = false;
                ("**not caught**".to_owned(), String::new())
            }
        };
        println!(
            "| {} | {} | {after} | {} | {by} |",
            known.name, known.how, known.seeds_max
        );
    }
    all
}

fn list_cases() {
    for case in &cases::CASES {
        println!("{:<32} {}", case.name, case.hole);
    }
}
