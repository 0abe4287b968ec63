//! A disk that loses what was not synced, runs full, or may not be written.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use registry_federation::store::{Job, Journal as _, Memory, Redb, Store, StoreError};
use vl3_core::Rng;

use crate::suite::{Content, content, entry, remove, set};

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    durable: Vec<u8>,
    /// In the order of their writing; a crash may lose any of them.
    unsynced: Vec<Change>,
    /// With everything that was written.
    current: Vec<u8>,
    operations: usize,
    /// From this operation on writes fail, with that error.
    fails_at: Option<(usize, io::ErrorKind)>,
}

#[derive(Clone, Debug)]
enum Change {
    Length(usize),
    Write(usize, Vec<u8>),
}

impl Change {
    fn carry_out(&self, on: &mut Vec<u8>) {
        match self {
            Self::Length(length) => on.resize(*length, 0),
            Self::Write(at, bytes) => {
                let end = at + bytes.len();
                if on.len() < end {
                    on.resize(end, 0);
                }
                on[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a small file")
}

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Redb, StoreError> {
        Redb::with_backend(Path::new("/state/registry.redb"), self.clone())
    }

    fn fail_at(&self, operation: usize, kind: io::ErrorKind) {
        self.platter().fails_at = Some((operation, kind));
    }

    fn repair(&self) {
        self.platter().fails_at = None;
    }

    /// The disk after the power went: of what was not synced, some is there, some is not, and
    /// of one write half.
    fn crash(&self, rng: &mut Rng) -> Self {
        let platter = self.platter();
        let mut durable = platter.durable.clone();
        for change in &platter.unsynced {
            match (rng.below(3), change) {
                (0, _) => {}
                (1, Change::Write(at, bytes)) => {
                    Change::Write(*at, bytes[..bytes.len() / 2].to_vec()).carry_out(&mut durable);
                }
                _ => change.carry_out(&mut durable),
            }
        }
        let platter = Platter {
            current: durable.clone(),
            durable,
            ..Platter::default()
        };
        Self(Arc::new(Mutex::new(platter)))
    }
}

impl Platter {
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fails_at {
            Some((at, kind)) if self.operations >= at => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.step()?;
        change.carry_out(&mut self.current);
        self.unsynced.push(change);
        Ok(())
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        let bytes = platter
            .current
            .get(place(offset)..place(offset) + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.platter().change(Change::Length(place(len)))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        platter.unsynced.clear();
        platter.durable = platter.current.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.platter()
            .change(Change::Write(place(offset), data.to_vec()))
    }
}

const JOBS: u64 = 10;

/// Appends, swaps, removals and two rewrites.
fn job(number: u64, revisions: &[Option<u64>; 3]) -> Job {
    let at = usize::try_from(number % 3).expect("small");
    let key = format!("o{at}");
    Job {
        id: number.into(),
        append: vec![entry(number, format!("a{number}")), entry(number, "same")],
        rewrite: (number % 4 == 3)
            .then(|| vec![entry(number, "same"), entry(number, [number as u8; 9000])]),
        swaps: vec![if number == 7 {
            remove(key, revisions[at])
        } else {
            set(key, revisions[at], [number as u8; 3000])
        }],
    }
}

/// Runs the jobs; how many were acknowledged, and why the next was not.
fn run(store: &mut dyn Store) -> (usize, Option<StoreError>) {
    let mut revisions = [None; 3];
    for number in 0..JOBS {
        let job = job(number, &revisions);
        match store.commit(&job) {
            Ok(done) => {
                let at = usize::try_from(number % 3).expect("small");
                revisions[at] = job.swaps[0].value.as_ref().map(|_| done[0]);
            }
            Err(error) => return (usize::try_from(number).expect("small"), Some(error)),
        }
    }
    (usize::try_from(JOBS).expect("small"), None)
}

/// What stands after each number of jobs.
fn states() -> Vec<Content> {
    let mut memory = Memory::default();
    let mut revisions = [None; 3];
    let mut states = vec![content(&mut memory)];
    for number in 0..JOBS {
        let job = job(number, &revisions);
        let done = memory.commit(&job).expect("a commit");
        let at = usize::try_from(number % 3).expect("small");
        revisions[at] = job.swaps[0].value.as_ref().map(|_| done[0]);
        states.push(content(&mut memory));
    }
    states
}

#[test]
fn a_crash_at_every_write_leaves_whole_jobs_and_all_that_were_acknowledged() {
    let states = states();
    let fresh = Disk::default();
    drop(fresh.open().expect("a fresh store"));
    let mut rng = Rng::new(4);
    let mut crashes = 0;
    for operation in 1.. {
        let disk = fresh.crash(&mut rng);
        disk.fail_at(operation, io::ErrorKind::Other);
        let acknowledged = match disk.open() {
            Ok(mut store) => run(&mut store),
            Err(error) => (0, Some(error)),
        };
        for _ in 0..4 {
            let after = disk.crash(&mut rng);
            let mut store = after.open().expect("it opens after a crash");
            let found = content(&mut store);
            let jobs = acknowledged.0;
            let whole = found == states[jobs] || states.get(jobs + 1) == Some(&found);
            assert!(
                whole,
                "operation {operation}, {jobs} acknowledged: {found:?}"
            );
            crashes += 1;
        }
        if acknowledged.1.is_none() {
            break;
        }
    }
    assert!(crashes > 100, "{crashes} crashes only");
}

#[test]
fn a_full_and_a_read_only_disk_are_named_and_nothing_is_lost() {
    let states = states();
    for (kind, step, name) in [
        (
            io::ErrorKind::StorageFull,
            2,
            "no space left for the state in /state",
        ),
        (
            io::ErrorKind::ReadOnlyFilesystem,
            11,
            "the state in /state may not be written",
        ),
        (
            io::ErrorKind::PermissionDenied,
            13,
            "the state in /state may not be written",
        ),
    ] {
        for operation in (1..).step_by(step) {
            let disk = Disk::default();
            drop(disk.open().expect("a fresh store"));
            let begun = disk.platter().operations;
            disk.fail_at(begun + operation, kind);
            let (jobs, error) = match disk.open() {
                Ok(mut store) => run(&mut store),
                Err(error) => (0, Some(error)),
            };
            let Some(error) = error else { break };
            assert!(
                error.to_string().starts_with(name),
                "operation {operation}: {error}"
            );
            disk.repair();
            let mut store = disk.open().expect("it opens once there is room");
            let found = content(&mut store);
            let whole = found == states[jobs] || states.get(jobs + 1) == Some(&found);
            assert!(
                whole,
                "operation {operation}, {jobs} acknowledged: {found:?}"
            );
            store.append(&[entry(99, "goes on")]).expect("an append");
        }
    }
}

#[test]
fn a_damaged_file_is_an_error_and_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("registry.redb");
    let mut store = Redb::open(&path).expect("a fresh store");
    assert_eq!(run(&mut store).0, 10);
    drop(store);
    let whole = std::fs::read(&path).expect("a file");
    let mut damaged = vec![
        b"no database, whatever it was once".to_vec(),
        vec![0; 4096],
        Vec::new(),
    ];
    damaged.extend([1, 100, 512, 4096, whole.len() / 2].map(|length| whole[..length].to_vec()));
    for at in [0, 16, 64] {
        let mut torn = whole.clone();
        torn[at..]
            .iter_mut()
            .take(160)
            .for_each(|byte| *byte ^= 0x5a);
        damaged.push(torn);
    }
    for (number, bytes) in damaged.iter().enumerate() {
        std::fs::write(&path, bytes).expect("a file");
        let error = Redb::open(&path).err();
        let error = error.unwrap_or_else(|| panic!("damage {number} was not seen"));
        assert!(
            error.to_string().contains("registry.redb"),
            "{number}: {error}"
        );
        let kept = std::fs::read(&path).expect("a file");
        assert!(kept == *bytes, "damage {number} was written to");
    }
}

#[test]
fn a_crash_while_the_file_is_made_is_no_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("registry.redb");
    std::fs::write(path.with_extension("redb.new"), b"half of it").expect("a file");
    let mut store = Redb::open(&path).expect("a fresh store");
    store.append(&[entry(1, "a")]).expect("an append");
    drop(store);
    let mut store = Redb::open(&path).expect("it opens again");
    assert_eq!(store.replay().expect("a journal"), [entry(1, "a")]);
    assert!(!path.with_extension("redb.new").exists());
}
