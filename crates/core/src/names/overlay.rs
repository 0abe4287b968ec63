//! What the router tells its DNS server about the network: names, servers, who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::services::{Speakers, speakers};
use super::upstream::{Owner, Upstream};
use super::{Data, Name, NameError, Policy, Record, RecordType};
use crate::document::{Document, Member};
use crate::ids::{DomainName, RouterName, WorkloadName};
use crate::time::{Mono, Now};

/// TTL of local records, seconds (R1.5).
pub const LOCAL_TTL: u32 = 30;
/// Where the servers of other routers listen.
pub const DNS_PORT: u16 = 53;

/// Who asks, by the ingress that owns the source address (R4.1). Order: who may get more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientClass {
    /// Another router of the own domain: gets this router's names.
    Sibling,
    /// A router of another domain: gets this domain's names.
    Remote,
    /// A workload or leaf of this router: gets anyone's names.
    Member,
}

/// Addresses of one workload of this router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalName {
    pub addresses: BTreeSet<IpAddr>,
    /// TTLs never exceed what is left until then (R1.5).
    pub lease_until: Option<Mono>,
}

/// A server to ask: a live router of another domain, or a sibling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainServer {
    pub domain: DomainName,
    pub router: RouterName,
    /// Overlay addresses in order of preference; empty: known, but nobody lives.
    pub addresses: Vec<IpAddr>,
    pub sibling: bool,
}

/// What a router tells its DNS server, whole, on every change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverState {
    pub sequence: u64,
    pub domain: DomainName,
    pub names: BTreeMap<WorkloadName, LocalName>,
    pub servers: Vec<DomainServer>,
    pub clients: Vec<(IpNet, ClientClass)>,
    pub own_addresses: Vec<IpAddr>,
}

/// The network's part of a view: document and state.
#[derive(Clone, Debug)]
pub struct NetworkParts {
    pub document: Arc<Document>,
    pub state: ResolverState,
    /// Policy for `<name>.<zone>`, where no suffix of the view says otherwise.
    pub shared_names: Policy,
    /// Where other routers' servers listen; [`DNS_PORT`] but in tests.
    pub port: u16,
}

/// The network's part of a view, checked and indexed.
#[derive(Clone, Debug)]
pub struct Network {
    pub(super) document: Arc<Document>,
    pub(super) zone: Name,
    pub(super) shared_policy: Policy,
    pub(super) state: ResolverState,
    pub(super) by_address: BTreeMap<IpAddr, WorkloadName>,
    /// One live server per other domain (R1.9).
    servers: BTreeMap<DomainName, Arc<Upstream>>,
    siblings: Vec<Arc<Upstream>>,
    rejected: Vec<IpAddr>,
}

impl Network {
    /// Fails only when the document's zone is no name.
    pub(super) fn new(parts: NetworkParts) -> Result<Self, NameError> {
        let NetworkParts {
            document,
            mut state,
            shared_names,
            port,
        } = parts;
        let zone = Name::parse(&document.zone)?;
        let rejected = reject_own_listeners(&mut state);
        let mut by_address = BTreeMap::new();
        for (name, local) in &state.names {
            for address in &local.addresses {
                by_address.entry(*address).or_insert_with(|| name.clone());
            }
        }
        let mut servers = BTreeMap::new();
        let mut siblings = Vec::new();
        for server in &state.servers {
            let upstream = Arc::new(upstream(server, port, &zone));
            if server.sibling {
                siblings.push(upstream);
            } else if !server.addresses.is_empty() {
                servers.entry(server.domain.clone()).or_insert(upstream);
            }
        }
        for member in document.members.values() {
            servers.entry(member.domain.clone()).or_insert_with(|| {
                let nobody = DomainServer {
                    domain: member.domain.clone(),
                    router: nobody(),
                    addresses: Vec::new(),
                    sibling: false,
                };
                Arc::new(upstream(&nobody, port, &zone))
            });
        }
        Ok(Self {
            document,
            zone,
            shared_policy: shared_names,
            state,
            by_address,
            servers,
            siblings,
            rejected,
        })
    }

    pub const fn zone(&self) -> &Name {
        &self.zone
    }

    pub const fn domain(&self) -> &DomainName {
        &self.state.domain
    }

    pub fn document(&self) -> &Document {
        &self.document
    }

    pub const fn state(&self) -> &ResolverState {
        &self.state
    }

    /// Server addresses that are our own listeners and are never asked (R4.4).
    pub fn rejected_servers(&self) -> &[IpAddr] {
        &self.rejected
    }

    /// The ranges that overlay addresses come from.
    pub(super) fn pools(&self) -> impl Iterator<Item = IpNet> + Clone {
        let pool4 = self.document.pool4.map(IpNet::V4);
        pool4.into_iter().chain([IpNet::V6(self.document.pool6)])
    }

    /// Every server that may be asked, each once.
    pub(super) fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.servers
            .values()
            .chain(&self.siblings)
            .filter(|upstream| !upstream.servers.is_empty())
    }

    /// `<name>.<domain>.<zone>`.
    pub fn canonical(&self, name: &WorkloadName, domain: &DomainName) -> Result<Name, NameError> {
        self.zone.child(domain.as_str())?.child(name.as_str())
    }

    /// Whether a name lies in a tree that belongs to `domain` alone: below its label in the zone,
    /// or in that of a service (R1.7).
    pub fn belongs_to(&self, name: &Name, domain: &DomainName) -> bool {
        let in_zone = name.below(&self.zone).is_some_and(|labels| {
            labels.len() >= 2 && labels.last() == Some(&domain.as_str().as_bytes())
        });
        in_zone || speakers(name) == Some(Speakers::One(domain.to_string()))
    }

    /// Live members that may answer shared names, the own domain included (R1.8).
    pub(super) fn contributors(&self, now: Now) -> impl Iterator<Item = &Member> + '_ {
        self.document
            .live_members(now.wall)
            .filter(|member| self.document.contributes_shared(&member.domain))
    }

    /// The one server of another domain (R1.9); without addresses when nobody lives.
    pub(super) fn server_of(&self, domain: &DomainName) -> Option<&Arc<Upstream>> {
        self.servers.get(domain)
    }

    /// Every sibling: each holds other names of the own domain. Without addresses: known, but not
    /// alive.
    pub(super) fn siblings(&self) -> &[Arc<Upstream>] {
        &self.siblings
    }

    /// Records of a local name of one type; `ANY` gives one type (RFC 8482).
    pub(super) fn local_records(
        owner: &Name,
        local: &LocalName,
        rtype: RecordType,
        now: Now,
    ) -> Vec<Record> {
        let ttl = local_ttl(local.lease_until, now);
        let all = local.addresses.iter().map(|address| Record {
            owner: owner.clone(),
            ttl,
            data: Data::from(*address),
        });
        if rtype == RecordType::ANY {
            let all: Vec<Record> = all.collect();
            let first = all.first().map(|record| record.data.rtype());
            return all
                .into_iter()
                .filter(|record| Some(record.data.rtype()) == first)
                .collect();
        }
        all.filter(|record| record.data.rtype() == rtype).collect()
    }
}

/// Stands for a router whose name is not known.
pub(super) fn nobody() -> RouterName {
    RouterName::new("-").expect("one allowed character")
}

fn upstream(server: &DomainServer, port: u16, zone: &Name) -> Upstream {
    let owner = Owner {
        domain: server.domain.clone(),
        router: server.router.clone(),
        sibling: server.sibling,
    };
    let servers = server
        .addresses
        .iter()
        .map(|address| SocketAddr::new(*address, port))
        .collect();
    Upstream::overlay(owner, servers, zone)
}

pub(super) fn local_ttl(lease_until: Option<Mono>, now: Now) -> u32 {
    lease_until.map_or(LOCAL_TTL, |until| {
        let left = until.saturating_since(now.mono).as_secs();
        u32::try_from(left).unwrap_or(LOCAL_TTL).min(LOCAL_TTL)
    })
}

/// Takes our own listeners out of every server's addresses (R4.4): asking ourselves loops.
fn reject_own_listeners(state: &mut ResolverState) -> Vec<IpAddr> {
    let own: BTreeSet<IpAddr> = state
        .own_addresses
        .iter()
        .map(IpAddr::to_canonical)
        .collect();
    let mut rejected = Vec::new();
    for server in &mut state.servers {
        server.addresses.retain(|address| {
            let is_own = own.contains(&address.to_canonical());
            if is_own {
                rejected.push(*address);
            }
            !is_own
        });
    }
    rejected
}
