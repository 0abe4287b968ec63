//! One durable change of a registry. The journal is a list of these; replaying it gives the
//! state that ran.

use core::fmt;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::object::{Endpoint, Service};
use super::packed::Packed;
use crate::allocator::LeaseRecord;
use crate::document::Chain;
use crate::ids::{DomainName, NetworkUid, RouterName, SpiffeId, WorkloadName};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A newer version of a network's document.
    Document {
        chain: Chain,
    },
    Lease {
        uid: NetworkUid,
        record: LeaseRecord,
    },
    Service {
        service: Service,
        owner: SpiffeId,
    },
    ServiceRemoved {
        name: String,
    },
    Endpoint {
        endpoint: Arc<Endpoint>,
        owner: SpiffeId,
    },
    EndpointRemoved {
        name: String,
    },
    /// What a remote domain's registry said; `endpoint` under its own name there.
    Remote {
        uid: NetworkUid,
        domain: DomainName,
        endpoint: Packed,
    },
    RemoteRemoved {
        domain: DomainName,
        name: String,
    },
    Name {
        uid: NetworkUid,
        claim: Claim,
        by: SpiffeId,
    },
    NameReleased {
        uid: NetworkUid,
        name: WorkloadName,
    },
}

/// Where an object is kept. Objects are keyed, the last word on a key stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKey {
    Service(String),
    Endpoint(String),
    Remote(DomainName, String),
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service/{name}"),
            Self::Endpoint(name) => write!(f, "endpoint/{name}"),
            Self::Remote(domain, name) => write!(f, "remote/{domain}/{name}"),
        }
    }
}

impl Record {
    /// The key of the object that this record sets or removes; None: it belongs into the
    /// journal.
    pub fn object_key(&self) -> Option<ObjectKey> {
        match self {
            Self::Service { service, .. } => Some(ObjectKey::Service(service.name.clone())),
            Self::ServiceRemoved { name } => Some(ObjectKey::Service(name.clone())),
            Self::Endpoint { endpoint, .. } => Some(ObjectKey::Endpoint(endpoint.name.clone())),
            Self::EndpointRemoved { name } => Some(ObjectKey::Endpoint(name.clone())),
            Self::Remote {
                domain, endpoint, ..
            } => Some(ObjectKey::Remote(
                domain.clone(),
                endpoint.name().to_owned(),
            )),
            Self::RemoteRemoved { domain, name } => {
                Some(ObjectKey::Remote(domain.clone(), name.clone()))
            }
            Self::Document { .. }
            | Self::Lease { .. }
            | Self::Name { .. }
            | Self::NameReleased { .. } => None,
        }
    }

    pub(super) fn is_journal(&self) -> bool {
        match self {
            Self::Document { .. }
            | Self::Lease { .. }
            | Self::Name { .. }
            | Self::NameReleased { .. } => true,
            Self::Service { .. }
            | Self::ServiceRemoved { .. }
            | Self::Endpoint { .. }
            | Self::EndpointRemoved { .. }
            | Self::Remote { .. }
            | Self::RemoteRemoved { .. } => false,
        }
    }

    const fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::ServiceRemoved { .. } | Self::EndpointRemoved { .. } | Self::RemoteRemoved { .. }
        )
    }
}

/// What a store holds that held `kept` and carries out a rewrite: the new journal, and of the
/// objects of `kept` and `records` the last word on each key. The reference for stores.
pub fn rewritten(kept: &[Record], records: &[Record], journal: Vec<Record>) -> Vec<Record> {
    let mut objects = BTreeMap::new();
    for record in kept.iter().chain(records) {
        if let Some(key) = record.object_key() {
            if record.is_removal() {
                objects.remove(&key);
            } else {
                objects.insert(key, record);
            }
        }
    }
    let mut all = journal;
    all.extend(objects.into_values().cloned());
    all
}

/// A workload's name, who holds it and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub name: WorkloadName,
    /// The identity that holds the name.
    pub workload: SpiffeId,
    pub addresses: Vec<IpAddr>,
    /// The name lives as long as this router's lease.
    pub router: RouterName,
}

/// The planted bug of a replay.
#[cfg(feature = "plants")]
pub(super) fn planted(mut record: Record) -> Record {
    if crate::plants::Plant::Replay.is_chosen()
        && let Record::Lease {
            record: LeaseRecord::Granted { lease, .. },
            ..
        } = &mut record
    {
        lease.generation = crate::ids::Generation(1);
    }
    record
}
