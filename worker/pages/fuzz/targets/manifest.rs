//! Any bytes as a manifest: refused, for nobody without the key can make one.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pages::{keys::Identity, manifest::Manifest};

static IDENTITY: OnceLock<Identity> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let identity = IDENTITY.get_or_init(Identity::generate);
    assert!(Manifest::open(bytes, std::slice::from_ref(identity)).is_err());
    let _ = Manifest::peek(bytes);
    let line = [bytes, b"\n", "ab".repeat(32).as_bytes(), b"\n"].concat();
    assert!(Manifest::open(&line, std::slice::from_ref(identity)).is_err());
});
