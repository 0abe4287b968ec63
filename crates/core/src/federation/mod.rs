//! Streams between registries: who dials whom, what is said, who is silent.
//!
//! A child of the registry's machine, which owns documents and objects and judges what a
//! remote domain says. One stream per remote domain; both directions carry a snapshot, its
//! end, numbered changes and newer documents.

mod import;
mod message;
mod pace;
mod saying;
mod scope;
mod streams;

#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

pub use import::{Disbelief, believe};
pub use message::{StreamId, SyncMessage};
pub use pace::Work;
pub use scope::Scope;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::backoff::Backoff;
use crate::deadlines::Deadlines;
use crate::document::Chain;
use crate::ids::{DomainName, NetworkUid};
use crate::rate::{Bucket, Rate};
use crate::registry::Endpoint;
use crate::rng::Rng;
use crate::time::Mono;

/// Version of the sync protocol that is spoken; lower ones are not.
pub const SYNC_VERSION: u32 = 1;

/// Limits and durations.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sent on an open stream.
    pub keep_alive: Duration,
    /// Nothing heard for so long: the stream is dead.
    pub silence: Duration,
    /// How long the domain that is not preferred waits for the other one's dial.
    pub second_dial_after: Duration,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// How long a domain's entries stay after its stream was lost.
    pub stale_grace: Duration,
    /// Endpoints believed of one domain; what is above is not taken.
    pub endpoints_max: usize,
    pub endpoint_bytes_max: usize,
    /// What a domain's stream may change per second, and at once after silence; 0 = without
    /// limit. Beyond that the stream ends.
    pub changes: Rate,
    /// Numbers of dialled streams start above: what is said late of the streams of another
    /// machine in the same process means none of these.
    pub streams_above: u64,
    /// What the endpoints of one domain, and of all, may cost in memory; what is above is
    /// not taken.
    pub domain_bytes_max: usize,
    pub total_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            second_dial_after: Duration::from_secs(5),
            backoff_first: Duration::from_millis(250),
            backoff_max: Duration::from_secs(15),
            stale_grace: Duration::from_secs(3600),
            endpoints_max: 1024,
            endpoint_bytes_max: 8 * 1024,
            changes: Rate {
                per_second: 200,
                burst: 4096,
            },
            streams_above: 0,
            domain_bytes_max: 1024 * 1024,
            total_bytes_max: 256 * 1024 * 1024,
        }
    }
}

/// What the documents say about a remote domain, over all networks that are common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    pub contacts: Vec<String>,
    pub dials_only: bool,
    pub uids: BTreeSet<NetworkUid>,
}

/// What the parent has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Dial {
        stream: StreamId,
        domain: DomainName,
        contacts: Vec<String>,
    },
    Send {
        stream: StreamId,
        messages: Vec<SyncMessage>,
    },
    Close {
        stream: StreamId,
        reason: String,
    },
    /// A stream stands: call [`Federation::greet`].
    Greet {
        domain: DomainName,
    },
    /// The networks that the domain believes to be common; once per stream.
    Opened {
        domain: DomainName,
        uids: BTreeSet<NetworkUid>,
    },
    Upsert {
        domain: DomainName,
        uid: NetworkUid,
        endpoint: Arc<Endpoint>,
    },
    Remove {
        domain: DomainName,
        uid: NetworkUid,
        name: Arc<str>,
    },
    /// The domain's snapshot is complete: what its stream did not vouch for is gone.
    Synced {
        domain: DomainName,
    },
    /// The domain's stream is lost: its entries are stale from now on.
    Lost {
        domain: DomainName,
    },
    Offered {
        domain: DomainName,
        chain: Chain,
    },
}

/// All remote domains.
#[derive(Debug)]
pub struct Federation {
    domain: DomainName,
    epoch: [u8; 16],
    config: Config,
    rng: Rng,
    /// Whether the own domain cannot be dialled.
    dials_only: bool,
    remotes: BTreeMap<DomainName, Remote>,
    streams: BTreeMap<StreamId, DomainName>,
    next_stream: u64,
    /// When which domain's timers are due.
    timers: Deadlines<DomainName>,
    connected: usize,
}

#[derive(Debug)]
struct Remote {
    membership: Membership,
    stream: Option<Stream>,
    dial: Dial,
    backoff: Backoff,
    /// What it may still make us do, by the best network in which it speaks: who speaks for it
    /// in another one only does not use that up.
    paces: BTreeMap<NetworkUid, Bucket>,
    /// When its registry was heard last, on whatever stream.
    heard: Option<Mono>,
    /// Why the last stream ended or could not be dialled, and when.
    error: Option<(Mono, String)>,
    /// As [`Federation::timers`] and [`Federation::connected`] have it.
    armed: Option<Mono>,
    counted: bool,
}

/// When a remote domain is dialled that has no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    /// It has no address, or a stream stands.
    Never,
    At(Mono),
    Dialling(StreamId),
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    /// Where the other end speaks for its domain.
    scope: Scope,
    /// Last sequence sent and received.
    sent: u64,
    received: u64,
    heard: Mono,
    next_keep_alive: Mono,
    /// Whether the other end said who it is.
    greeted: bool,
    /// Whether a snapshot is coming in.
    snapshot: bool,
    /// Whether a whole snapshot came in.
    synced: bool,
}

/// The state of one remote domain, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteStatus {
    pub domain: DomainName,
    pub connected: bool,
    pub synced: bool,
    pub dialled_by_us: bool,
    /// When its registry was heard last, on whatever stream.
    pub heard: Option<Mono>,
    /// Why the last stream ended or could not be dialled, and when.
    pub last_error: Option<(Mono, String)>,
}
