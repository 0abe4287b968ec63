//! What one network sees: its upstreams, its records, who asks. A view needs no router: resolvers
//! that were configured and a list of clients make one.

use core::time::Duration;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::clients::ClientTable;
use super::overlay::nobody;
use super::services;
use super::suffix::Suffixes;
use super::upstream::{Owner, source_of};
use super::{
    ClientClass, Data, MERGED_RECORDS_MAX, Name, NameError, Network, NetworkParts, Record,
    ResolverState, Services, Soa, Upstream, UpstreamId,
};
use crate::document::Document;
use crate::ids::DomainName;

/// TTL of negative answers, seconds (R5.2 for names of a network).
pub const NEGATIVE_TTL: u32 = 30;
/// TTL of NODATA while votes are missing, seconds (R2.5).
pub const UNSURE_TTL: u32 = 5;
/// How long `prefer` waits for a better class (R2.2).
pub const PREFER_WAIT: Duration = Duration::from_millis(30);

/// How votes for one kind of name become one answer (R2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The first positive answer.
    #[default]
    FirstPositive,
    /// All positive answers together.
    Union,
    /// The positive answer of the best preference class.
    Prefer,
    /// All are asked, one upstream's records are taken, by weight, anew for each reply.
    Weighted,
    /// The first answer, negative ones too.
    Race,
}

impl Policy {
    pub const ALL: [Self; 5] = [
        Self::FirstPositive,
        Self::Union,
        Self::Prefer,
        Self::Weighted,
        Self::Race,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::FirstPositive => "first-positive",
            Self::Union => "union",
            Self::Prefer => "prefer",
            Self::Weighted => "weighted",
            Self::Race => "race",
        }
    }
}

/// What a view is made of. Start from `default()`, which serves nobody.
#[derive(Clone, Debug)]
pub struct ViewParts {
    /// Grows with every change; a network's state brings its own, the larger counts.
    pub sequence: u64,
    pub network: Option<NetworkParts>,
    /// Resolvers that were configured.
    pub upstreams: Vec<Upstream>,
    /// The policy for names at or below a suffix; the longest wins. The root's is the default.
    pub policies: Vec<(Name, Policy)>,
    /// Who may ask, beside those of the network (R6.6).
    pub clients: Vec<(IpNet, ClientClass)>,
    /// Where we listen: never asked (R4.4). Wildcard addresses are spelled out by the caller.
    pub listeners: Vec<SocketAddr>,
    /// Services under `clusterset.local`; `None`: that zone is not served.
    pub services: Option<Arc<Services>>,
    /// How long [`Policy::Prefer`] waits for a better class.
    pub prefer_wait: Duration,
    /// Largest merged record set (R2.7).
    pub records_max: usize,
}

impl Default for ViewParts {
    fn default() -> Self {
        Self {
            sequence: 0,
            network: None,
            upstreams: Vec::new(),
            policies: Vec::new(),
            clients: Vec::new(),
            listeners: Vec::new(),
            services: None,
            prefer_wait: PREFER_WAIT,
            records_max: MERGED_RECORDS_MAX,
        }
    }
}

/// Why parts make no view (R7.4: all of them are told at once).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    #[error("the document's zone is no name: {0}")]
    Zone(NameError),
    #[error("upstream {0}: the name is used twice")]
    Twice(UpstreamId),
    #[error("upstream {0}: no address")]
    NoAddress(UpstreamId),
    #[error("upstream {0}: a stock router needs suffixes: the zone of the network")]
    StockSuffix(UpstreamId),
    #[error("upstream {upstream}: {address} is our own listener; asking it would loop")]
    OwnListener {
        upstream: UpstreamId,
        address: SocketAddr,
    },
}

/// Everything that an answer depends on. Immutable; replaced whole (R1.1, R3.9).
#[derive(Clone, Debug)]
pub struct View {
    sequence: u64,
    network: Option<Network>,
    upstreams: Vec<Arc<Upstream>>,
    by_suffix: Suffixes<Vec<Arc<Upstream>>>,
    policies: Suffixes<Option<Policy>>,
    /// Stock routers of the network's domains.
    stock: Vec<Arc<Upstream>>,
    /// Whence stock routers ask (R2.13).
    stock_addresses: BTreeSet<IpAddr>,
    clients: ClientTable,
    services: Option<Arc<Services>>,
    pub(super) prefer_wait: Duration,
    pub(super) records_max: usize,
}

impl View {
    /// A view of a network alone. Fails only when the document's zone is no name.
    pub fn new(
        document: Arc<Document>,
        state: ResolverState,
        shared_names: Policy,
    ) -> Result<Self, NameError> {
        let network = Network::new(NetworkParts {
            document,
            state,
            shared_names,
            port: super::DNS_PORT,
        })?;
        Ok(Self::of(Some(network), ViewParts::default()))
    }

    /// Checks everything and names all that is wrong.
    pub fn assemble(mut parts: ViewParts) -> Result<Self, Vec<ViewError>> {
        let mut errors = Vec::new();
        let network = parts
            .network
            .take()
            .and_then(|network| match Network::new(network) {
                Ok(network) => Some(network),
                Err(error) => {
                    errors.push(ViewError::Zone(error));
                    None
                }
            });
        let mut known = BTreeSet::new();
        for upstream in &parts.upstreams {
            if !known.insert(&upstream.id) {
                errors.push(ViewError::Twice(upstream.id.clone()));
            }
            if upstream.stock.is_some() && upstream.suffixes.is_empty() {
                errors.push(ViewError::StockSuffix(upstream.id.clone()));
            }
            if upstream.servers.is_empty() {
                errors.push(ViewError::NoAddress(upstream.id.clone()));
            }
            let own = upstream
                .servers
                .iter()
                .filter(|server| parts.listeners.iter().any(|own| is_same(own, server)));
            errors.extend(own.map(|address| ViewError::OwnListener {
                upstream: upstream.id.clone(),
                address: *address,
            }));
        }
        if errors.is_empty() {
            Ok(Self::of(network, parts))
        } else {
            Err(errors)
        }
    }

    fn of(network: Option<Network>, parts: ViewParts) -> Self {
        let mut clients = parts.clients;
        let mut sequence = parts.sequence;
        if let Some(network) = &network {
            clients.extend(&network.state.clients);
            sequence = sequence.max(network.state.sequence);
        }
        let mut upstreams = Vec::new();
        for mut upstream in parts.upstreams {
            if let (Some(domain), Some(network)) = (&upstream.stock, &network) {
                let is_member = network.document.members.contains_key(domain);
                upstream.owner = is_member.then(|| Owner {
                    domain: domain.clone(),
                    router: nobody(),
                    sibling: false,
                });
            }
            upstreams.push(Arc::new(upstream));
        }
        let zone = network.as_ref().map(Network::zone);
        let is_zone = |suffix: &Name| zone.is_some_and(|zone| zone == suffix);
        let stock_routers = || upstreams.iter().filter(|upstream| upstream.stock.is_some());
        let stock = stock_routers()
            .filter(|upstream| upstream.owner.is_some() && upstream.suffixes.iter().any(is_zone))
            .cloned()
            .collect();
        let stock_addresses = stock_routers()
            .flat_map(|upstream| &upstream.servers)
            .map(|server| server.ip().to_canonical())
            .collect();
        let mut by_suffix = Suffixes::default();
        for upstream in &upstreams {
            let everything = upstream.suffixes.is_empty().then(Name::root);
            for suffix in upstream.suffixes.iter().cloned().chain(everything) {
                // Of the network's own zone it is asked as its domain.
                if upstream.stock.is_some() && is_zone(&suffix) {
                    continue;
                }
                let list: &mut Vec<Arc<Upstream>> = by_suffix.entry(suffix);
                if !list.iter().any(|known| known.id == upstream.id) {
                    list.push(Arc::clone(upstream));
                }
            }
        }
        let mut policies = Suffixes::default();
        for (suffix, policy) in parts.policies {
            *policies.entry(suffix) = Some(policy);
        }
        Self {
            sequence,
            network,
            upstreams,
            by_suffix,
            policies,
            stock,
            stock_addresses,
            clients: ClientTable::new(&clients),
            services: parts.services,
            prefer_wait: parts.prefer_wait,
            records_max: parts.records_max,
        }
    }

    /// Changes with every new state.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    pub const fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Every server that may be asked: those of the network that live, then the configured ones.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.network
            .iter()
            .flat_map(Network::upstreams)
            .chain(&self.upstreams)
    }

    pub(super) fn services(&self) -> Option<&Services> {
        self.services.as_deref()
    }

    /// Everybody who may have a part in stored answers: live domains and configured upstreams.
    pub(super) fn sources(&self) -> impl Iterator<Item = u32> {
        let domains = self
            .network
            .iter()
            .flat_map(|network| network.document.members.values())
            .filter(|member| !member.revoked)
            .map(|member| source_of(member.domain.as_str()));
        domains.chain(self.upstreams.iter().map(|upstream| upstream.source()))
    }

    pub(super) fn has_same_policies(&self, other: &Self) -> bool {
        let shared = |view: &Self| view.network.as_ref().map(|network| network.shared_policy);
        self.policies == other.policies
            && self.records_max == other.records_max
            && (shared(self) == shared(other) || self.network.is_none() || other.network.is_none())
    }

    /// Who asks from that address; `None`: nobody we serve. A stock router is a router, wherever
    /// it asks from.
    pub fn client_class(&self, source: IpAddr) -> Option<ClientClass> {
        let source = source.to_canonical();
        let class = self.clients.lookup(source)?;
        Some(if self.stock_addresses.contains(&source) {
            class.min(ClientClass::Remote)
        } else {
            class
        })
    }

    /// Stock routers of a domain, for its shared names.
    pub(super) fn stock_of<'a>(
        &'a self,
        domain: &'a DomainName,
    ) -> impl Iterator<Item = &'a Arc<Upstream>> {
        let stock = self.stock.iter();
        stock.filter(move |upstream| upstream.domain() == Some(domain))
    }

    /// Whether a name belongs to the network: its zone, services, or an overlay address.
    pub(super) fn is_network_name(&self, name: &Name) -> bool {
        self.network.as_ref().is_some_and(|network| {
            name.is_at_or_below(&network.zone)
                || self.is_service_name(name)
                || name
                    .reverse_prefix()
                    .is_some_and(|prefix| network.pools().any(|pool| pool.contains(&prefix)))
        })
    }

    fn is_service_name(&self, name: &Name) -> bool {
        self.services.is_some() && services::below_zone(name).is_some()
    }

    /// The configured upstreams whose longest suffix matches longest, and its labels (R1.3).
    pub(super) fn configured_for(&self, name: &Name) -> Option<(usize, &[Arc<Upstream>])> {
        self.by_suffix
            .longest(name)
            .map(|(labels, list)| (labels, list.as_slice()))
    }

    /// The policy of the longest suffix that has one.
    pub(super) fn policy_for(&self, name: &Name) -> Option<Policy> {
        self.policies.longest(name).and_then(|(_, policy)| *policy)
    }

    /// The SOA of a negative answer about `name`: its owner is an ancestor of the name, as
    /// negative caching wants (RFC 2308 3).
    pub(super) fn soa_above(&self, name: &Name, ttl: u32) -> Record {
        if let Some(network) = &self.network
            && name.is_at_or_below(&network.zone)
        {
            return self.soa(network.zone.clone(), ttl);
        }
        if self.is_service_name(name)
            && let Ok(zone) = Name::parse(services::CLUSTERSET_ZONE)
        {
            return self.soa(zone, ttl.min(services::SERVICE_TTL));
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

    /// The SOA itself: of the network, else of a server without a zone of its own.
    pub(super) fn soa(&self, owner: Name, ttl: u32) -> Record {
        let (mname, version) = self.network.as_ref().map_or_else(
            || (owner.clone(), 1),
            |network| (network.zone.clone(), network.document.version),
        );
        let rname = mname.child("hostmaster").unwrap_or_else(|_| mname.clone());
        // The low 32 bits, as serial arithmetic wants (RFC 1982).
        let serial = u32::try_from(version & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let soa = Soa {
            mname,
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

fn is_same(own: &SocketAddr, server: &SocketAddr) -> bool {
    own.port() == server.port() && own.ip().to_canonical() == server.ip().to_canonical()
}
