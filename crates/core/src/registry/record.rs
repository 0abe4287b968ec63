//! One durable change of a registry. The journal is a list of these; replaying it gives the
//! state that ran.

use std::net::IpAddr;

use super::object::{Endpoint, Service};
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
        endpoint: Endpoint,
        owner: SpiffeId,
    },
    EndpointRemoved {
        name: String,
    },
    /// What a remote domain's registry said; `endpoint` under its own name there.
    Remote {
        uid: NetworkUid,
        domain: DomainName,
        endpoint: Endpoint,
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
