//! What routers ask of the allocator and what it answers.

use core::time::Duration;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ids::{Generation, InstanceId, NetworkUid, RouterName, SpiffeId};

/// Prefixes of one router, and since which round it holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub uid: NetworkUid,
    pub router: RouterName,
    /// The life of the state directory that holds it.
    pub instance: InstanceId,
    pub generation: Generation,
    /// None in a network, or for a domain, without IPv4.
    pub prefix4: Option<Ipv4Net>,
    /// A /96.
    pub prefix6: Ipv6Net,
}

impl Lease {
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.prefix4
            .map(IpNet::V4)
            .into_iter()
            .chain([IpNet::V6(self.prefix6)])
    }

    /// The router's own addresses: the first of each prefix.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.prefixes().map(|prefix| prefix.network())
    }

    pub fn address4(&self) -> Option<Ipv4Addr> {
        self.prefix4.map(|prefix| prefix.network())
    }

    pub fn address6(&self) -> Ipv6Addr {
        self.prefix6.network()
    }
}

/// A router asks for its lease: the first time, after a restart, or after it lost one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquire {
    pub router: RouterName,
    pub instance: InstanceId,
    /// What the router remembers.
    pub held: Option<Lease>,
    /// Wanted IPv4 prefix length; None is the default.
    pub prefix_len4: Option<u8>,
    /// Ranges that this router must not be given (its pods, its services).
    pub exclusions: Vec<IpNet>,
}

/// The answer to a successful acquire or renew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    pub lease: Lease,
    pub renew_after: Duration,
}

/// One durable change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseRecord {
    /// New, or replaces the lease of that router name.
    Granted {
        lease: Lease,
        holder: SpiffeId,
        exclusions: Vec<IpNet>,
    },
    Ended {
        router: RouterName,
    },
    /// Every new lease has a higher generation.
    Floor {
        generation: Generation,
    },
    Excluded {
        range: IpNet,
    },
    Included {
        range: IpNet,
    },
    /// What stands before this is of a backup and may be older than what was granted: a
    /// period begins in which leases are only taken back.
    Restored {
        /// The backup's floor; None: as it stands.
        floor: Option<Generation>,
    },
    /// That period is over.
    Readopted,
}

/// Limits and durations; the defaults are the design's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Silence after which a lease ends.
    pub lifetime: Duration,
    /// What a holder is told to renew after.
    pub renew_after: Duration,
    /// IPv4 prefix length of a router that asks for none; None: a quarter of the block, at
    /// most 16 addresses from small ones.
    pub prefix_len4: Option<u8>,
    /// Routers of this domain in one network; beyond that newcomers are refused.
    pub leases_max: usize,
    /// Exclusions of one router, and of the operator.
    pub exclusions_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(7 * 24 * 3600),
            renew_after: Duration::from_secs(600),
            prefix_len4: None,
            leases_max: 1024,
            exclusions_max: 64,
        }
    }
}

/// Why the allocator said no. Sorted by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Fix the request.
    #[error("{field}: {value} is not allowed, {allowed}")]
    Invalid {
        field: &'static str,
        value: String,
        allowed: String,
    },
    /// Fix the request: rounds end one at a time, and a leap would use them up for good.
    #[error("generation: {generation} is not allowed, at most {highest} is")]
    GenerationTooHigh {
        generation: Generation,
        highest: Generation,
    },
    /// Change the configuration: two ranges collide.
    #[error("exclusions: {exclusion} overlaps {range}, {whose}")]
    Collision {
        exclusion: IpNet,
        range: IpNet,
        whose: String,
    },
    /// Another identity holds the name.
    #[error("router: {router} is held by {holder}")]
    HeldByOther {
        router: RouterName,
        holder: SpiffeId,
    },
    /// Stop: somebody newer acts under this name.
    #[error("router: {router} is fenced, generation {generation} is held by another instance")]
    Fenced {
        router: RouterName,
        generation: Generation,
    },
    /// Acquire again: the lease is not known here in this form.
    #[error("lease: {reason}; acquire again")]
    AcquireAgain { reason: String },
    /// Ask an operator for room.
    #[error("{what} has no room for another {wanted}")]
    Exhausted { what: String, wanted: String },
    /// Try again later.
    #[error(
        "restored from a backup: only leases that are presented are taken back for {seconds} s more"
    )]
    ReadoptOnly { seconds: u64 },
}
