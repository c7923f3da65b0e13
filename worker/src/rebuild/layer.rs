//! A layer on disk: a plan, and the files its bytes are in.
//!
//! ```text
//!  new          what was new in the archive, as it was gathered
//!  edits        what was changed for the restore
//!  base-0 …     what was new in rounds before it: other names of the files they were received in
//!  layer.json   {"version":2,"pieces":[[length, file, offset], …]}    file: 0 zeros, 1 new, 2 edits, 3 base-0 …
//! ```
//! Version 1 had no bases.
//! Workers before 0.2 wrote `layer.tar` whole; one that was armed before an upgrade is still served.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use pages::source::{Opened, Origin, ReadAt, View};
use serde::{Deserialize, Serialize};

use crate::{archive::layer::Part, rounds::Kept};

const VERSION: u32 = 2;
/// Read, too.
const VERSION_WITHOUT_BASES: u32 = 1;
const NEW: &str = "new";
const EDITS: &str = "edits";
const PLAN: &str = "layer.json";
/// Of workers before 0.2.
const WHOLE: &str = "layer.tar";

const IN_NOTHING: u8 = 0;
const IN_NEW: u8 = 1;
const IN_EDITS: u8 = 2;
const IN_FIRST_BASE: u8 = 3;
/// A chain of bases is never longer than the rounds a user may ask for, 5; twice that is a plan that was not ours.
const BASES_MAX: u8 = 10;

/// A layer that can be read.
pub struct Layer {
    view: View,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    version: u32,
    /// Length, file, offset.
    pieces: Vec<(u64, u8, u64)>,
}

/// Where the new bytes of the archive in `folder` are to be gathered.
pub fn new_path(folder: &Path) -> PathBuf {
    folder.join(NEW)
}

/// Removes what a layer consists of; what is not there is removed already.
pub fn remove(folder: &Path) -> io::Result<()> {
    let base = |number: u8| base_name(IN_FIRST_BASE + number);
    let bases = (0..BASES_MAX).map(base);
    let files = [PLAN, NEW, EDITS, WHOLE].map(str::to_owned);
    for file in files.into_iter().chain(bases) {
        match fs::remove_file(folder.join(file)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Layer {
    /// Writes the plan of a layer and what is ours in it. The archive's own bytes are in the file [`new_path`], and in
    /// files of its bases, which get another name here.
    pub fn write(folder: &Path, archive: &Kept, parts: Vec<Part>) -> io::Result<Self> {
        let numbers = file_numbers(folder, archive)?;
        let mut edits = File::create(folder.join(EDITS))?;
        let mut pieces = Vec::new();
        let mut edited = 0;
        for part in parts {
            match part {
                Part::Archive(range) => {
                    let view = &archive.view;
                    for (len, origin) in view.origins(range.start, range.end - range.start) {
                        pieces.push(match origin {
                            Origin::Zeros => (len, IN_NOTHING, 0),
                            Origin::Source { source, offset } => {
                                (len, number_of(&numbers, &source)?, offset)
                            }
                        });
                    }
                }
                Part::Ours(bytes) => {
                    edits.write_all(&bytes)?;
                    pieces.push((bytes.len() as u64, IN_EDITS, edited));
                    edited += bytes.len() as u64;
                }
            }
        }
        let plan = Plan {
            version: VERSION,
            pieces,
        };
        let bytes = serde_json::to_vec(&plan).expect("numbers always serialize");
        fs::write(folder.join(PLAN), bytes)?;
        Self::of(folder, &plan)
    }

    /// Opens the layer in a folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let plan = match fs::read(folder.join(PLAN)) {
            Ok(plan) => plan,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let whole = Opened::new(File::open(folder.join(WHOLE))?)?;
                let mut view = View::default();
                let (len, source, offset) = (whole.size(), Arc::new(whole), 0);
                view.push(len, Origin::Source { source, offset });
                return Ok(Self { view });
            }
            Err(error) => return Err(error),
        };
        let plan: Plan = serde_json::from_slice(&plan)?;
        if plan.version != VERSION && plan.version != VERSION_WITHOUT_BASES {
            let text = format!(
                "a layer of version {}, this worker knows {VERSION}",
                plan.version
            );
            return Err(io::Error::other(text));
        }
        Self::of(folder, &plan)
    }

    /// Its bytes.
    pub fn view(&self) -> &View {
        &self.view
    }

    fn of(folder: &Path, plan: &Plan) -> io::Result<Self> {
        let open = |name: &str| -> io::Result<Arc<dyn ReadAt>> {
            Ok(Arc::new(Opened::new(File::open(folder.join(name))?)?))
        };
        let (new, edits) = (open(NEW)?, open(EDITS)?);
        let last = plan.pieces.iter().map(|(_, file, _)| *file).max();
        let bases = (IN_FIRST_BASE..=last.unwrap_or(IN_NOTHING))
            .map(|number| open(&base_name(number)))
            .collect::<io::Result<Vec<_>>>()?;
        let mut view = View::default();
        for (len, file, offset) in &plan.pieces {
            let origin = |source: &Arc<dyn ReadAt>| Origin::Source {
                source: source.clone(),
                offset: *offset,
            };
            let origin = match *file {
                IN_NOTHING => Origin::Zeros,
                IN_NEW => origin(&new),
                IN_EDITS => origin(&edits),
                base => origin(&bases[usize::from(base - IN_FIRST_BASE)]),
            };
            view.push(*len, origin);
        }
        Ok(Self { view })
    }
}

fn base_name(number: u8) -> String {
    format!("base-{}", number.saturating_sub(IN_FIRST_BASE))
}

/// The file's number in plans, by the source that reads it; bases get their names in this folder.
fn file_numbers(folder: &Path, archive: &Kept) -> io::Result<Vec<(u8, Arc<dyn ReadAt>)>> {
    let mut numbers = Vec::new();
    for (at, file) in (0_u8..).zip(&archive.files) {
        let number = match at {
            0 => IN_NEW,
            later if later <= BASES_MAX => {
                let number = IN_FIRST_BASE + later - 1;
                name_again(&file.path, &folder.join(base_name(number)))?;
                number
            }
            _ => return Err(io::Error::other("an archive with too many bases")),
        };
        numbers.push((number, Arc::clone(&file.source)));
    }
    Ok(numbers)
}

/// Another name for a file; where layers are on a file system of their own, another file.
fn name_again(file: &Path, name: &Path) -> io::Result<()> {
    match fs::hard_link(file, name) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            fs::copy(file, name).map(drop)
        }
        linked => linked,
    }
}

fn number_of(numbers: &[(u8, Arc<dyn ReadAt>)], source: &Arc<dyn ReadAt>) -> io::Result<u8> {
    let same = |(_, known): &&(u8, Arc<dyn ReadAt>)| Arc::ptr_eq(known, source);
    let found = numbers.iter().find(same).map(|(number, _)| *number);
    found.ok_or_else(|| io::Error::other("an archive with bytes in an unknown file"))
}
