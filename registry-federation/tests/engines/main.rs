//! Every engine does the same, and the one with a file survives what happens to files.

mod disk;
mod restore;
mod suite;

use registry_federation::store::{Memory, Redb, Store};

#[test]
fn memory_does_what_every_engine_does() {
    suite::every_engine(&|| {
        let memory = Memory::default();
        Box::new(move || Box::new(memory.clone()) as Box<dyn Store>)
    });
}

#[test]
fn redb_does_what_every_engine_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let next = std::cell::Cell::new(0);
    suite::every_engine(&|| {
        next.set(next.get() + 1);
        let path = dir.path().join(format!("{}.redb", next.get()));
        Box::new(move || Box::new(Redb::open(&path).expect("it opens")) as Box<dyn Store>)
    });
}
