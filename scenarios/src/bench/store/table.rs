//! What is asked of the page store, and how it came out.

use super::measure::{Measured, STEPS};
use crate::bench::{Figure, median, rounded};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A figure, and what its ratio may be at most.
struct Bar {
    figure: &'static str,
    program: &'static str,
    says: &'static str,
    ratio_max: f64,
    of: fn(&Measured) -> Option<Figure>,
}

/// What a small pod may cost.
const KUARD_MS: f64 = 20.0;
/// What a worker may take in the last round, and more of it for each page.
const MEMORY_BYTES: u64 = 64 << 20;
const MEMORY_PAGE_BYTES: u64 = 16;

const BARS: &[Bar] = &[
    Bar {
        figure: "bytes_vs_restic",
        program: "redis",
        says: "last round, bytes / restic's second backup",
        ratio_max: 1.0 / 20.0,
        of: |measured| Some(bytes(measured.stored_bytes, measured.restic_bytes)),
    },
    Bar {
        figure: "bytes_vs_changed_redis",
        program: "redis",
        says: "last round, bytes / changed pages under zstd -1",
        ratio_max: 0.35,
        of: bytes_vs_changed,
    },
    Bar {
        figure: "bytes_vs_changed_numpy",
        program: "numpy",
        says: "the same of numpy",
        ratio_max: 0.45,
        of: bytes_vs_changed,
    },
    Bar {
        figure: "bytes_vs_changed_jvm",
        program: "jvm",
        says: "the same of a JVM, with a garbage collection between",
        ratio_max: 0.8,
        of: bytes_vs_changed,
    },
    Bar {
        figure: "source_vs_zstd",
        program: "redis",
        says: "last round, source / zstd -1 -T2 of the archive",
        ratio_max: 0.25,
        of: |measured| times(measured, &["final_source"], &["zstd"]),
    },
    Bar {
        figure: "target_vs_tar",
        program: "redis",
        says: "last round, target / tar x of the archive",
        ratio_max: 0.15,
        of: |measured| times(measured, &["final_target"], &["untar"]),
    },
    Bar {
        figure: "final_vs_recipe",
        program: "redis",
        says: "last round through S3 / buildah, push, pull",
        ratio_max: 1.0 / 25.0,
        of: |measured| times(measured, &["final_source", "final_target"], &["by_image"]),
    },
    Bar {
        figure: "first_vs_zstd_s3",
        program: "redis",
        says: "first round, source / zstd -3 -T2 | aws s3 cp -",
        ratio_max: 0.55,
        of: |measured| times(measured, &["first_source"], &["aws_first"]),
    },
    Bar {
        figure: "kuard_engine_ms",
        program: "kuard",
        says: "kuard, whole engine / what it may cost",
        ratio_max: 1.0,
        of: kuard,
    },
    Bar {
        figure: "final_memory",
        program: "redis",
        says: "last round, memory of source or target / 64 MiB and 16 B a page",
        ratio_max: 1.0,
        of: memory,
    },
];

fn bytes(ours: u64, theirs: u64) -> Figure {
    const MIB: f64 = (1 << 20) as f64;
    figure(ours as f64 / MIB, theirs as f64 / MIB, "MiB", 1)
}

fn bytes_vs_changed(measured: &Measured) -> Option<Figure> {
    let changed = measured.changed.as_ref()?;
    Some(bytes(measured.stored_bytes, changed.packed_bytes))
}

fn kuard(measured: &Measured) -> Option<Figure> {
    let engine = sums(measured, &["final_source", "final_target"])?;
    Some(figure(median(&engine) * 1e3, KUARD_MS, "ms", engine.len()))
}

fn memory(measured: &Measured) -> Option<Figure> {
    let allowed = MEMORY_BYTES + MEMORY_PAGE_BYTES * measured.changed.as_ref()?.pages;
    Some(bytes(measured.peak_bytes, allowed))
}

/// Seconds of steps together against seconds of others.
fn times(measured: &Measured, ours: &[&str], theirs: &[&str]) -> Option<Figure> {
    let (ours, theirs) = (sums(measured, ours)?, sums(measured, theirs)?);
    Some(figure(median(&ours), median(&theirs), "s", ours.len()))
}

/// What steps took together, run by run.
fn sums(measured: &Measured, steps: &[&str]) -> Option<Vec<f64>> {
    let (first, rest) = steps.split_first()?;
    let mut sums = measured.seconds.get(first)?.clone();
    for step in rest {
        for (sum, took) in sums.iter_mut().zip(measured.seconds.get(step)?) {
            *sum += took;
        }
    }
    Some(sums)
}

fn figure(ours: f64, theirs: f64, unit: &'static str, runs: usize) -> Figure {
    Figure {
        ours: rounded(ours),
        theirs: rounded(theirs),
        ratio: (ours / theirs * 1e4).round() / 1e4,
        unit,
        runs,
    }
}

/// The figures of what was measured, by name.
pub fn figures(measured: &[(&'static str, Measured)]) -> BTreeMap<&'static str, Figure> {
    let of = |bar: &Bar| {
        let (_, measured) = measured
            .iter()
            .find(|(program, _)| *program == bar.program)?;
        (bar.of)(measured)
    };
    BARS.iter()
        .filter_map(|bar| Some((bar.figure, of(bar)?)))
        .collect()
}

/// What people read.
pub fn text(measured: &[(&'static str, Measured)], figures: &BTreeMap<&str, Figure>) -> String {
    let mut text = String::new();
    for (program, measured) in measured {
        describe(&mut text, program, measured);
    }
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "\n{:<24} {:>12} {:>12} {:>8} {:>8}",
        "figure", "ours", "theirs", "ratio", "at most"
    );
    for bar in BARS {
        let Some(figure) = figures.get(bar.figure) else {
            continue;
        };
        let met = if figure.ratio <= bar.ratio_max {
            "met"
        } else {
            "MISSED"
        };
        let value = |value: f64| format!("{value:.3} {}", figure.unit);
        let _ = writeln!(
            text,
            "{:<24} {:>12} {:>12} {:>8.4} {:>8.4} {met:<6} {}",
            bar.figure,
            value(figure.ours),
            value(figure.theirs),
            figure.ratio,
            bar.ratio_max,
            bar.says
        );
    }
    text
}

fn describe(text: &mut String, program: &str, measured: &Measured) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if let Some(changed) = &measured.changed {
        let _ = writeln!(
            text,
            "\n{program}: {} of {} pages changed ({} as the engine counts); {:.2} MiB under zstd -1; stored {:.2} MiB; restic {:.2} MiB",
            changed.changed,
            changed.pages,
            measured.stored_pages,
            mib(changed.packed_bytes),
            mib(measured.stored_bytes),
            mib(measured.restic_bytes)
        );
    }
    if measured.busy_runs > 0 {
        let _ = writeln!(
            text,
            "  {} of the runs began on a machine that takes longer than a second for a gibibyte of memory: NOT BY THE RULES",
            measured.busy_runs
        );
    }
    for (step, says) in STEPS {
        if let Some(took) = measured.seconds.get(step) {
            let _ = writeln!(text, "  {says:<48} {:>9.3} s", median(took));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_of_the_medians_of_what_its_steps_took_together_and_says_when_it_misses() {
        let redis = Measured {
            seconds: BTreeMap::from([
                ("final_source", vec![0.3, 0.5, 0.4]),
                ("final_target", vec![0.1, 0.1, 0.1]),
                ("by_image", vec![20.0, 25.0, 30.0]),
                ("zstd", vec![1.0, 1.0, 1.0]),
            ]),
            stored_bytes: 6 << 20,
            restic_bytes: 300 << 20,
            ..Measured::default()
        };
        let measured = [("redis", redis)];
        let figures = figures(&measured);
        assert!((figures["final_vs_recipe"].ratio - 0.02).abs() < 1e-9);
        assert!((figures["bytes_vs_restic"].ratio - 0.02).abs() < 1e-9);
        assert!(
            !figures.contains_key("target_vs_tar"),
            "nothing was untarred"
        );
        let text = text(&measured, &figures);
        let verdict = |figure: &str| {
            text.lines()
                .find(|line| line.starts_with(figure))
                .unwrap()
                .contains("MISSED")
        };
        assert!(verdict("source_vs_zstd"));
        assert!(!verdict("final_vs_recipe"));
    }
}
