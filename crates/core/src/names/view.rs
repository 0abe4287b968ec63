//! What one network sees: its document, this router's records, whom to ask, who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Data, Name, NameError, Record, RecordType, Soa};
use crate::document::{Document, Member};
use crate::ids::{DomainName, RouterName, WorkloadName};
use crate::time::{Mono, Now};

/// TTL of local records, seconds (R1.5).
pub const LOCAL_TTL: u32 = 30;
/// TTL of negative answers, seconds (R5.2 for names of a network).
pub const NEGATIVE_TTL: u32 = 30;
/// TTL of NODATA while votes are missing, seconds (R2.5).
pub const UNSURE_TTL: u32 = 5;

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

/// How votes for one kind of name become one answer (R2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The first positive answer.
    #[default]
    FirstPositive,
    /// All positive answers together.
    Union,
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

/// Key of an upstream: a router of a domain. Local data vote first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Voter {
    Local,
    Upstream(DomainName, RouterName),
}

/// A server that a question goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub domain: DomainName,
    pub router: RouterName,
    /// Never empty.
    pub addresses: Vec<IpAddr>,
}

impl Upstream {
    pub fn voter(&self) -> Voter {
        Voter::Upstream(self.domain.clone(), self.router.clone())
    }
}

/// Everything that an answer depends on. Immutable; replaced whole (R1.1, R3.9).
#[derive(Clone, Debug)]
pub struct View {
    pub(super) document: Arc<Document>,
    pub(super) zone: Name,
    pub(super) shared_policy: Policy,
    pub(super) state: ResolverState,
    pub(super) by_address: BTreeMap<IpAddr, WorkloadName>,
    clients: ClientTable,
    rejected: Vec<IpAddr>,
}

impl View {
    /// Fails only when the document's zone is no name.
    pub fn new(
        document: Arc<Document>,
        mut state: ResolverState,
        shared_policy: Policy,
    ) -> Result<Self, NameError> {
        let zone = Name::parse(&document.zone)?;
        let rejected = reject_own_listeners(&mut state);
        let mut by_address = BTreeMap::new();
        for (name, local) in &state.names {
            for address in &local.addresses {
                by_address.entry(*address).or_insert_with(|| name.clone());
            }
        }
        let clients = ClientTable::new(&state.clients);
        Ok(Self {
            document,
            zone,
            shared_policy,
            state,
            by_address,
            clients,
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

    /// Changes with every new state.
    pub const fn sequence(&self) -> u64 {
        self.state.sequence
    }

    /// Server addresses that are our own listeners and are never asked (R4.4).
    pub fn rejected_servers(&self) -> &[IpAddr] {
        &self.rejected
    }

    /// Who asks from that address; `None`: nobody we serve.
    pub fn client_class(&self, source: IpAddr) -> Option<ClientClass> {
        self.clients.lookup(source.to_canonical())
    }

    /// `<name>.<domain>.<zone>`.
    pub fn canonical(&self, name: &WorkloadName, domain: &DomainName) -> Result<Name, NameError> {
        self.zone.child(domain.as_str())?.child(name.as_str())
    }

    /// Whether a name lies in the tree that belongs to `domain` alone.
    pub fn belongs_to(&self, name: &Name, domain: &DomainName) -> bool {
        name.below(&self.zone).is_some_and(|labels| {
            labels.len() >= 2 && labels.last() == Some(&domain.as_str().as_bytes())
        })
    }

    /// Live members that may answer shared names, the own domain included (R1.8).
    pub(super) fn contributors(&self, now: Now) -> impl Iterator<Item = &Member> + '_ {
        self.document
            .live_members(now.wall)
            .filter(|member| self.document.contributes_shared(&member.domain))
    }

    /// One live server of another domain (R1.9).
    pub(super) fn server_of(&self, domain: &DomainName) -> Option<Upstream> {
        self.state
            .servers
            .iter()
            .find(|server| {
                !server.sibling && server.domain == *domain && !server.addresses.is_empty()
            })
            .map(upstream)
    }

    /// Every sibling: each holds other names of the own domain. `Err` names one that is known but
    /// not alive.
    pub(super) fn siblings(&self) -> impl Iterator<Item = Result<Upstream, &DomainServer>> + '_ {
        self.state
            .servers
            .iter()
            .filter(|server| server.sibling)
            .map(|server| {
                if server.addresses.is_empty() {
                    Err(server)
                } else {
                    Ok(upstream(server))
                }
            })
    }

    /// Records of a local name of one type; `ANY` gives one type (RFC 8482).
    pub(super) fn local_records(
        &self,
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

    /// The SOA of a negative answer about `name`: its owner is an ancestor of the name, as
    /// negative caching wants (RFC 2308 3).
    pub(super) fn soa_above(&self, name: &Name, ttl: u32) -> Record {
        if name.is_at_or_below(&self.zone) {
            return self.soa(self.zone.clone(), ttl);
        }
        // One octet below in-addr.arpa, two nibbles below ip6.arpa, else the last label.
        let labels: Vec<&[u8]> = name.labels().collect();
        let kept = match labels.as_slice() {
            [.., b"in-addr", b"arpa"] => 3,
            [.., b"ip6", b"arpa"] => 4,
            _ => 1,
        };
        let above = labels.len().saturating_sub(kept);
        let owner = Name::from_labels(labels[above..].iter().copied()).unwrap_or_default();
        self.soa(owner, ttl)
    }

    /// The SOA itself.
    pub(super) fn soa(&self, owner: Name, ttl: u32) -> Record {
        let rname = self
            .zone
            .child("hostmaster")
            .unwrap_or_else(|_| self.zone.clone());
        // The low 32 bits, as serial arithmetic wants (RFC 1982).
        let serial = u32::try_from(self.document.version & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let soa = Soa {
            mname: self.zone.clone(),
            rname,
            serial,
            refresh: 3600,
            retry: 600,
            expire: 86_400,
            minimum: ttl,
        };
        Record {
            owner,
            ttl,
            data: Data::Soa(soa),
        }
    }
}

fn upstream(server: &DomainServer) -> Upstream {
    Upstream {
        domain: server.domain.clone(),
        router: server.router.clone(),
        addresses: server.addresses.clone(),
    }
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

/// Longest prefix of a source address.
#[derive(Clone, Debug, Default)]
struct ClientTable {
    prefixes: BTreeMap<IpNet, ClientClass>,
    /// Lengths in use, per family (v4, v6), longest first.
    lengths: [Vec<u8>; 2],
}

impl ClientTable {
    /// Of equal prefixes the class that may get less wins.
    fn new(clients: &[(IpNet, ClientClass)]) -> Self {
        let mut table = Self::default();
        for (prefix, class) in clients {
            let entry = table.prefixes.entry(prefix.trunc()).or_insert(*class);
            *entry = (*entry).min(*class);
            table.lengths[family(prefix.addr())].push(prefix.prefix_len());
        }
        for lengths in &mut table.lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        table
    }

    fn lookup(&self, source: IpAddr) -> Option<ClientClass> {
        self.lengths[family(source)].iter().find_map(|length| {
            let prefix = IpNet::new(source, *length).ok()?.trunc();
            self.prefixes.get(&prefix).copied()
        })
    }
}

const fn family(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 1,
    }
}
