//! Any bytes as a recipe: refused, or it can be followed without a panic and reads back as itself.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use pages::{
    rebuild::{Known, Rebuild},
    recipe::Recipe,
    source::{Origin, View},
};

fuzz_target!(|bytes: &[u8]| {
    let mut plain = b"LSRC\x01".to_vec();
    plain.extend_from_slice(bytes);
    let Ok(recipe) = Recipe::from_bytes(&plain) else {
        return;
    };
    assert_eq!(Recipe::from_bytes(&recipe.to_bytes()).expect("its own bytes"), recipe);
    let base = recipe.base.map(|root| {
        let mut view = View::default();
        view.push(1 << 16, Origin::Zeros);
        Known {
            view: Arc::new(view),
            root,
        }
    });
    if let Ok(rebuild) = Rebuild::new(&plain, base) {
        let _ = rebuild.view(Arc::new(Vec::new()));
        let _ = rebuild.prove(&Vec::new());
    }
});
