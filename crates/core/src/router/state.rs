//! What a router keeps on disk, as records and as the state that they replay to.
//! The private key and the document's meaning are the shell's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::allocator::Lease;
use crate::ids::{Generation, InstanceId, PublicKey, SpiffeId, WorkloadName};
use crate::router::{ConnectionId, Endpoint, RouterId};
use crate::time::Wall;

/// Whose an address is: the SPIFFE ID and the workload's name (one ID may run several).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Identity {
    pub id: SpiffeId,
    pub name: Option<WorkloadName>,
}

/// An address bound to an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub addresses: Vec<IpAddr>,
    /// Unset while a connection uses it; then the end of its reservation.
    pub reserved_until: Option<Wall>,
    /// The registry has granted the name.
    pub named: bool,
}

/// How a served workload is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredMechanism {
    Tun,
    WireGuard {
        public_key: PublicKey,
        endpoint: Option<Endpoint>,
    },
}

/// A served workload's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWorkload {
    pub owner: SpiffeId,
    pub identity: Identity,
    pub mechanism: StoredMechanism,
    pub mtu: u16,
}

/// A link's peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLink {
    pub peer: SpiffeId,
    pub generation: Generation,
    pub instance: InstanceId,
    pub public_key: PublicKey,
    pub endpoint: Option<Endpoint>,
    pub mtu: u16,
}

/// A route as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRoute {
    pub prefix: IpNet,
    pub preference: u32,
    pub mtu: u16,
}

/// One change. Each replaces or removes a whole entry, so replaying twice equals once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Document {
        bytes: Vec<u8>,
    },
    Lease {
        lease: Option<Lease>,
        confirmed: Wall,
    },
    Assigned {
        identity: Identity,
        assignment: Option<Assignment>,
    },
    Workload {
        connection: ConnectionId,
        workload: Option<StoredWorkload>,
    },
    Link {
        router: RouterId,
        link: Option<StoredLink>,
    },
    LinkRoutes {
        router: RouterId,
        routes: Vec<StoredRoute>,
    },
}

/// What the records add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub document: Option<Vec<u8>>,
    pub lease: Option<Lease>,
    /// When the lease was last confirmed by the registry.
    pub lease_confirmed: Wall,
    pub assignments: BTreeMap<Identity, Assignment>,
    pub workloads: BTreeMap<ConnectionId, StoredWorkload>,
    pub links: BTreeMap<RouterId, StoredLink>,
    pub routes: BTreeMap<RouterId, Vec<StoredRoute>>,
}

impl State {
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Document { bytes } => self.document = Some(bytes.clone()),
            Record::Lease { lease, confirmed } => {
                self.lease.clone_from(lease);
                self.lease_confirmed = *confirmed;
            }
            Record::Assigned {
                identity,
                assignment,
            } => put(&mut self.assignments, identity, assignment.as_ref()),
            Record::Workload {
                connection,
                workload,
            } => put(&mut self.workloads, connection, workload.as_ref()),
            Record::Link { router, link } => {
                put(&mut self.links, router, link.as_ref());
                if link.is_none() {
                    self.routes.remove(router);
                }
            }
            Record::LinkRoutes { router, routes } => {
                put(
                    &mut self.routes,
                    router,
                    (!routes.is_empty()).then_some(routes),
                );
            }
        }
    }

    /// The shortest journal that replays to this state.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        records.extend(self.document.iter().map(|bytes| Record::Document {
            bytes: bytes.clone(),
        }));
        if self.lease.is_some() {
            records.push(Record::Lease {
                lease: self.lease.clone(),
                confirmed: self.lease_confirmed,
            });
        }
        records.extend(
            self.assignments
                .iter()
                .map(|(identity, assignment)| Record::Assigned {
                    identity: identity.clone(),
                    assignment: Some(assignment.clone()),
                }),
        );
        records.extend(
            self.workloads
                .iter()
                .map(|(connection, workload)| Record::Workload {
                    connection: connection.clone(),
                    workload: Some(workload.clone()),
                }),
        );
        records.extend(self.links.iter().map(|(router, link)| Record::Link {
            router: router.clone(),
            link: Some(link.clone()),
        }));
        records.extend(
            self.routes
                .iter()
                .map(|(router, routes)| Record::LinkRoutes {
                    router: router.clone(),
                    routes: routes.clone(),
                }),
        );
        records
    }
}

fn put<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: Option<&V>) {
    match value {
        Some(value) => {
            map.insert(key.clone(), value.clone());
        }
        None => {
            map.remove(key);
        }
    }
}
