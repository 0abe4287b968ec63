//! The network document: who belongs to one network, their trust, blocks and names.
//! Everything that a peer says is checked against it.

mod chain;
#[cfg(test)]
pub(crate) mod fixture;
mod signing;
mod store;
#[cfg(test)]
mod tests;
mod validate;

pub use chain::{Chain, ChainError, LINKS_MAX, SIGNATURES_MAX, SignedDocument};
pub use signing::{AdminSecret, Signature};
pub use store::{DocumentStore, Offer};
pub use validate::{MEMBERS_MAX, Problem, Problems, validate};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ids::{DomainName, Generation, NetworkName, NetworkUid, SpiffeId};
use crate::time::Wall;

/// An Ed25519 public key that may sign versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminKey(pub [u8; 32]);

impl fmt::Display for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One version of one network's document, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub uid: NetworkUid,
    pub nonce: Vec<u8>,
    pub version: u64,
    /// Also the NSM network service name.
    pub name: NetworkName,
    /// DNS zone, lower case, without the trailing dot.
    pub zone: String,
    /// ULA /64.
    pub pool6: Ipv6Net,
    pub pool4: Option<Ipv4Net>,
    pub admin_keys: BTreeSet<AdminKey>,
    pub members: BTreeMap<DomainName, Member>,
    pub policy: Policy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Ranges that no lease may touch.
    pub exclusions: Vec<IpNet>,
    /// Domains that contribute shared names; empty = all.
    pub shared_names: BTreeSet<DomainName>,
    /// How long a stale connection may carry traffic; 0 in strict networks.
    pub stale_limit_seconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub domain: DomainName,
    pub trust_domain: String,
    /// Concatenated PEM roots of the trust domain.
    pub bundle: Vec<u8>,
    pub roles: RoleIds,
    /// Registry addresses `host:port`.
    pub contacts: Vec<String>,
    pub block4: Option<Ipv4Net>,
    /// ULA /80 inside the pool.
    pub block6: Ipv6Net,
    pub generation: Generation,
    /// No end when unset.
    pub not_after: Option<Wall>,
    pub revoked: bool,
    pub dials_only: bool,
}

/// SPIFFE ID patterns per role, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleIds {
    pub registry: Vec<String>,
    pub router: Vec<String>,
    pub dns: Vec<String>,
    pub workload: Vec<String>,
    pub intermediary: Vec<String>,
}

/// What an identity may act as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Registry,
    Router,
    Dns,
    Workload,
    Intermediary,
}

impl RoleIds {
    /// `spiffe://TD/vl3/{registry,router,dns}/*` and `spiffe://TD/workload/*`.
    pub fn defaults(trust_domain: &str) -> Self {
        let of = |path: &str| vec![format!("spiffe://{trust_domain}/{path}/*")];
        Self {
            registry: of("vl3/registry"),
            router: of("vl3/router"),
            dns: of("vl3/dns"),
            workload: of("workload"),
            intermediary: Vec::new(),
        }
    }

    pub fn patterns(&self, role: Role) -> &[String] {
        match role {
            Role::Registry => &self.registry,
            Role::Router => &self.router,
            Role::Dns => &self.dns,
            Role::Workload => &self.workload,
            Role::Intermediary => &self.intermediary,
        }
    }
}

impl Member {
    /// Neither revoked nor past its end.
    pub fn is_live(&self, wall: Wall) -> bool {
        !self.revoked && self.not_after.is_none_or(|end| wall < end)
    }

    /// Whether `id` may act as `role` for this domain. The trust domain must be the member's.
    pub fn grants(&self, role: Role, id: &SpiffeId) -> bool {
        id.trust_domain() == self.trust_domain
            && self
                .roles
                .patterns(role)
                .iter()
                .any(|pattern| id.matches(pattern))
    }

    /// Whether `prefix` lies inside this domain's blocks.
    pub fn owns(&self, prefix: &IpNet) -> bool {
        match prefix {
            IpNet::V4(prefix) => self.block4.is_some_and(|block| block.contains(prefix)),
            IpNet::V6(prefix) => self.block6.contains(prefix),
        }
    }

    pub fn owns_address(&self, address: IpAddr) -> bool {
        self.owns(&IpNet::from(address))
    }

    pub fn blocks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.block4
            .map(IpNet::V4)
            .into_iter()
            .chain([IpNet::V6(self.block6)])
    }
}

impl Document {
    /// The live member with that domain name.
    pub fn member(&self, domain: &DomainName, wall: Wall) -> Option<&Member> {
        self.members
            .get(domain)
            .filter(|member| member.is_live(wall))
    }

    pub fn live_members(&self, wall: Wall) -> impl Iterator<Item = &Member> + '_ {
        self.members
            .values()
            .filter(move |member| member.is_live(wall))
    }

    /// Which live member an identity may speak for in that role.
    pub fn speaker(&self, role: Role, id: &SpiffeId, wall: Wall) -> Option<&Member> {
        self.live_members(wall)
            .find(|member| member.grants(role, id))
    }

    /// The member (live or not) whose block holds the address.
    pub fn holder(&self, address: IpAddr) -> Option<&Member> {
        self.members
            .values()
            .find(|member| member.owns_address(address))
    }

    /// Whether the domain may contribute to shared names.
    pub fn contributes_shared(&self, domain: &DomainName) -> bool {
        self.policy.shared_names.is_empty() || self.policy.shared_names.contains(domain)
    }
}
