//! What two registries tell each other.

use core::time::Duration;
use std::sync::Arc;

use crate::document::Chain;
use crate::ids::{DomainName, NetworkUid};
use crate::registry::Endpoint;

/// One end of one sync stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamId {
    /// Numbered by the machine that asked for the dial.
    Dialled(u64),
    /// Numbered by the shell that accepted it.
    Accepted(u64),
}

impl SyncMessage {
    /// Whether endpoints may change with it.
    pub const fn changes(&self) -> bool {
        matches!(
            self,
            Self::Upsert { .. } | Self::Remove { .. } | Self::EndOfSnapshot { .. }
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncMessage {
    /// The first message of either direction: a snapshot follows.
    Open {
        version: u32,
        domain: DomainName,
        epoch: [u8; 16],
        uids: Vec<NetworkUid>,
    },
    /// Sequences of one direction rise by one from 1.
    Upsert {
        sequence: u64,
        uid: NetworkUid,
        /// One for all streams that it goes to.
        endpoint: Arc<Endpoint>,
        lifetime: Duration,
    },
    Remove {
        sequence: u64,
        uid: NetworkUid,
        name: Arc<str>,
    },
    /// What was not named since `Open` is gone.
    EndOfSnapshot {
        sequence: u64,
    },
    Document(Chain),
    KeepAlive {
        sequence: u64,
    },
}
