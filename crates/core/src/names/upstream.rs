//! Servers that we ask (R1.2): those of other domains' routers, and resolvers that were configured.

use core::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Name, Question, RecordType};
use crate::ids::{DomainName, RouterName};

/// What an upstream is called in configuration, metrics and explanations; health and cache follow
/// it from view to view.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(Arc<str>);

impl UpstreamId {
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// `domain/router`.
    pub fn of_router(domain: &DomainName, router: &RouterName) -> Self {
        Self::new(&format!("{domain}/{router}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells upstreams of one server apart in its own marks (R4.2).
    pub(super) fn number(&self) -> u32 {
        source_of(self.as_str())
    }
}

/// What a stock router is asked while it is suspected, before its suffix.
const STOCK_PROBE: &str = "vl3-probe";

/// FNV-1a of a name.
pub(super) fn source_of(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

impl fmt::Display for UpstreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UpstreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Preference class; the best first. Own records are of the class `Local`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Preference {
    /// A server of this site.
    Local,
    /// A server of the network: asked without RD, and nobody else has its names.
    Overlay,
    /// Any other resolver: its private addresses are removed (R6.7), its names are asked in mixed
    /// case (R3.3).
    #[default]
    Outside,
}

impl Preference {
    pub const ALL: [Self; 3] = [Self::Local, Self::Overlay, Self::Outside];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Overlay => "overlay",
            Self::Outside => "outside",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP follows where a reply is cut (R3.1).
    #[default]
    Udp,
    Tcp,
}

/// The domain and router that an overlay server answers for (R2.12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub domain: DomainName,
    pub router: RouterName,
    /// Another router of the own domain.
    pub sibling: bool,
}

/// Where a server stands, for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    pub domain: Option<String>,
    pub site: Option<String>,
}

/// A server, or several addresses of one, that questions go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub id: UpstreamId,
    /// Of the network's document; `None`: a resolver that was configured.
    pub owner: Option<Owner>,
    /// In order of preference; a repeat goes to the next. Empty: known, but nobody lives.
    pub servers: Vec<SocketAddr>,
    pub transport: Transport,
    /// What it answers for; empty: everything.
    pub suffixes: Vec<Name>,
    /// Share of answers under [`Policy::Weighted`](super::Policy::Weighted); 0 is never chosen
    /// while another has the name.
    pub weight: u32,
    pub class: Preference,
    pub tags: Tags,
    /// Its AD bit is passed on (R3.4).
    pub trusted: bool,
    /// Private addresses in its answers stay (R6.7).
    pub allow_private: bool,
    /// A stock router, and the domain that it speaks for. It is asked for shared names only, which
    /// are one label before one of its suffixes (the network's zone), and never what another stock
    /// router asks us: they ask each other (R2.13).
    pub stock: Option<DomainName>,
    /// What it is asked while it is suspected or down (R3.7).
    pub probe: Question,
}

impl Upstream {
    /// A resolver with every default: UDP, for all names, weight 1, class `outside`, probed with
    /// `. NS`.
    pub fn outside(id: &str, servers: Vec<SocketAddr>) -> Self {
        Self {
            id: UpstreamId::new(id),
            owner: None,
            servers,
            transport: Transport::Udp,
            suffixes: Vec::new(),
            weight: 1,
            class: Preference::Outside,
            tags: Tags::default(),
            trusted: false,
            allow_private: false,
            stock: None,
            probe: Question::new(Name::root(), RecordType::NS),
        }
    }

    /// A stock router of a domain, for names one label before a suffix.
    pub fn stock(
        id: &str,
        domain: DomainName,
        servers: Vec<SocketAddr>,
        suffixes: Vec<Name>,
    ) -> Self {
        let mut stock = Self::outside(id, servers);
        stock.suffixes = suffixes;
        stock.make_stock(domain);
        stock
    }

    /// Turns a configured upstream into a stock router.
    pub fn make_stock(&mut self, domain: DomainName) {
        self.class = Preference::Overlay;
        self.tags.domain = Some(domain.to_string());
        self.allow_private = true;
        // A name like those it is asked for otherwise.
        let probe = self
            .suffixes
            .first()
            .and_then(|suffix| suffix.child(STOCK_PROBE).ok());
        if let Some(probe) = probe {
            self.probe = Question::new(probe, RecordType::A);
        }
        self.stock = Some(domain);
    }

    /// The server of a router; `zone` is the network's.
    pub fn overlay(owner: Owner, servers: Vec<SocketAddr>, zone: &Name) -> Self {
        Self {
            id: UpstreamId::of_router(&owner.domain, &owner.router),
            tags: Tags {
                domain: Some(owner.domain.to_string()),
                site: None,
            },
            class: if owner.sibling {
                Preference::Local
            } else {
                Preference::Overlay
            },
            owner: Some(owner),
            servers,
            transport: Transport::Udp,
            suffixes: Vec::new(),
            weight: 1,
            trusted: false,
            allow_private: true,
            stock: None,
            probe: Question::new(zone.clone(), RecordType::SOA),
        }
    }

    /// A label for metrics: the domain, else the configured name.
    pub fn label(&self) -> &str {
        self.tags.domain.as_deref().unwrap_or(self.id.as_str())
    }

    /// Whose part of the cache its answers are (R3.9): its domain's, whatever router answers for
    /// that, else its own.
    pub(super) fn source(&self) -> u32 {
        self.domain()
            .map_or_else(|| self.id.number(), |domain| source_of(domain.as_str()))
    }

    /// Whose records an answer has: the domain's, whatever router answers for that; of siblings
    /// each has names of its own.
    pub(super) fn giver(&self) -> u32 {
        if self.owner.as_ref().is_some_and(|owner| owner.sibling) {
            self.id.number()
        } else {
            self.source()
        }
    }

    pub const fn domain(&self) -> Option<&DomainName> {
        match &self.owner {
            Some(owner) => Some(&owner.domain),
            None => None,
        }
    }

    /// Whether it may be the only one that has a name: a router of the network, and what is
    /// configured as one. Without its word nobody denies (R2.5); of resolvers those that live
    /// speak for all (R2.4).
    pub const fn is_owner(&self) -> bool {
        self.owner.is_some() || matches!(self.class, Preference::Overlay)
    }

    /// RD=0 within the network, so that nobody asks on for us (R4.1); RD=1 to resolvers.
    pub const fn recursion_desired(&self) -> bool {
        self.marks_loops() && !matches!(self.class, Preference::Overlay)
    }

    /// Whether queries carry the mark by which a loop is found (R4.2).
    pub const fn marks_loops(&self) -> bool {
        self.owner.is_none() && self.stock.is_none()
    }

    /// Whether it may be asked for a name that lies under its suffixes: a stock router for shared
    /// names only (R2.13).
    pub(super) fn may_be_asked(&self, name: &Name) -> bool {
        let is_shared = |suffix: &Name| name.below(suffix).is_some_and(|labels| labels.len() == 1);
        self.stock.is_none() || self.suffixes.iter().any(is_shared)
    }

    /// Whether names are asked in mixed case (R3.3).
    pub const fn mixes_case(&self) -> bool {
        self.marks_loops() && matches!(self.class, Preference::Outside)
    }
}

/// Who votes: the own records, or an upstream.
#[derive(Clone, Debug)]
pub enum Voter {
    Local,
    Upstream(Arc<Upstream>),
}

impl Voter {
    pub fn class(&self) -> Preference {
        match self {
            Self::Local => Preference::Local,
            Self::Upstream(upstream) => upstream.class,
        }
    }

    /// Whether this one speaks for names that nobody else has.
    pub fn is_owner(&self) -> bool {
        match self {
            Self::Local => true,
            Self::Upstream(upstream) => upstream.is_owner(),
        }
    }

    pub const fn upstream(&self) -> Option<&Arc<Upstream>> {
        match self {
            Self::Local => None,
            Self::Upstream(upstream) => Some(upstream),
        }
    }

    /// The order in which votes are looked at, whatever order they came in (R2.6): the better
    /// class, then the name; own records before all.
    fn rank(&self) -> (Preference, Option<&UpstreamId>) {
        (self.class(), self.upstream().map(|upstream| &upstream.id))
    }
}

impl PartialEq for Voter {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Voter {}

impl PartialOrd for Voter {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Voter {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}
