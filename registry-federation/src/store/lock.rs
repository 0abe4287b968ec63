//! The lock on a state file: one process at a time, also while there is no file or another one is
//! put in its place.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::StoreError;
use super::redb::named;

/// Beside the state file, empty, and never removed: whoever waits at a removed file would share
/// the state with whoever creates the next one.
const SUFFIX: &str = "lock";

/// Held until it is dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// For the state file at `path`, which need not exist. Fails at once where another process
    /// holds it.
    pub fn take(path: &Path) -> Result<Self, StoreError> {
        let lock = path.with_added_extension(SUFFIX);
        let failed = |error: std::io::Error| {
            let reason = format!("{}: {error}", lock.display());
            named(path, &redb::Error::Io(error)).unwrap_or_else(|| StoreError::Open {
                path: path.to_owned(),
                reason,
            })
        };
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).open(&lock);
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Open {
                path: path.to_owned(),
                reason: format!(
                    "it is already open: another process holds {}",
                    lock.display()
                ),
            }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}
