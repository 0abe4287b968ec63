//! Which address a workload gets inside the router's prefixes.
//!
//! The first address of either prefix is the router's; first and last of an IPv4 prefix go
//! to nobody; excluded and taken ones to nobody else, whoever asks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::allocator::Lease;

/// What must not be given.
#[derive(Debug)]
pub struct Forbidden<'a> {
    pub taken: &'a BTreeSet<IpAddr>,
    /// Of the request, the network's policy, the router's configuration.
    pub excluded: &'a [IpNet],
}

/// Whether a workload may hold `address` under that lease.
pub fn allowed(lease: &Lease, forbidden: &Forbidden<'_>, address: IpAddr) -> bool {
    within(lease, address)
        && !forbidden.taken.contains(&address)
        && !excluded(forbidden.excluded, address)
}

pub fn excluded(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// Inside the lease and none of its special addresses.
pub fn within(lease: &Lease, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => lease.prefix4.is_some_and(|prefix| {
            prefix.contains(&v4) && v4 != prefix.network() && v4 != prefix.broadcast()
        }),
        IpAddr::V6(v6) => lease.prefix6.contains(&v6) && v6 != lease.prefix6.network(),
    }
}

/// The lowest allowed address of each family that the lease has; `wanted` ones first where
/// they are allowed. `Err` names the family's prefix that is full.
pub fn choose(
    lease: &Lease,
    forbidden: &Forbidden<'_>,
    wanted: &[IpAddr],
) -> Result<Vec<IpAddr>, IpNet> {
    let mut chosen = Vec::with_capacity(2);
    for prefix in lease.prefixes() {
        let offered = wanted
            .iter()
            .copied()
            .find(|address| prefix.contains(address) && allowed(lease, forbidden, *address));
        chosen.push(match offered {
            Some(address) => address,
            None => lowest(lease, forbidden, prefix).ok_or(prefix)?,
        });
    }
    Ok(chosen)
}

/// Steps over one taken address or one excluded range at a time, so it ends after at most
/// as many steps as there are of both.
fn lowest(lease: &Lease, forbidden: &Forbidden<'_>, prefix: IpNet) -> Option<IpAddr> {
    let mut candidate = next(prefix.network())?;
    while prefix.contains(&candidate) && within(lease, candidate) {
        let blocking = forbidden
            .excluded
            .iter()
            .filter(|range| range.contains(&candidate));
        candidate = match blocking.map(IpNet::broadcast).max() {
            Some(end) => next(end)?,
            None if forbidden.taken.contains(&candidate) => next(candidate)?,
            None => return Some(candidate),
        };
    }
    None
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        IpAddr::V6(v6) => v6
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    }
}
