//! Who is who in the lab: one authority, three certificates, a key for service accounts, a token per component.
//!
//! Made anew for every lab and thrown away with it. Components show tokens, not certificates: one line in a file
//! each, and the API server treats them the same.

use crate::process::run;
use crate::site::{API_PORT, API_SERVICE, Site};
use anyhow::{Context, Result};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Certificates outlive any lab by far; labs are made anew, not renewed.
const VALID_DAYS: &str = "365";

/// The files in `<lab>/pki`.
pub struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// The files of the lab in `lab_folder`.
    pub fn of(lab_folder: &Path) -> Self {
        Self {
            folder: lab_folder.join("pki"),
        }
    }

    /// One of the files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The kubeconfig of a component.
    pub fn kubeconfig(&self, component: &str) -> PathBuf {
        self.file(&format!("{component}.kubeconfig"))
    }

    /// Makes everything.
    pub fn create(&self, site: &Site) -> Result<()> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("create {}", self.folder.display()))?;
        self.authority()?;
        let names = format!(
            "subjectAltName=IP:127.0.0.1,IP:{},IP:{API_SERVICE},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default.svc",
            site.gateway()
        );
        self.certificate("apiserver", "/CN=kube-apiserver", Some(&names))?;
        // The API server shows this one to kubelets, and a person with curl can, too: it may do anything.
        self.certificate(
            "kubelet-client",
            "/O=system:masters/CN=kube-apiserver-kubelet-client",
            None,
        )?;
        self.key("service-accounts.key")?;
        let (private, public) = (
            self.path("service-accounts.key"),
            self.path("service-accounts.pub"),
        );
        run(
            "openssl",
            ["pkey", "-in", &private, "-pubout", "-out", &public],
        )
        .context("take out the service accounts' public key")?;
        let mut tokens = String::new();
        for (component, user, groups) in users(site) {
            let token = random_token()?;
            tokens += &format!("{token},{user},{component},\"{groups}\"\n");
            self.write_kubeconfig(site, &component, &token)?;
        }
        fs::write(self.file("tokens.csv"), tokens).context("write the tokens")
    }

    fn authority(&self) -> Result<()> {
        self.key("ca.key")?;
        let (key, certificate) = (self.path("ca.key"), self.path("ca.crt"));
        run(
            "openssl",
            [
                "req",
                "-x509",
                "-new",
                "-key",
                &key,
                "-out",
                &certificate,
                "-subj",
                "/CN=longshore-lab",
                "-days",
                VALID_DAYS,
            ],
        )
        .context("make the lab's certificate authority")?;
        Ok(())
    }

    fn certificate(&self, name: &str, subject: &str, extension: Option<&str>) -> Result<()> {
        let [key, request, certificate] =
            ["key", "csr", "crt"].map(|ending| format!("{name}.{ending}"));
        self.key(&key)?;
        let mut ask = vec![
            "req".to_owned(),
            "-new".into(),
            "-key".into(),
            self.path(&key),
            "-out".into(),
            self.path(&request),
            "-subj".into(),
            subject.into(),
        ];
        if let Some(extension) = extension {
            ask.extend(["-addext".into(), extension.into()]);
        }
        run("openssl", ask).with_context(|| format!("ask for the certificate {name}"))?;
        let (request, certificate, ca, ca_key) = (
            self.path(&request),
            self.path(&certificate),
            self.path("ca.crt"),
            self.path("ca.key"),
        );
        run(
            "openssl",
            [
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                &ca,
                "-CAkey",
                &ca_key,
                "-CAcreateserial",
                "-out",
                &certificate,
                "-days",
                VALID_DAYS,
                "-copy_extensions",
                "copy",
            ],
        )
        .with_context(|| format!("sign the certificate {name}"))?;
        Ok(())
    }

    fn key(&self, name: &str) -> Result<()> {
        run(
            "openssl",
            [
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-out",
                &self.path(name),
            ],
        )
        .with_context(|| format!("make {name}"))?;
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    fn write_kubeconfig(&self, site: &Site, component: &str, token: &str) -> Result<()> {
        let authority =
            fs::read(self.file("ca.crt")).context("read the authority's certificate")?;
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": site.name,
            "clusters": [{"name": site.name, "cluster": {
                "server": format!("https://{}:{API_PORT}", site.gateway()),
                "certificate-authority-data": base64(&authority),
            }}],
            "users": [{"name": component, "user": {"token": token}}],
            "contexts": [{"name": site.name, "context": {"cluster": site.name, "user": component}}],
        });
        let path = self.kubeconfig(component);
        fs::write(
            &path,
            serde_json::to_vec_pretty(&config).context("write a kubeconfig as JSON")?,
        )
        .with_context(|| format!("write {}", path.display()))
    }
}

/// Component, user name and groups of everyone with a token.
fn users(site: &Site) -> Vec<(String, String, &'static str)> {
    let mut users: Vec<(String, String, &'static str)> = vec![
        ("admin".into(), "admin".into(), "system:masters"),
        (
            "controllers".into(),
            "system:kube-controller-manager".into(),
            "",
        ),
        ("scheduler".into(), "system:kube-scheduler".into(), ""),
        ("proxy".into(), "system:kube-proxy".into(), ""),
    ];
    let node = |n| {
        (
            Site::node_name(n),
            format!("system:node:{}", Site::node_name(n)),
            "system:nodes",
        )
    };
    users.extend(site.node_numbers().map(node));
    users
}

/// 128 random bits.
fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("make a token")?;
    Ok(crate::cache::hex(&bytes))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0u32, |sum, byte| sum << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = (group >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= chunk.len() {
                char::from(DIGITS[digit])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_agrees_with_the_examples_of_its_standard() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn every_node_has_a_user_of_its_own() {
        let site = Site {
            name: "x".into(),
            index: 0,
            nodes: 3,
        };
        let nodes: Vec<String> = users(&site)
            .into_iter()
            .filter(|user| user.2 == "system:nodes")
            .map(|user| user.1)
            .collect();
        assert_eq!(
            nodes,
            [
                "system:node:node1",
                "system:node:node2",
                "system:node:node3"
            ]
        );
    }
}
