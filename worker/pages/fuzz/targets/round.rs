//! Two archives out of any bytes: the second comes back from its difference to the first.
#![no_main]

use std::{
    io,
    sync::{Arc, Mutex},
};

use libfuzzer_sys::fuzz_target;
use pages::{
    capture::{Base, capture},
    keys::DataKey,
    rebuild::{Known, Rebuild, WriteAt, open_recipe},
    source::{Origin, ReadAt, View},
};

struct Written(Mutex<Vec<u8>>);

impl WriteAt for Written {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = offset as usize;
        let mut all = self.0.lock().expect("nobody panics with it");
        all[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    let (first, second) = bytes.split_at(bytes.len() * usize::from(*cut) / 256);
    let (first, second) = (first.to_vec(), second.to_vec());
    let key = DataKey::from_bytes([3; 32]);
    let one = capture(&first, None, &key, 1, |_, _| true).expect("memory can be read");
    let base = Base {
        source: &first,
        root: one.root,
    };
    let mut packs = Vec::new();
    let two = capture(&second, Some(base), &key, 1, |pack, _| {
        packs.push(pack);
        true
    });
    let sealed = two.expect("memory can be read").sealed_recipe;
    let mut view = View::default();
    view.push(
        first.len() as u64,
        Origin::Source {
            source: Arc::new(first),
            offset: 0,
        },
    );
    let known = Known {
        view: Arc::new(view),
        root: one.root,
    };
    let recipe = open_recipe(&key, &sealed.name, &sealed.bytes).expect("as it was sealed");
    let rebuild = Rebuild::new(&recipe, Some(known)).expect("its own base");
    let new = Written(Mutex::new(vec![0; rebuild.new_bytes() as usize]));
    for (number, pack) in packs.iter().enumerate() {
        let written = rebuild.pack(&key, number, &pack.name, &pack.bytes, &new);
        written.expect("as it was sealed");
    }
    let new = new.0.into_inner().expect("nobody panics with it");
    let view = rebuild.view(Arc::new(new)).expect("all of it is there");
    let mut again = vec![0; second.len()];
    view.read_exact_at(&mut again, 0).expect("all of it is there");
    assert_eq!(again, second);
});
