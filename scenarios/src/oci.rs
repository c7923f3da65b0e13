//! Writing container images: a tree of files becomes an OCI layout, one folder that holds any number of images.
//!
//! ```text
//! <layout>/oci-layout  index.json  blobs/sha256/...
//! ```
//! One layer per image, not compressed: they travel within one machine. The same tree gives the same bytes (sorted
//! paths, no times, owner root), so an image built twice has one digest. [`archive`] packs a layout into the tar
//! that `ctr images import` reads; `registry` pushes from it.

use crate::cache::hex;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

const PROGRAM: u32 = 0o755;
const FOLDER: u32 = 0o755;

enum Entry {
    Folder { mode: u32 },
    File { from: PathBuf, mode: u32 },
    Text { text: Vec<u8>, mode: u32 },
}

/// The files of an image, by path without a leading slash.
#[derive(Default)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

impl Tree {
    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.insert(Path::new(path), Entry::Folder { mode });
    }

    /// Adds a file of the host, as a program.
    pub fn program(&mut self, path: impl AsRef<Path>, from: impl Into<PathBuf>) {
        self.insert(
            path.as_ref(),
            Entry::File {
                from: from.into(),
                mode: PROGRAM,
            },
        );
    }

    /// Adds a file with the given content.
    pub fn text(&mut self, path: &str, text: impl Into<Vec<u8>>) {
        self.insert(
            Path::new(path),
            Entry::Text {
                text: text.into(),
                mode: 0o644,
            },
        );
    }

    fn insert(&mut self, path: &Path, entry: Entry) {
        let path = path.strip_prefix("/").unwrap_or(path).to_path_buf();
        let folders: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .filter(|folder| !folder.as_os_str().is_empty())
            .map(Path::to_path_buf)
            .collect();
        for folder in folders {
            self.0
                .entry(folder)
                .or_insert(Entry::Folder { mode: FOLDER });
        }
        self.0.insert(path, entry);
    }

    fn write(&self, out: impl Write) -> Result<()> {
        let mut tar = Builder::new(out);
        for (path, entry) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_mtime(0);
            let described = || format!("add {} to the layer", path.display());
            match entry {
                Entry::Folder { mode } => append(
                    &mut tar,
                    &mut header,
                    EntryType::Directory,
                    *mode,
                    path,
                    0,
                    io::empty(),
                ),
                Entry::Text { text, mode } => append(
                    &mut tar,
                    &mut header,
                    EntryType::Regular,
                    *mode,
                    path,
                    text.len() as u64,
                    &text[..],
                ),
                Entry::File { from, mode } => {
                    let file =
                        File::open(from).with_context(|| format!("open {}", from.display()))?;
                    let size = file
                        .metadata()
                        .with_context(|| format!("look at {}", from.display()))?
                        .len();
                    append(
                        &mut tar,
                        &mut header,
                        EntryType::Regular,
                        *mode,
                        path,
                        size,
                        file,
                    )
                }
            }
            .with_context(described)?;
        }
        tar.finish().context("finish the layer")
    }
}

fn append(
    tar: &mut Builder<impl Write>,
    header: &mut Header,
    kind: EntryType,
    mode: u32,
    path: &Path,
    size: u64,
    data: impl io::Read,
) -> io::Result<()> {
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    tar.append_data(header, path, data)
}

/// One image to be written.
pub struct Image {
    /// Its full name with tag, as pods name it.
    pub name: String,
    /// Its files.
    pub tree: Tree,
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// Arguments a pod may replace.
    pub arguments: Vec<String>,
}

/// A blob of the layout.
struct Blob {
    digest: String,
    size: u64,
}

/// Writes images as an OCI layout into `folder`, which is made.
pub fn write_layout(folder: &Path, images: &[Image]) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| write_image(&blobs, image))
        .collect::<Result<_>>()?;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests});
    for (name, value) in [
        ("index.json", index),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
    ] {
        fs::write(folder.join(name), value.to_string())
            .with_context(|| format!("write {name} of the layout"))?;
    }
    Ok(())
}

/// Writes an image's blobs and gives its line in the index.
fn write_image(blobs: &Path, image: &Image) -> Result<Value> {
    let layer = put(blobs, |out| image.tree.write(out))
        .with_context(|| format!("write the layer of {}", image.name))?;
    let config = json!({
        "architecture": go_architecture(), "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint, "Cmd": image.arguments, "WorkingDir": "/",
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    });
    let config = put_json(blobs, &config)?;
    let described = |blob: &Blob, kind: &str| json!({"mediaType": kind, "digest": blob.digest, "size": blob.size});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "config": described(&config, CONFIG_TYPE), "layers": [described(&layer, LAYER_TYPE)],
    });
    let manifest = put_json(blobs, &manifest)?;
    let mut line = described(&manifest, MANIFEST_TYPE);
    // containerd takes the name from the first annotation, skopeo and buildah from the second.
    line["annotations"] = json!({"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name});
    line["platform"] = json!({"architecture": go_architecture(), "os": "linux"});
    Ok(line)
}

/// This machine's architecture under the name images use.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn put_json(blobs: &Path, value: &Value) -> Result<Blob> {
    put(blobs, |out| {
        out.write_all(value.to_string().as_bytes())
            .context("write a blob")
    })
}

/// Writes a blob under the name of its own digest.
fn put(blobs: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Blob> {
    let unnamed = blobs.join("unnamed");
    let file = File::create(&unnamed).with_context(|| format!("create {}", unnamed.display()))?;
    let mut out = Hashing {
        inner: io::BufWriter::new(file),
        hash: Sha256::new(),
        size: 0,
    };
    write(&mut out)?;
    out.inner.flush().context("write a blob to its end")?;
    let digits = hex(&out.hash.finalize());
    fs::rename(&unnamed, blobs.join(&digits)).context("name a blob")?;
    Ok(Blob {
        digest: format!("sha256:{digits}"),
        size: out.size,
    })
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Packs a layout into one file for `ctr images import`.
pub fn archive(layout: &Path, file: &Path) -> Result<()> {
    let out = File::create(file).with_context(|| format!("create {}", file.display()))?;
    let mut tar = Builder::new(io::BufWriter::new(out));
    tar.append_dir_all(".", layout)
        .with_context(|| format!("pack {}", layout.display()))?;
    tar.into_inner()
        .and_then(|mut out| out.flush())
        .with_context(|| format!("finish {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(folder: &Path) -> Image {
        let host = folder.join("host-file");
        fs::write(&host, "a program").unwrap();
        let mut tree = Tree::default();
        tree.program("/usr/bin/it", &host);
        tree.text("etc/it.conf", "setting");
        tree.folder("tmp", 0o1777);
        Image {
            name: "registry.lab:5000/it:1".into(),
            tree,
            entrypoint: vec!["/usr/bin/it".into()],
            arguments: vec![],
        }
    }

    fn written(folder: &Path, name: &str) -> (PathBuf, Value) {
        let layout = folder.join(name);
        write_layout(&layout, &[image(folder)]).unwrap();
        let index = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        (layout, index)
    }

    fn blob(layout: &Path, described: &Value) -> Vec<u8> {
        let digits = described["digest"]
            .as_str()
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap();
        let bytes = fs::read(layout.join("blobs/sha256").join(digits)).unwrap();
        assert_eq!(hex(&Sha256::digest(&bytes)), digits);
        assert_eq!(described["size"], bytes.len());
        bytes
    }

    #[test]
    fn the_same_tree_gives_the_same_digest() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            written(folder.path(), "one").1,
            written(folder.path(), "two").1
        );
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_leads_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, index) = written(folder.path(), "layout");
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "registry.lab:5000/it:1"
        );
        let manifest: Value =
            serde_json::from_slice(&blob(&layout, &index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&layout, &manifest["config"])).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
        let layer = blob(&layout, &manifest["layers"][0]);
        let mut tar = tar::Archive::new(&layer[..]);
        let found: Vec<(String, u32)> = tar
            .entries()
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| {
                (
                    e.path().unwrap().display().to_string(),
                    e.header().mode().unwrap(),
                )
            })
            .collect();
        let expected = [
            ("etc/", 0o755),
            ("etc/it.conf", 0o644),
            ("tmp/", 0o1777),
            ("usr/", 0o755),
            ("usr/bin/", 0o755),
            ("usr/bin/it", 0o755),
        ];
        let found: Vec<(&str, u32)> = found
            .iter()
            .map(|(path, mode)| (path.as_str(), *mode))
            .collect();
        let plain = |list: &[(&str, u32)]| {
            list.iter()
                .map(|(path, mode)| (path.trim_end_matches('/').to_owned(), *mode))
                .collect::<Vec<_>>()
        };
        assert_eq!(plain(&found), plain(&expected));
    }
}
