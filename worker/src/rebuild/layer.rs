//! A layer on disk: a plan, and the files its bytes are in.
//!
//! ```text
//!  new          what was new in the archive, as it was gathered
//!  edits        what was changed for the restore
//!  layer.json   {"version":1,"pieces":[[length, file, offset], …]}    file: 0 zeros, 1 new, 2 edits
//! ```
//! Workers before 0.2 wrote `layer.tar` whole; one that was armed before an upgrade is still served.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use pages::source::{Opened, Origin, ReadAt, View};
use serde::{Deserialize, Serialize};

use crate::archive::layer::Part;

const VERSION: u32 = 1;
const NEW: &str = "new";
const EDITS: &str = "edits";
const PLAN: &str = "layer.json";
/// Of workers before 0.2.
const WHOLE: &str = "layer.tar";

const IN_NOTHING: u8 = 0;
const IN_NEW: u8 = 1;
const IN_EDITS: u8 = 2;

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
    for file in [PLAN, NEW, EDITS, WHOLE] {
        match fs::remove_file(folder.join(file)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Layer {
    /// Writes the plan of a layer and what is ours in it. The archive's own bytes are in the file [`new_path`].
    pub fn write(folder: &Path, archive: &View, parts: Vec<Part>) -> io::Result<Self> {
        let mut edits = File::create(folder.join(EDITS))?;
        let mut pieces = Vec::new();
        let mut edited = 0;
        for part in parts {
            match part {
                Part::Archive(range) => {
                    let origins = archive.origins(range.start, range.end - range.start);
                    pieces.extend(origins.map(|(len, origin)| match origin {
                        Origin::Zeros => (len, IN_NOTHING, 0),
                        Origin::Source { source: _, offset } => (len, IN_NEW, offset),
                    }));
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
        if plan.version != VERSION {
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
        let open = |name| -> io::Result<Arc<dyn ReadAt>> {
            Ok(Arc::new(Opened::new(File::open(folder.join(name))?)?))
        };
        let (new, edits) = (open(NEW)?, open(EDITS)?);
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
                other => {
                    return Err(io::Error::other(format!(
                        "a layer with bytes in file {other}"
                    )));
                }
            };
            view.push(*len, origin);
        }
        Ok(Self { view })
    }
}
