//! What a registry keeps: a journal (documents, leases, names) and objects (services,
//! endpoints), behind two traits, with engines in memory, in a file, and over an etcd that
//! several replicas share.
//!
//! Engines are synchronous and owned by one writer thread.

mod backup;
mod codec;
mod config;
#[cfg(feature = "etcd")]
mod etcd;
mod history;
mod lock;
mod memory;
mod redb;
mod shared;
mod shared_memory;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

#[cfg(feature = "etcd")]
pub use self::etcd::Etcd;
pub use self::redb::Redb;
pub(crate) use backup::sync_parent;
pub use backup::{BACKUP_FORMAT, Backup, BackupError, Contents};
pub use codec::{CodecError, decode, decode_removal, encode};
pub use config::{EtcdConfig, StoreConfig};
pub use history::{Entry, HISTORY_BYTES_MAX, HISTORY_ENTRIES_MAX};
pub use lock::StateLock;
pub use memory::Memory;
pub use shared::{Candidate, Claim, Followed, Shared};
pub use shared_memory::SharedMemory;

use std::path::PathBuf;

/// Format of what is stored. A newer one is refused.
pub const FORMAT: u64 = 1;

/// By what the caller does next: stop and leave it to a human ([`Self::Open`],
/// [`Self::Newer`], [`Self::Record`]), make room or permissions and start again
/// ([`Self::Full`], [`Self::ReadOnly`]), load again ([`Self::Fenced`]), try the same again
/// ([`Self::Unavailable`]), start again ([`Self::Read`], [`Self::Write`]).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing to repair here: another process, a damaged file.
    #[error("open the state file {path}: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error(
        "the state has format {found}, this program reads {FORMAT}: it was written by a newer version"
    )]
    Newer { found: u64 },
    #[error("no space left for the state in {place}: {reason}")]
    Full { place: String, reason: String },
    #[error("the state in {place} may not be written: {reason}")]
    ReadOnly { place: String, reason: String },
    /// Somebody else wrote since this one loaded. Nothing of the job was done, or, where the
    /// engine takes several steps for one of that size, a beginning of it.
    #[error("another writer is at work: {by}")]
    Fenced { by: String },
    /// The store does not answer, or not as a whole. Whether the job was done is not known
    /// yet: the same job, handed over again, finds out and is done once.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    #[error("read the state: {0}")]
    Read(String),
    #[error("write the state: {0}")]
    Write(String),
    #[error("record {position}: {source}")]
    Record {
        position: u64,
        #[source]
        source: CodecError,
    },
}

/// An append-only list of entries with one revision, which a snapshot may replace.
pub trait Journal: Send {
    /// Every entry in order.
    fn replay(&mut self) -> Result<Vec<Entry>, StoreError>;

    /// Adds the entries, all or none, durably on return. The new revision.
    fn append(&mut self, entries: &[Entry]) -> Result<u64, StoreError>;

    /// Puts these entries in the place of all that stand there, all or none, durably on
    /// return. An entry that stood there already keeps its time; what is replaced becomes
    /// history.
    fn rewrite(&mut self, entries: &[Entry]) -> Result<u64, StoreError>;

    /// What rewrites replaced, in the order of its appending, within [`HISTORY_ENTRIES_MAX`]
    /// and [`HISTORY_BYTES_MAX`].
    fn history(&mut self) -> Result<Vec<Entry>, StoreError>;
}

/// A change of one object: what must stand there, what shall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    pub key: String,
    /// The revision that must be found; None: the key must not exist.
    pub expected: Option<u64>,
    /// None removes the key.
    pub value: Option<Vec<u8>>,
}

impl Swap {
    fn fenced(&self, found: Option<u64>) -> StoreError {
        let by = format!(
            "{} has revision {found:?} and not {:?}",
            self.key, self.expected
        );
        StoreError::Fenced { by }
    }
}

/// A swap that did not happen, and the revision that stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub found: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub revision: u64,
    pub value: Vec<u8>,
}

/// What somebody (this process, or another replica where the engine has any) changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    pub revision: u64,
    pub value: Option<Vec<u8>>,
}

/// Keyed values, each with a revision of its own.
pub trait Objects: Send {
    fn list(&mut self) -> Result<Vec<Object>, StoreError>;

    /// Each swap for itself, in order; those that happened are durable on return.
    fn swap(&mut self, swaps: &[Swap]) -> Result<Vec<Result<u64, Conflict>>, StoreError>;

    /// Changes from now on. A receiver that falls behind is told so and lists again.
    fn watch(&mut self) -> tokio::sync::broadcast::Receiver<Change>;
}

/// What one command, or several that shared the wait for the disk, leave to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Chosen at random by the writer: says whether an earlier try of the same job got through.
    pub id: u128,
    pub append: Vec<Entry>,
    /// A snapshot that takes the place of the whole journal, `append` included.
    pub rewrite: Option<Vec<Entry>>,
    /// At most one per key.
    pub swaps: Vec<Swap>,
}

/// One engine that is both.
pub trait Store: Journal + Objects {
    /// All of the job, durably on return. The revisions of the swaps, in order. A swap that finds
    /// another revision than it expects is [`StoreError::Fenced`].
    ///
    /// A crash, or a swap that is fenced, leaves all or nothing of a job that fits into one step
    /// of the engine: any job in memory and in a file; in an etcd one of at most 100 entries and
    /// swaps and 1 MiB. Of a larger one it may leave a beginning, in the order of `append`,
    /// `swaps`, `rewrite`, each of whole entries and objects, and the rewrite as a whole: nobody
    /// was told that it was done, and each such state is one that smaller jobs could have left.
    fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError>;
}

/// Where a registry keeps its state.
#[expect(
    missing_debug_implementations,
    reason = "engines hold handles that print nothing"
)]
pub enum Kept {
    /// In a store that nobody else writes.
    Own(Box<dyn Store>),
    /// In one that several replicas share.
    Shared(std::sync::Arc<dyn Shared>),
}

impl From<Box<dyn Store>> for Kept {
    fn from(store: Box<dyn Store>) -> Self {
        Self::Own(store)
    }
}

impl<S: Store + 'static> From<Box<S>> for Kept {
    fn from(store: Box<S>) -> Self {
        Self::Own(store)
    }
}

impl From<std::sync::Arc<dyn Shared>> for Kept {
    fn from(shared: std::sync::Arc<dyn Shared>) -> Self {
        Self::Shared(shared)
    }
}
