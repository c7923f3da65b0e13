//! The runs: both sides in turn, on the same archives and the same S3 server.

use super::changed::{self, Changed, prove_equal};
use super::ours::{Captured, Objects, Ours, Restored, Stored};
use super::place::Place;
use super::rounds::Pair;
use super::theirs::Theirs;
use crate::cache;
use crate::state::Lab;
use crate::steps::Steps;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::hint;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A machine whose host takes memory back needs longer than this for a gibibyte.
const FIRST_TOUCH_MAX: Duration = Duration::from_secs(1);
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(5);
const LOOKS_MAX: u32 = 6;
/// Program that the ways of whole images and of aws are gone with; on the others they say nothing new.
const EVERY_WAY: &str = "redis";

/// What is timed, and what it is called in the table.
pub const STEPS: &[(&str, &str)] = &[
    ("final_source", "ours: last round, source, through S3"),
    ("final_target", "ours: last round, target, through S3"),
    ("engine_source", "ours: last round, source, engine alone"),
    ("engine_target", "ours: last round, target, engine alone"),
    ("first_source", "ours: first round, source, through S3"),
    ("first_target", "ours: first round, target, through S3"),
    ("zstd", "zstd -1 -T2 of the archive"),
    ("untar", "tar x of the archive"),
    ("aws_first", "first round: zstd -3 -T2 | aws s3 cp -"),
    ("aws_up", "last round: zstd -3 -T2 | aws s3 cp -"),
    ("aws_down", "last round: aws s3 cp - | zstd -d | tar x"),
    ("by_image", "last round: buildah, push, pull"),
];

/// What is known of a program after its runs.
#[derive(Default)]
pub struct Measured {
    /// Seconds of each run, by step.
    pub seconds: BTreeMap<&'static str, Vec<f64>>,
    /// Pages, and exactly the changed ones under zstd.
    pub changed: Option<Changed>,
    /// Bytes the last round stored.
    pub stored_bytes: u64,
    /// Pages that the engine found changed.
    pub stored_pages: u64,
    /// Bytes restic's second backup added.
    pub restic_bytes: u64,
    /// The most memory of its own that source or target had in a last round.
    pub peak_bytes: u64,
    /// Runs that began on a machine too busy for it.
    pub busy_runs: usize,
}

/// Everything a run needs.
pub struct Bench<'a> {
    lab: &'a Lab,
    runs: usize,
    /// Whether a machine that is too busy is measured, too.
    busy: bool,
    ours: Ours,
    theirs: Theirs<'a>,
    work: PathBuf,
}

impl<'a> Bench<'a> {
    /// Installs and builds what is missing.
    pub fn prepare(
        lab: &'a Lab,
        runs: usize,
        page_store: Option<&Path>,
        busy: bool,
        steps: &Steps,
    ) -> Result<Self> {
        let work = cache::root()?.join("bench-store");
        if work.exists() {
            fs::remove_dir_all(&work).with_context(|| format!("clear {}", work.display()))?;
        }
        fs::create_dir(&work).with_context(|| format!("create {}", work.display()))?;
        Ok(Self {
            lab,
            runs,
            busy,
            ours: Ours::prepare(page_store, steps)?,
            theirs: Theirs::prepare(lab, &work, steps)?,
            work,
        })
    }

    /// All runs of one program.
    pub fn measure(&self, program: &'static str, pair: &Pair, steps: &Steps) -> Result<Measured> {
        let place = |bucket: &str| Place::make(self.lab, bucket);
        let changed = changed::between(&pair.base, &pair.last)?;
        let restic_bytes = self
            .theirs
            .restic(&pair.base, &pair.last, &place("bench-restic")?)?;
        steps.note(format!(
            "{program}: {changed:?}; restic adds {restic_bytes} bytes"
        ));
        let mut measured = Measured {
            restic_bytes,
            changed: Some(changed),
            ..Measured::default()
        };
        for run in 0..=self.runs {
            let busy = !self.is_quiet(steps)?;
            // The first one warms up.
            let mut seconds = Seconds(BTreeMap::new());
            self.one(program, pair, &mut seconds, &mut measured)
                .with_context(|| format!("run {run}"))?;
            let text: Vec<String> = seconds
                .0
                .iter()
                .map(|(step, took)| format!("{step} {took:.3}"))
                .collect();
            steps.note(format!(
                "{program} run {run} of {}: {} bytes stored; {}",
                self.runs,
                measured.stored_bytes,
                text.join(", ")
            ));
            if run > 0 {
                measured.busy_runs += usize::from(busy);
                for (step, took) in seconds.0 {
                    measured.seconds.entry(step).or_default().push(took);
                }
            }
        }
        Ok(measured)
    }

    /// Whether the machine gives memory at its usual speed; else every figure would be its host's. Waits for that, and
    /// fails when it is in vain, unless a busy machine will do.
    fn is_quiet(&self, steps: &Steps) -> Result<bool> {
        for _ in 0..LOOKS_MAX {
            let took = first_touch();
            if took <= FIRST_TOUCH_MAX {
                return Ok(true);
            }
            let took = took.as_secs_f64();
            steps.note(format!(
                "the machine takes {took:.1} s for a gibibyte of memory"
            ));
            if self.busy {
                return Ok(false);
            }
            thread::sleep(LOOK_AGAIN_AFTER);
        }
        bail!(
            "the machine is too busy to measure anything: a gibibyte of memory takes longer than a second"
        )
    }

    /// Each way once, ours and theirs in turn.
    fn one(
        &self,
        program: &str,
        pair: &Pair,
        seconds: &mut Seconds,
        measured: &mut Measured,
    ) -> Result<()> {
        let every_way = program == EVERY_WAY;
        let place = Place::make(self.lab, "bench-ours")?;
        let aws_place = Place::make(self.lab, "bench-aws")?;
        let first = self.work.join("first.manifest");
        let base = Stored {
            archive: &pair.base,
            manifest: &first,
        };
        let captured = self
            .ours
            .capture(&pair.base, None, &first, Objects::S3(&place))?;
        seconds.took("first_source", captured.seconds.total);
        if every_way {
            let aws = self.theirs.through_aws(&pair.base, &aws_place)?;
            seconds.took("aws_first", aws.up);
        }
        seconds.took(
            "first_target",
            self.restored(&first, None, &pair.base, Objects::S3(&place))?
                .seconds
                .total,
        );
        let (captured, restored) = self.last(
            pair,
            base,
            Objects::S3(&place),
            ["final_source", "final_target"],
            seconds,
        )?;
        for peak in [captured.peak_anonymous_bytes, restored.peak_anonymous_bytes] {
            measured.peak_bytes = measured.peak_bytes.max(peak);
        }
        measured.stored_bytes = captured.stored_bytes;
        measured.stored_pages = captured.changed_pages;
        seconds.took("zstd", self.theirs.zstd(&pair.last)?);
        let folder = self.work.join("objects");
        self.last(
            pair,
            base,
            Objects::Folder(&folder),
            ["engine_source", "engine_target"],
            seconds,
        )?;
        fs::remove_dir_all(&folder).context("remove the objects")?;
        seconds.took("untar", self.theirs.untar(&pair.last)?);
        if every_way {
            let aws = self.theirs.through_aws(&pair.last, &aws_place)?;
            seconds.took("aws_up", aws.up);
            seconds.took("aws_down", aws.down);
            seconds.took("by_image", self.theirs.by_image(&pair.last)?);
        }
        Ok(())
    }

    /// The last round, there and back.
    fn last(
        &self,
        pair: &Pair,
        base: Stored,
        objects: Objects,
        [source, target]: [&'static str; 2],
        seconds: &mut Seconds,
    ) -> Result<(Captured, Restored)> {
        let manifest = self.work.join("last.manifest");
        let captured = self
            .ours
            .capture(&pair.last, Some(base), &manifest, objects)?;
        seconds.took(source, captured.seconds.total);
        let restored = self.restored(&manifest, Some(base), &pair.last, objects)?;
        seconds.took(target, restored.seconds.total);
        Ok((captured, restored))
    }

    /// A restore, whose archive is proved to be the one that was stored.
    fn restored(
        &self,
        manifest: &Path,
        base: Option<Stored>,
        archive: &Path,
        objects: Objects,
    ) -> Result<Restored> {
        let (new, out) = (self.work.join("new"), self.work.join("restored.tar"));
        let restored = self.ours.restore(manifest, base, (&new, &out), objects)?;
        prove_equal(archive, &out).context("compare what was restored")?;
        for file in [new, out] {
            fs::remove_file(file).context("remove what was restored")?;
        }
        Ok(restored)
    }
}

/// Seconds of one run, by step.
struct Seconds(BTreeMap<&'static str, f64>);

impl Seconds {
    fn took(&mut self, step: &'static str, seconds: f64) {
        self.0.insert(step, seconds);
    }
}

fn first_touch() -> Duration {
    const BYTES: usize = 1 << 30;
    let began = Instant::now();
    let mut memory = vec![0u8; BYTES];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    hint::black_box(&memory);
    began.elapsed()
}
