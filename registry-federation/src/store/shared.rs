//! A store that several replicas of one domain's registry use at once.
//!
//! At most one replica is *active* and writes; the others *follow*. Who is active is a claim
//! in the store that lapses with its holder, but safety does not rest on that: a store that
//! [`Shared::writer`] gave out compares term and head with every write, and fails with
//! `Fenced` once another term began.

use std::fmt::Debug;

use tokio::sync::{mpsc, watch};
use vl3_core::registry::Record;

use super::{Store, StoreError};

/// One replica's way to the shared store. Its calls return at once and never fail: they go on
/// for ever against a store that cannot be reached, and say so.
pub trait Shared: Debug + Send + Sync {
    /// Everything that is kept, then every change in the order of the store, until the
    /// receiver is dropped. The first message with records is a [`Followed::Reload`]. A reader
    /// that is slower than the store is not waited for: it gets a `Reload` later.
    fn follow(&self) -> mpsc::Receiver<Followed>;

    /// Stands for being the active replica from now on, until [`Self::release`]. The claim as it
    /// is known at the moment; a second call takes the place of the first one.
    fn campaign(&self, candidate: Candidate) -> watch::Receiver<Claim>;

    /// A store whose writes count in that term alone. It reads what every earlier term wrote,
    /// and nothing of an earlier term can be written after it was read.
    fn writer(&self, term: u64) -> Result<Box<dyn Store>, StoreError>;

    /// The revision of the last write of any store of [`Self::writer`]: a feed that has come so
    /// far shows it.
    fn written(&self) -> u64;

    /// Gives the claim up, so that the next replica need not wait until it lapses. Stands for
    /// nothing any more.
    fn release(&self);
}

/// One message of the ordered change feed. Revisions are the store's own and only grow.
#[derive(Debug)]
pub enum Followed {
    /// The whole state as it stands at `revision`: at first, and after a gap (compaction, a slow
    /// reader).
    Reload { revision: u64, records: Vec<Record> },
    /// What one write changed. A rewrite of the journal changes nothing and may come as a
    /// batch without records.
    Batch { revision: u64, records: Vec<Record> },
    /// The store answers again; changes follow without a gap, or else a `Reload`.
    Connected,
    /// The store does not answer, since at most a second.
    Disconnected { reason: String },
    /// What the store holds cannot be read: only an operator helps. The last message.
    Damaged(StoreError),
}

/// Who stands for being active, and where the others forward to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Distinguishes processes, also two lives of one replica.
    pub id: u128,
    /// The replica's name, for people.
    pub name: String,
    /// A `tcp://HOST:PORT` URL where the other replicas reach its registry port.
    pub address: String,
}

/// Who is active, as this replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// We are, and the store confirmed it within the lifetime of the claim: nobody else is.
    Active {
        /// Grows with every change of the active replica.
        term: u64,
    },
    Other {
        candidate: Candidate,
        term: u64,
    },
    /// Nobody is, or the store has not answered for 1.5 s at most. Who was active in a term goes
    /// on when [`Self::Active`] with that term comes again.
    Unknown,
}
