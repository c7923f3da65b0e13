//! Any bytes as a stored object, and as each kind of frame: refused, never a panic, never other bytes than were promised.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pages::{
    frame::{Codec, decode},
    keys::DataKey,
    sealed::{Purpose, open},
};

fuzz_target!(|bytes: &[u8]| {
    let key = DataKey::from_bytes([3; 32]);
    assert!(open(&key, Purpose::Pack, "00", bytes).is_err());
    let promised = [0; 32];
    let old = vec![5; 4096];
    for codec in [Codec::Raw, Codec::Zstd, Codec::Xor, Codec::Prefix] {
        assert!(decode(codec, bytes, 4096, &promised, &old).is_err());
    }
});
