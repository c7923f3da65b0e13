//! Any bytes as an archive (tar index, pagemaps): no panic, and the spans cover it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pages::{
    criu::Pagemap,
    layout::{Layout, spans},
};

fuzz_target!(|bytes: &[u8]| {
    if let Some(pagemap) = Pagemap::parse(bytes) {
        assert_eq!(pagemap.bytes() % pages::PAGE_BYTES, 0);
    }
    let archive = bytes.to_vec();
    let layout = Layout::of(&archive).expect("memory can be read");
    let spans = spans(&layout, archive.len() as u64, Some((&layout, archive.len() as u64)));
    let mut at = 0;
    for span in &spans {
        assert_eq!(span.at, at);
        at += span.len;
    }
    assert_eq!(at, archive.len() as u64);
});
