//! Which version a participant believes: the highest valid one, from whomever it came.

use std::sync::Arc;

use super::{Chain, Document};
use crate::ids::NetworkUid;

/// The document of one network as one participant holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentStore {
    chain: Chain,
}

/// What an offered chain is worth. Only [`Offer::Newer`] changes anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Higher and valid: apply it.
    Newer(Chain),
    /// The version that is held.
    Same,
    /// Lower than the version that is held.
    Older { held: u64, offered: u64 },
    /// The same version with other content: somebody signed twice. An alarm.
    Conflict { version: u64 },
    /// Of another network.
    OtherNetwork { offered: NetworkUid },
}

impl DocumentStore {
    pub const fn new(chain: Chain) -> Self {
        Self { chain }
    }

    pub fn uid(&self) -> NetworkUid {
        self.chain.uid()
    }

    pub fn version(&self) -> u64 {
        self.document().version
    }

    pub fn document(&self) -> &Arc<Document> {
        self.chain.document()
    }

    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Judges a chain that somebody offered; changes nothing.
    pub fn decide(&self, offered: &Chain) -> Offer {
        if offered.uid() != self.uid() {
            return Offer::OtherNetwork {
                offered: offered.uid(),
            };
        }
        // A version that both chains show must be the same bytes.
        for held in self.chain.links() {
            let version = held.document.version;
            let other = offered
                .links()
                .iter()
                .find(|link| link.document.version == version);
            if other.is_some_and(|other| other.bytes != held.bytes) {
                return Offer::Conflict { version };
            }
        }
        let (held, version) = (self.version(), offered.document().version);
        if version == held {
            return Offer::Same;
        }
        if version < held {
            return Offer::Older {
                held,
                offered: version,
            };
        }
        // A higher version must rest on every key change that is known: else a key that was
        // taken away could still sign.
        for change in self.chain.key_changes() {
            if !offered.key_changes().any(|link| link.bytes == change.bytes) {
                return Offer::Conflict {
                    version: change.document.version,
                };
            }
        }
        Offer::Newer(offered.clone())
    }

    /// Takes a chain that [`Self::decide`] called newer (or one read back from the journal).
    pub fn apply(&mut self, chain: Chain) {
        assert_eq!(chain.uid(), self.uid(), "a document of another network");
        if chain.document().version > self.version() {
            self.chain = chain;
        }
    }
}
