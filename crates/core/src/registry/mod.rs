//! A domain's registry as one machine: documents, leases, services and endpoints, names, and
//! what other domains' registries say.
//!
//! Durable changes are [`Record`]s. A command is decided, its records are applied at once
//! and appended together with those of other commands that arrive meanwhile; replies, watch
//! events and sync messages that could rest on them leave after the append, in order.

mod access;
mod announce;
mod api;
#[cfg(test)]
mod bench;
mod calls;
mod check;
#[cfg(test)]
mod check_tests;
mod expiry;
mod find;
mod follow;
mod held;
mod index;
mod inspect;
mod journal;
mod machine;
mod matching;
mod names;
mod network;
mod object;
mod objects;
#[cfg(test)]
mod ownership_tests;
#[cfg(test)]
mod pace_tests;
mod packed;
#[cfg(test)]
mod paging_tests;
mod record;
mod registrations;
mod remotes;
#[cfg(test)]
mod replica_model;
#[cfg(test)]
mod replica_tests;
#[cfg(test)]
mod rights_tests;
#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod semantics_tests;
mod shown;
mod speakers;
#[cfg(test)]
mod speakers_tests;
mod stock;
mod stock_streams;
#[cfg(test)]
mod strangers_tests;
mod sync;
mod watch;

#[cfg(test)]
mod tests;

pub use api::{
    Alarm, CallId, Command, Config, Effect, FoundEndpoint, Input, Page, Peer, Place, Query,
    Refusal, Reply, WatchEvent, WatcherId,
};
pub use check::{Report, Violation, check};
pub use inspect::{HeldDomain, HeldLease, HeldName, Origin};
pub use machine::{Boot, BootError, Counts, RegistryMachine};
pub use matching::{EndpointQuery, ServiceQuery};
pub use object::{
    Destination, Endpoint, LABEL_DIALS_ONLY, LABEL_DOMAIN, LABEL_GENERATION, LABEL_NAME,
    LABEL_PROTO, LABEL_ROLE, LABEL_UDP, LABEL_UID, Labels, Marks, Match, Service,
};
pub use packed::Packed;
pub use record::{Claim, ObjectKey, Record, rewritten};
pub use remotes::RemoteSize;
pub use shown::Shown;
pub use speakers::{Contradiction, contradictions};
pub use stock::StockAcquire;
pub use stock_streams::{Half, InUse, StockStreams, StockUse};
