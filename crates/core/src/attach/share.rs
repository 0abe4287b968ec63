//! How much of a router one identity may hold.
//!
//! Addresses are bound to an identity and a name, and a workload chooses its names itself:
//! without a bound one workload could fill the prefix with names, each of which rests for
//! the whole claim grace after its close. Of what there is an identity gets three quarters,
//! so that it never takes the last address or place; what it gave up rests as long as it has
//! room, the oldest gives way to its own next one.

use std::collections::BTreeSet;

use crate::allocator::Lease;
use crate::router::context::Context;
use crate::router::state::Identity;
use crate::router::{ConnectionId, Refusal};

/// Numerator and denominator.
const SHARE: (usize, usize) = (3, 4);

/// Places of one identity: of the prefix's addresses, of the router's workloads.
fn share(lease: &Lease, workloads: usize) -> usize {
    let hosts = lease.prefix4.map_or(usize::MAX, |prefix| {
        // The router's own address and the broadcast address are nobody's.
        let bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len());
        1_usize
            .checked_shl(bits)
            .unwrap_or(usize::MAX)
            .saturating_sub(2)
    });
    let (part, whole) = SHARE;
    (hosts.min(workloads).saturating_mul(part) / whole).max(1)
}

/// Whether `identity` may be attached, and which reservation of the same SPIFFE ID gives
/// way to it. Whoever has an address already keeps it. Whom an intermediary carries is counted,
/// each for itself.
pub(super) fn room(
    identity: &Identity,
    connection: &ConnectionId,
    lease: &Lease,
    ctx: &Context<'_>,
) -> Result<Option<Identity>, Refusal> {
    let now = ctx.now.wall;
    let lives =
        |held: &crate::router::state::Assignment| held.reserved_until.is_none_or(|end| end > now);
    if ctx.state.assignments.get(identity).is_some_and(lives) {
        return Ok(None);
    }
    // A connection that changes its name gives the old one up.
    let former = ctx
        .state
        .workloads
        .get(connection)
        .map(|stored| &stored.identity);
    let mut live = 0;
    let mut resting = BTreeSet::new();
    for (other, held) in &ctx.state.assignments {
        if other.id != identity.id || !lives(held) {
            continue;
        }
        if held.reserved_until.is_some() {
            resting.insert((held.reserved_until, other));
        } else if Some(other) == former {
            let end = now + ctx.config.times.claim_grace;
            resting.insert((Some(end), other));
        } else {
            live += 1;
        }
    }
    let limit = share(lease, ctx.config.limits.workloads);
    if live >= limit {
        return Err(Refusal::Share {
            id: identity.id.clone(),
            limit,
        });
    }
    let full = live + resting.len() >= limit;
    let oldest = resting.first().filter(|_| full);
    Ok(oldest.map(|(_, identity)| (*identity).clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, InstanceId, NetworkUid};

    #[test]
    fn nobody_gets_the_last_quarter() {
        let lease = |prefix4: Option<&str>| Lease {
            uid: NetworkUid([1; 16]),
            router: "red-east".parse().unwrap(),
            instance: InstanceId([1; 16]),
            generation: Generation(1),
            prefix4: prefix4.map(|prefix| prefix.parse().unwrap()),
            prefix6: "fd00:7::/96".parse().unwrap(),
        };
        for (prefix4, expected) in [
            (Some("10.0.0.0/30"), 1),
            (Some("10.0.0.0/28"), 10),
            (Some("10.0.0.0/24"), 190),
            (Some("10.0.0.0/21"), 1534),
            (Some("10.0.0.0/8"), 3072),
            (None, 3072),
        ] {
            assert_eq!(share(&lease(prefix4), 4096), expected, "{prefix4:?}");
        }
    }
}
