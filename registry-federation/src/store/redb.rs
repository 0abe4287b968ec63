//! The embedded engine: one redb file, every commit synced to the disk.

use std::path::Path;

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use tokio::sync::broadcast;

use super::memory::FEED;
use super::{Change, Conflict, FORMAT, Journal, Object, Objects, StoreError, Swap};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");
const OBJECTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("objects");

const KEY_FORMAT: &str = "format";
const KEY_REVISION: &str = "revision";
const KEY_NEXT: &str = "next";

/// The state is small; redb's default cache is a gigabyte.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// One process at a time; a second one is refused.
#[derive(Debug)]
pub struct Redb {
    database: Database,
    feed: broadcast::Sender<Change>,
}

fn read(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Read(error.into().to_string())
}

fn write(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Write(error.into().to_string())
}

impl Redb {
    /// Opens or creates the file. Damage and newer formats are errors.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Open {
            path: path.to_owned(),
            reason,
        };
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder
            .create(path)
            .map_err(|error| failed(error.to_string()))?;
        let engine = Self {
            database,
            feed: broadcast::Sender::new(FEED),
        };
        let transaction = engine.begin()?;
        {
            let mut meta = transaction.open_table(META).map_err(write)?;
            let found = meta
                .get(KEY_FORMAT)
                .map_err(read)?
                .map(|format| format.value());
            match found {
                None => drop(meta.insert(KEY_FORMAT, FORMAT).map_err(write)?),
                Some(found) if found > FORMAT => return Err(StoreError::Newer { found }),
                Some(_) => {}
            }
            transaction.open_table(JOURNAL).map_err(write)?;
            transaction.open_table(OBJECTS).map_err(write)?;
        }
        transaction.commit().map_err(write)?;
        Ok(engine)
    }

    /// As a later version would leave it.
    #[cfg(test)]
    pub(super) fn set_format(&self, format: u64) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        transaction
            .open_table(META)
            .map_err(write)?
            .insert(KEY_FORMAT, format)
            .map_err(write)?;
        transaction.commit().map_err(write)
    }

    fn begin(&self) -> Result<WriteTransaction, StoreError> {
        let mut transaction = self.database.begin_write().map_err(write)?;
        // A reply rests on what is written.
        transaction
            .set_durability(Durability::Immediate)
            .map_err(|error| StoreError::Write(error.to_string()))?;
        Ok(transaction)
    }

    fn add(&self, entries: &[Vec<u8>], replace: bool) -> Result<u64, StoreError> {
        let transaction = self.begin()?;
        let revision;
        {
            let mut meta = transaction.open_table(META).map_err(write)?;
            let mut journal = transaction.open_table(JOURNAL).map_err(write)?;
            let mut next = meta
                .get(KEY_NEXT)
                .map_err(read)?
                .map_or(0, |next| next.value());
            if replace {
                journal.retain(|_, _| false).map_err(write)?;
            }
            for entry in entries {
                journal.insert(next, entry.as_slice()).map_err(write)?;
                next += 1;
            }
            meta.insert(KEY_NEXT, next).map_err(write)?;
            revision = step(&mut meta)?;
        }
        transaction.commit().map_err(write)?;
        Ok(revision)
    }
}

/// The next revision of the whole store.
fn step(meta: &mut redb::Table<'_, &'static str, u64>) -> Result<u64, StoreError> {
    let revision = meta
        .get(KEY_REVISION)
        .map_err(read)?
        .map_or(0, |revision| revision.value())
        + 1;
    meta.insert(KEY_REVISION, revision).map_err(write)?;
    Ok(revision)
}

impl Journal for Redb {
    fn replay(&mut self) -> Result<Vec<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read().map_err(read)?;
        let journal = transaction.open_table(JOURNAL).map_err(read)?;
        let entries = journal.iter().map_err(read)?;
        entries
            .map(|entry| entry.map(|(_, value)| value.value().to_vec()).map_err(read))
            .collect()
    }

    fn append(&mut self, entries: &[Vec<u8>]) -> Result<u64, StoreError> {
        self.add(entries, false)
    }

    fn rewrite(&mut self, entries: &[Vec<u8>]) -> Result<u64, StoreError> {
        self.add(entries, true)
    }
}

impl Objects for Redb {
    fn list(&mut self) -> Result<Vec<Object>, StoreError> {
        let transaction = self.database.begin_read().map_err(read)?;
        let objects = transaction.open_table(OBJECTS).map_err(read)?;
        let rows = objects.iter().map_err(read)?;
        rows.map(|row| {
            let (key, value) = row.map_err(read)?;
            let (revision, value) = value.value();
            Ok(Object {
                key: key.value().to_owned(),
                revision,
                value: value.to_vec(),
            })
        })
        .collect()
    }

    fn swap(&mut self, swaps: &[Swap]) -> Result<Vec<Result<u64, Conflict>>, StoreError> {
        let transaction = self.begin()?;
        let mut results = Vec::with_capacity(swaps.len());
        {
            let mut meta = transaction.open_table(META).map_err(write)?;
            let mut objects = transaction.open_table(OBJECTS).map_err(write)?;
            for swap in swaps {
                let key = swap.key.as_str();
                let found = objects.get(key).map_err(read)?.map(|value| value.value().0);
                if found != swap.expected {
                    results.push(Err(Conflict { found }));
                    continue;
                }
                let revision = step(&mut meta)?;
                match &swap.value {
                    Some(value) => drop(
                        objects
                            .insert(key, (revision, value.as_slice()))
                            .map_err(write)?,
                    ),
                    None => drop(objects.remove(key).map_err(write)?),
                }
                results.push(Ok(revision));
            }
        }
        transaction.commit().map_err(write)?;
        for (swap, result) in swaps.iter().zip(&results) {
            if let Ok(revision) = result {
                let change = Change {
                    key: swap.key.clone(),
                    revision: *revision,
                    value: swap.value.clone(),
                };
                // Err: nobody watches.
                let _unwatched = self.feed.send(change);
            }
        }
        Ok(results)
    }

    fn watch(&mut self) -> broadcast::Receiver<Change> {
        self.feed.subscribe()
    }
}
