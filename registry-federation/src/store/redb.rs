//! The embedded engine: one redb file, every commit synced to the disk.
//!
//! Table `journal` holds entries by their number, `times` when they were appended (the layout
//! of the first release had none), `history` what rewrites replaced, `objects` values with
//! their revision, `meta` the format and the counters.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend,
    TableDefinition, WriteTransaction,
};
use tokio::sync::broadcast;
use vl3_core::Wall;

use super::history::{replaced, surplus};
use super::lock::StateLock;
use super::memory::FEED;
use super::{
    Change, Conflict, Entry, FORMAT, Job, Journal, Object, Objects, Store, StoreError, Swap,
};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");
const TIMES: TableDefinition<'_, u64, u64> = TableDefinition::new("times");
const HISTORY: TableDefinition<'_, u64, (u64, &[u8])> = TableDefinition::new("history");
const OBJECTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("objects");

const KEY_FORMAT: &str = "format";
const KEY_REVISION: &str = "revision";
const KEY_NEXT: &str = "next";

/// The state is small; redb's default cache is a gigabyte.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

type Redbs<T> = Result<T, redb::Error>;

/// One process at a time; a second one is refused.
#[derive(Debug)]
pub struct Redb {
    database: Database,
    path: PathBuf,
    feed: broadcast::Sender<Change>,
    /// Given back after the database is closed.
    _lock: Option<StateLock>,
}

impl Redb {
    /// Opens or creates the file. Damage and newer formats are errors and change nothing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = StateLock::take(path)?;
        let opened = Self::open_locked(path, &lock)?;
        Ok(Self {
            _lock: Some(lock),
            ..opened
        })
    }

    /// As [`Self::open`], for who holds the lock already.
    pub(crate) fn open_locked(path: &Path, _lock: &StateLock) -> Result<Self, StoreError> {
        // An empty file is none that we left: a new one comes to its place whole.
        if std::fs::metadata(path).is_ok_and(|found| found.len() == 0) {
            return Err(opening(path, &"it is empty; remove it to begin anew"));
        }
        if !path.exists() {
            // A crash while redb lays a file out leaves one that it does not take for its own.
            let fresh = path.with_extension("redb.new");
            match builder().create(&fresh) {
                Err(error @ redb::DatabaseError::DatabaseAlreadyOpen) => {
                    return Err(opening(path, &error));
                }
                Ok(database) => drop(Self::prepare(path, Ok(database))?),
                Err(_) => {
                    // What is left of an earlier start; the next error is the one to tell.
                    let _absent = std::fs::remove_file(&fresh);
                    drop(Self::prepare(path, builder().create(&fresh))?);
                }
            }
            put_in_place(&fresh, path).map_err(|error| {
                let error = redb::Error::Io(error);
                named(path, &error).unwrap_or_else(|| opening(path, &error))
            })?;
        }
        // redb trusts lengths and offsets of a file that was closed well.
        undamaged(path, || Self::prepare(path, builder().create(path)))
    }

    /// Reads every page and compares it with its checksum; repairs what a crash left behind.
    pub fn verify(&mut self) -> Result<(), StoreError> {
        let Self { database, path, .. } = self;
        undamaged(
            path,
            AssertUnwindSafe(|| match database.check_integrity() {
                Ok(_clean_or_repaired) => Ok(()),
                Err(error) => Err(opening(path, &format!("it is damaged: {error}"))),
            }),
        )
    }

    /// As [`Self::open`] on something that behaves like a file; `path` is what errors name.
    pub fn with_backend(path: &Path, backend: impl StorageBackend) -> Result<Self, StoreError> {
        Self::prepare(path, builder().create_with_backend(backend))
    }

    fn prepare(
        path: &Path,
        database: Result<Database, redb::DatabaseError>,
    ) -> Result<Self, StoreError> {
        let failed =
            |error: redb::Error| named(path, &error).unwrap_or_else(|| opening(path, &error));
        let engine = Self {
            database: database.map_err(|error| failed(error.into()))?,
            path: path.to_owned(),
            feed: broadcast::Sender::new(FEED),
            _lock: None,
        };
        match engine.tables().map_err(failed)? {
            Some(found) if found > FORMAT => Err(StoreError::Newer { found }),
            _ => Ok(engine),
        }
    }

    /// The format that was found, None in a fresh file. Nothing is written into a file of
    /// another one.
    fn tables(&self) -> Redbs<Option<u64>> {
        let transaction = self.begin()?;
        let found;
        {
            let mut meta = transaction.open_table(META)?;
            found = meta.get(KEY_FORMAT)?.map(|format| format.value());
            if found.is_none() {
                meta.insert(KEY_FORMAT, FORMAT)?;
            }
        }
        if found.is_some_and(|found| found > FORMAT) {
            transaction.abort()?;
            return Ok(found);
        }
        transaction.open_table(JOURNAL)?;
        transaction.open_table(TIMES)?;
        transaction.open_table(HISTORY)?;
        transaction.open_table(OBJECTS)?;
        transaction.commit()?;
        Ok(found)
    }

    /// As a later version would leave it.
    #[cfg(test)]
    pub(super) fn set_format(&self, format: u64) {
        let transaction = self.begin().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert(KEY_FORMAT, format)
            .unwrap();
        transaction.commit().unwrap();
    }

    fn begin(&self) -> Redbs<WriteTransaction> {
        let mut transaction = self.database.begin_write()?;
        // A reply rests on what is written.
        transaction.set_durability(Durability::Immediate)?;
        Ok(transaction)
    }

    fn write<T>(&self, work: impl FnOnce(&WriteTransaction) -> Redbs<T>) -> Result<T, StoreError> {
        let done = self.begin().and_then(|transaction| {
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        });
        done.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        let error = error.into();
        named(&self.path, &error).unwrap_or_else(|| StoreError::Write(error.to_string()))
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> Redbs<T>,
    ) -> Result<T, StoreError> {
        let done = self
            .database
            .begin_read()
            .map_err(redb::Error::from)
            .and_then(|transaction| work(&transaction));
        done.map_err(|error| StoreError::Read(error.to_string()))
    }

    fn tell(&self, swap: &Swap, revision: u64) {
        let change = Change {
            key: swap.key.clone(),
            revision,
            value: swap.value.clone(),
        };
        // Err: nobody watches.
        let _unwatched = self.feed.send(change);
    }
}

thread_local! {
    /// This thread reads a file that may be damaged: a panic is a finding, which is told as one.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// redb panics on lengths and offsets that make no sense. What it would print of that is of no
/// use to who reads "it is damaged".
fn undamaged<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, StoreError> + UnwindSafe,
) -> Result<T, StoreError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !READING.get() {
                others(panic);
            }
        }));
    });
    READING.set(true);
    let done = std::panic::catch_unwind(work);
    READING.set(false);
    done.unwrap_or_else(|_| Err(opening(path, &"it is damaged")))
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn opening(path: &Path, reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Open {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Renames a file that is complete, durably.
fn put_in_place(fresh: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::rename(fresh, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    std::fs::File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}

/// An error that a human can do something about, with the directory to do it in.
pub(super) fn named(path: &Path, error: &redb::Error) -> Option<StoreError> {
    let redb::Error::Io(io) = error else {
        return None;
    };
    let place = path.parent().unwrap_or(path).display().to_string();
    let reason = io.to_string();
    match io.kind() {
        std::io::ErrorKind::StorageFull
        | std::io::ErrorKind::QuotaExceeded
        | std::io::ErrorKind::FileTooLarge => Some(StoreError::Full { place, reason }),
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
            Some(StoreError::ReadOnly { place, reason })
        }
        _ => None,
    }
}

/// The next revision of the whole store.
fn step(transaction: &WriteTransaction) -> Redbs<u64> {
    let mut meta = transaction.open_table(META)?;
    let revision = meta
        .get(KEY_REVISION)?
        .map_or(0, |revision| revision.value())
        + 1;
    meta.insert(KEY_REVISION, revision)?;
    Ok(revision)
}

/// Journal entries with their numbers.
fn entries(
    journal: &impl ReadableTable<u64, &'static [u8]>,
    times: &impl ReadableTable<u64, u64>,
) -> Redbs<(Vec<u64>, Vec<Entry>)> {
    let (mut numbers, mut entries) = (Vec::new(), Vec::new());
    for row in journal.iter()? {
        let (number, bytes) = row?;
        let at = times.get(number.value())?.map_or(0, |at| at.value());
        numbers.push(number.value());
        entries.push(Entry {
            at: Wall(at),
            bytes: bytes.value().to_vec(),
        });
    }
    Ok((numbers, entries))
}

fn append(transaction: &WriteTransaction, entries: &[Entry]) -> Redbs<u64> {
    {
        let mut meta = transaction.open_table(META)?;
        let mut journal = transaction.open_table(JOURNAL)?;
        let mut times = transaction.open_table(TIMES)?;
        let mut next = meta.get(KEY_NEXT)?.map_or(0, |next| next.value());
        for entry in entries {
            journal.insert(next, entry.bytes.as_slice())?;
            times.insert(next, entry.at.0)?;
            next += 1;
        }
        meta.insert(KEY_NEXT, next)?;
    }
    step(transaction)
}

fn rewrite(transaction: &WriteTransaction, snapshot: &[Entry]) -> Redbs<u64> {
    let mut snapshot = snapshot.to_vec();
    {
        let mut journal = transaction.open_table(JOURNAL)?;
        let mut times = transaction.open_table(TIMES)?;
        let mut history = transaction.open_table(HISTORY)?;
        let (numbers, entries) = entries(&journal, &times)?;
        for position in replaced(&entries, &mut snapshot) {
            let entry = &entries[position];
            history.insert(numbers[position], (entry.at.0, entry.bytes.as_slice()))?;
        }
        let sizes: Redbs<Vec<_>> = history
            .iter()?
            .map(|row| Ok(row?.1.value().1.len()))
            .collect();
        for _ in 0..surplus(&sizes?) {
            history.pop_first()?;
        }
        journal.retain(|_, _| false)?;
        times.retain(|_, _| false)?;
    }
    append(transaction, &snapshot)
}

/// Each change by itself, in order; a conflict changes nothing. The tables are opened and the
/// revision is read and written once, however many changes share the transaction.
fn swap_each(transaction: &WriteTransaction, swaps: &[Swap]) -> Redbs<Vec<Result<u64, Conflict>>> {
    if swaps.is_empty() {
        return Ok(Vec::new());
    }
    let mut objects = transaction.open_table(OBJECTS)?;
    let mut meta = transaction.open_table(META)?;
    let begin = meta
        .get(KEY_REVISION)?
        .map_or(0, |revision| revision.value());
    let mut revision = begin;
    let mut results = Vec::with_capacity(swaps.len());
    for swap in swaps {
        let key = swap.key.as_str();
        let found = objects.get(key)?.map(|value| value.value().0);
        if found != swap.expected {
            results.push(Err(Conflict { found }));
            continue;
        }
        revision += 1;
        match &swap.value {
            Some(value) => drop(objects.insert(key, (revision, value.as_slice()))?),
            None => drop(objects.remove(key)?),
        }
        results.push(Ok(revision));
    }
    if revision != begin {
        meta.insert(KEY_REVISION, revision)?;
    }
    Ok(results)
}

impl Journal for Redb {
    fn replay(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.read(|transaction| {
            let journal = transaction.open_table(JOURNAL)?;
            let times = transaction.open_table(TIMES)?;
            Ok(entries(&journal, &times)?.1)
        })
    }

    fn append(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.write(|transaction| append(transaction, entries))
    }

    fn rewrite(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.write(|transaction| rewrite(transaction, entries))
    }

    fn history(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.read(|transaction| {
            let history = transaction.open_table(HISTORY)?;
            let mut entries = Vec::with_capacity(usize::try_from(history.len()?).unwrap_or(0));
            for row in history.iter()? {
                let (_, value) = row?;
                let (at, bytes) = value.value();
                entries.push(Entry {
                    at: Wall(at),
                    bytes: bytes.to_vec(),
                });
            }
            Ok(entries)
        })
    }
}

impl Objects for Redb {
    fn list(&mut self) -> Result<Vec<Object>, StoreError> {
        self.read(|transaction| {
            let objects = transaction.open_table(OBJECTS)?;
            let rows = objects.iter()?;
            rows.map(|row| {
                let (key, value) = row?;
                let (revision, value) = value.value();
                Ok(Object {
                    key: key.value().to_owned(),
                    revision,
                    value: value.to_vec(),
                })
            })
            .collect()
        })
    }

    fn swap(&mut self, swaps: &[Swap]) -> Result<Vec<Result<u64, Conflict>>, StoreError> {
        let results = self.write(|transaction| swap_each(transaction, swaps))?;
        for (swap, result) in swaps.iter().zip(&results) {
            if let Ok(revision) = result {
                self.tell(swap, *revision);
            }
        }
        Ok(results)
    }

    fn watch(&mut self) -> broadcast::Receiver<Change> {
        self.feed.subscribe()
    }
}

impl Store for Redb {
    fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError> {
        let fail = |error| self.failed(error);
        let transaction = self.begin().map_err(fail)?;
        // Err: the transaction is dropped, which undoes it.
        let results = swap_each(&transaction, &job.swaps).map_err(fail)?;
        let revisions = job
            .swaps
            .iter()
            .zip(results)
            .map(|(swap, result)| result.map_err(|conflict| swap.fenced(conflict.found)))
            .collect::<Result<Vec<u64>, _>>()?;
        if !job.append.is_empty() {
            append(&transaction, &job.append).map_err(fail)?;
        }
        if let Some(entries) = &job.rewrite {
            rewrite(&transaction, entries).map_err(fail)?;
        }
        transaction.commit().map_err(|error| self.failed(error))?;
        for (swap, revision) in job.swaps.iter().zip(&revisions) {
            self.tell(swap, *revision);
        }
        Ok(revisions)
    }
}
