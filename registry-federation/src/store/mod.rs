//! What a registry keeps: a journal (documents, leases, names) and objects (services,
//! endpoints), behind two traits, with an engine in memory and one in a file.
//!
//! Engines are synchronous and owned by one writer thread.

mod codec;
mod memory;
mod redb;
mod shared;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

pub use self::redb::Redb;
pub use codec::{CodecError, decode, encode, object_key};
pub use memory::Memory;
pub use shared::{Candidate, Claim, Followed, Shared};

use std::path::PathBuf;

/// Format of what is stored. A newer one is refused.
pub const FORMAT: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing to repair here: another process, permissions, a damaged file.
    #[error("open the state file {path}: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error(
        "the state file has format {found}, this program reads {FORMAT}: it was written by a newer version"
    )]
    Newer { found: u64 },
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
    fn replay(&mut self) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Adds the entries, all or none, durably on return. The new revision.
    fn append(&mut self, entries: &[Vec<u8>]) -> Result<u64, StoreError>;

    /// Replaces everything by these entries, all or none, durably on return.
    fn rewrite(&mut self, entries: &[Vec<u8>]) -> Result<u64, StoreError>;
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

/// One engine that is both.
pub trait Store: Journal + Objects {}
impl<S: Journal + Objects> Store for S {}
