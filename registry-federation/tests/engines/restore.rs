//! What stands in a state directory while a restore works on it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use registry_federation::maintenance::{check_kept, read_state, restore, write_backup};
use registry_federation::store::{Contents, Journal as _, Redb, StateLock, StoreError, encode};
use vl3_core::allocator::LeaseRecord;
use vl3_core::document::{AdminSecret, Chain, Document, Policy};
use vl3_core::ids::{Generation, NetworkUid};
use vl3_core::registry::Record;

use crate::suite::entry;

const STATE: &str = "registry.redb";

fn chain() -> Chain {
    let secret = AdminSecret::from_bytes(&[1; 32]);
    let admin_keys = [secret.public()].into();
    let nonce = vec![1; 32];
    let document = Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce,
        version: 1,
        name: "red".parse().expect("a name"),
        zone: "red.vl3".to_owned(),
        pool6: "fd00:1:2:3::/64".parse().expect("a pool"),
        pool4: None,
        admin_keys,
        members: Default::default(),
        policy: Policy::default(),
    };
    Chain::verify(vec![vl3_proto::document::sign(document, &[&secret])]).expect("a chain")
}

/// Into that directory, and how many entries it has with the mark of its restore.
fn backup(dir: &Path) -> (std::path::PathBuf, usize) {
    let chain = chain();
    let uid = chain.uid();
    let generations = (1..200).map(|generation| Record::Lease {
        uid,
        record: LeaseRecord::Floor {
            generation: Generation(generation),
        },
    });
    let records = std::iter::once(Record::Document { chain }).chain(generations);
    let journal: Vec<_> = records
        .map(|record| entry(1, encode(&record).expect("bytes")))
        .collect();
    let entries = journal.len() + 1;
    let kept = Contents {
        journal,
        history: Vec::new(),
        objects: Vec::new(),
    };
    let file = dir.join("backup");
    write_backup(kept, "east", &file).expect("a backup");
    (file, entries)
}

fn is_in_use(error: &StoreError) -> bool {
    matches!(error, StoreError::Open { reason, .. } if reason.contains("already open"))
}

#[test]
fn a_state_that_is_locked_is_opened_by_nobody_whether_it_is_there_or_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, _) = backup(dir.path());
    let path = dir.path().join(STATE);
    for there in [false, true] {
        let lock = StateLock::take(&path).expect("the lock");
        let refused = Redb::open(&path).expect_err("locked");
        assert!(is_in_use(&refused), "{refused}");
        let refused = restore(&file, dir.path(), None, &[], true).expect_err("locked");
        assert!(
            format!("{refused:#}").contains("already open"),
            "{refused:#}"
        );
        assert_eq!(path.exists(), there);
        drop(lock);
        drop(Redb::open(&path).expect("free"));
    }
}

#[test]
fn what_a_registry_wrote_that_started_during_a_restore_is_not_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, entries) = backup(dir.path());
    let mine = entry(7, "acknowledged");
    let (mut after, mut restored) = (0, 0);
    for round in 0..40 {
        let state = dir.path().join(round.to_string());
        std::fs::create_dir(&state).expect("a directory");
        let path = state.join(STATE);
        let done = std::thread::scope(|scope| {
            let registry = scope.spawn(|| {
                // As systemd does, until it starts.
                loop {
                    match Redb::open(&path) {
                        Ok(mut store) => return store.append(std::slice::from_ref(&mine)),
                        Err(error) => assert!(is_in_use(&error), "{error}"),
                    }
                    std::thread::yield_now();
                }
            });
            let done = restore(&file, &state, None, &[], false);
            registry.join().expect("a registry").expect("an append");
            done
        });
        let journal = Redb::open(&path).expect("it opens").replay();
        let journal = journal.expect("a journal");
        assert!(journal.contains(&mine), "round {round}: {done:?}");
        match done {
            Ok(_) => {
                restored += 1;
                assert_eq!(journal.len(), entries + 1, "round {round}");
                after += usize::from(journal.last() == Some(&mine));
            }
            Err(error) => {
                let why = format!("{error:#}");
                assert!(
                    why.contains("already open") || why.contains("--force"),
                    "{why}"
                );
                assert_eq!(journal.len(), 1, "round {round}");
            }
        }
    }
    assert_eq!(after, restored);
}

#[test]
fn at_no_moment_of_a_restore_is_there_no_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, entries) = backup(dir.path());
    let path = dir.path().join(STATE);
    drop(Redb::open(&path).expect("a store"));
    let (over, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                looks.fetch_add(1, Ordering::Relaxed);
                if !path.exists() {
                    return false;
                }
            }
            true
        });
        for _ in 0..40 {
            let done = restore(&file, dir.path(), Some("east"), &[], true).expect("a restore");
            let aside = done.replaced.expect("what was there");
            assert!(aside.is_file() && path.is_file());
        }
        over.store(true, Ordering::Relaxed);
        assert!(looking.join().expect("a look"), "there was none");
    });
    assert!(looks.load(Ordering::Relaxed) > 1000);
    let mut store = Redb::open(&path).expect("it opens");
    assert_eq!(store.replay().expect("a journal").len(), entries);
}

/// Its leases are of after the backup: no newcomer may be given what their routers run with.
#[test]
fn a_network_that_was_joined_after_the_backup_is_marked_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("backup");
    write_backup(Contents::default(), "east", &file).expect("a backup");
    restore(&file, dir.path(), Some("east"), &[chain()], false).expect("a restore");
    let mut store = Redb::open(&dir.path().join(STATE)).expect("it opens");
    let kept = Contents::read(&mut store).expect("what it keeps");
    let report = check_kept(&kept, "east");
    assert_eq!((report.networks, report.readopting), (1, 1));
}

/// The moment for which there are backups.
#[test]
fn a_damaged_store_is_found_by_its_checksums_and_replaced_by_force_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, entries) = backup(dir.path());
    let path = dir.path().join(STATE);
    restore(&file, dir.path(), Some("east"), &[], false).expect("a restore");
    read_state(dir.path()).expect("as it was written");
    let mut bytes = std::fs::read(&path).expect("the file");
    // Inside of what an entry says, where nothing but a checksum can tell.
    let document = find(&bytes, b"red.vl3").expect("the zone of the document");
    bytes[document] ^= 0x20;
    std::fs::write(&path, &bytes).expect("a damaged file");
    let found = read_state(dir.path()).expect_err("damage");
    assert!(found.to_string().contains("damaged"), "{found:#}");

    // Not even its header.
    std::fs::write(&path, vec![7; 9000]).expect("a damaged file");
    let refused = restore(&file, dir.path(), Some("east"), &[], false).expect_err("damage");
    assert!(format!("{refused:#}").contains("--force"), "{refused:#}");
    let done = restore(&file, dir.path(), Some("east"), &[], true).expect("a restore");
    let aside = done.replaced.expect("what was there");
    assert_eq!(std::fs::read(&aside).expect("the damaged one"), [7; 9000]);
    let mut store = Redb::open(&path).expect("it opens");
    assert_eq!(store.replay().expect("a journal").len(), entries);
    drop(store);

    let again = restore(&file, dir.path(), Some("east"), &[], true).expect("a restore");
    assert_ne!(again.replaced, Some(aside.clone()));
    assert_eq!(std::fs::read(&aside).expect("still there"), [7; 9000]);
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
