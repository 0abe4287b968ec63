//! The chain of versions that proves the newest document: every version in which the admin
//! keys changed, version 1 first, then the newest. Each link is signed by an admin key of
//! the link before it; version 1 by one of its own, which the uid covers.

use std::sync::Arc;

use super::{AdminKey, Document, Problems, Signature, validate};
use crate::ids::NetworkUid;

/// Key changes in a network's life; beyond that a chain is refused.
pub const LINKS_MAX: usize = 64;
/// Signatures that one version may carry.
pub const SIGNATURES_MAX: usize = 16;

/// One version: the bytes that were signed, as received, and what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDocument {
    /// The encoded document; stored and relayed unchanged.
    pub bytes: Vec<u8>,
    pub document: Arc<Document>,
    pub signatures: Vec<Signature>,
}

/// A verified chain; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    links: Arc<[SignedDocument]>,
}

/// Why a chain proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("the document chain is empty")]
    Empty,
    #[error("the document chain has {count} versions, at most {LINKS_MAX} are allowed")]
    TooLong { count: usize },
    #[error("the first version of the chain is {version}, it must be 1")]
    FirstVersion { version: u64 },
    #[error("version {version}: uid {uid} does not belong to its nonce and admin keys ({derived})")]
    Uid {
        version: u64,
        uid: NetworkUid,
        derived: NetworkUid,
    },
    #[error("version {version} is of network {found}, the chain is of {expected}")]
    OtherNetwork {
        version: u64,
        found: NetworkUid,
        expected: NetworkUid,
    },
    #[error("version {version} follows version {before}, versions must grow")]
    Order { version: u64, before: u64 },
    #[error(
        "version {version} is not signed by an admin key of version {before} ({signatures} signatures)"
    )]
    Unsigned {
        version: u64,
        before: u64,
        signatures: usize,
    },
    #[error(
        "version {version} changes no admin key and is not the newest: it does not belong into the chain"
    )]
    Superfluous { version: u64 },
    #[error("version {version}: {problems}")]
    Invalid { version: u64, problems: Problems },
}

impl SignedDocument {
    /// Signs `bytes`, which must be the encoding of `document`.
    pub fn sign(bytes: Vec<u8>, document: Document, secrets: &[&super::AdminSecret]) -> Self {
        let signatures = secrets.iter().map(|secret| secret.sign(&bytes)).collect();
        Self {
            bytes,
            document: Arc::new(document),
            signatures,
        }
    }

    fn is_signed_by_one_of(&self, keys: &std::collections::BTreeSet<AdminKey>) -> bool {
        self.signatures
            .iter()
            .take(SIGNATURES_MAX)
            .any(|signature| keys.contains(&signature.key) && signature.verifies(&self.bytes))
    }
}

impl Chain {
    /// Checks order, uid, signatures and the content of the newest version.
    pub fn verify(links: Vec<SignedDocument>) -> Result<Self, ChainError> {
        let first = links.first().ok_or(ChainError::Empty)?;
        if links.len() > LINKS_MAX {
            return Err(ChainError::TooLong { count: links.len() });
        }
        let root = &first.document;
        if root.version != 1 {
            return Err(ChainError::FirstVersion {
                version: root.version,
            });
        }
        let derived = NetworkUid::derive(&root.nonce, &root.admin_keys);
        if derived != root.uid {
            return Err(ChainError::Uid {
                version: 1,
                uid: root.uid,
                derived,
            });
        }
        let unsigned = |link: &SignedDocument, before: u64| ChainError::Unsigned {
            version: link.document.version,
            before,
            signatures: link.signatures.len(),
        };
        if !first.is_signed_by_one_of(&root.admin_keys) {
            return Err(unsigned(first, 1));
        }
        for (index, pair) in links.windows(2).enumerate() {
            let (before, link) = (&pair[0].document, &pair[1].document);
            if link.uid != root.uid {
                let (found, expected) = (link.uid, root.uid);
                return Err(ChainError::OtherNetwork {
                    version: link.version,
                    found,
                    expected,
                });
            }
            if link.version <= before.version {
                return Err(ChainError::Order {
                    version: link.version,
                    before: before.version,
                });
            }
            if !pair[1].is_signed_by_one_of(&before.admin_keys) {
                return Err(unsigned(&pair[1], before.version));
            }
            let newest = index + 2 == links.len();
            if !newest && link.admin_keys == before.admin_keys {
                return Err(ChainError::Superfluous {
                    version: link.version,
                });
            }
        }
        let chain = Self {
            links: links.into(),
        };
        let newest = chain.document();
        validate(newest).map_err(|problems| ChainError::Invalid {
            version: newest.version,
            problems,
        })?;
        Ok(chain)
    }

    /// This chain with one more version on top; a newest version in which no key changed is
    /// replaced.
    pub fn extend(&self, next: SignedDocument) -> Result<Self, ChainError> {
        let mut links: Vec<_> = self.key_changes().cloned().collect();
        // Whatever lies between must not be skipped: the new version follows the newest one.
        let before = self.document().version;
        if next.document.version <= before {
            return Err(ChainError::Order {
                version: next.document.version,
                before,
            });
        }
        links.push(next);
        Self::verify(links)
    }

    pub fn uid(&self) -> NetworkUid {
        self.document().uid
    }

    /// The newest version.
    pub fn document(&self) -> &Arc<Document> {
        &self.newest().document
    }

    pub fn newest(&self) -> &SignedDocument {
        self.links
            .last()
            .expect("a verified chain has a first version")
    }

    pub fn links(&self) -> &[SignedDocument] {
        &self.links
    }

    /// The versions in which the admin keys changed, version 1 included.
    pub fn key_changes(&self) -> impl Iterator<Item = &SignedDocument> + '_ {
        self.links.iter().enumerate().filter_map(|(index, link)| {
            let changed =
                index == 0 || self.links[index - 1].document.admin_keys != link.document.admin_keys;
            changed.then_some(link)
        })
    }
}
