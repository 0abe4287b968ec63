//! A lease of ours out of what stock prefix servers answer (`ipam.IPAM/ManagePrefixes`): one
//! prefix each, without generation, and seldom one of IPv6.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Lease;
use crate::document::Member;
use crate::ids::{DomainName, Generation, InstanceId, NetworkUid, RouterName};
use crate::time::Wall;

/// Of the IPv6 prefix that goes with an IPv4 one, as the registry leases.
const LEN6: u8 = 96;

/// Whose lease it is to be.
#[derive(Clone, Debug)]
pub struct StockHolder {
    pub uid: NetworkUid,
    pub router: RouterName,
    pub instance: InstanceId,
}

/// Why answers of stock prefix servers are no lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StockRefusal {
    #[error(
        "{prefix} is no network address (that would be {network}): the server's prefix length does not suit its pool"
    )]
    HostBits { prefix: IpNet, network: IpNet },
    #[error("{prefix} lies outside of the blocks of domain {domain} in the network document")]
    Outside { prefix: IpNet, domain: DomainName },
    #[error("{first} and {second}: one prefix server per family")]
    TwoOfAFamily { first: IpNet, second: IpNet },
    #[error(
        "{prefix}: block6 {block6} of domain {domain} has no place for an IPv6 prefix per IPv4 prefix: name a prefix server for IPv6"
    )]
    NoPlace6 {
        prefix: Ipv4Net,
        block6: Ipv6Net,
        domain: DomainName,
    },
    #[error("no server gave a prefix")]
    Nothing,
}

/// The lease that `prefixes` make, in the round of `held` while it is the same one, else in a
/// later round: rounds are counted by the clock, since nobody else counts them.
pub fn stock_lease(
    holder: &StockHolder,
    member: &Member,
    held: Option<&Lease>,
    prefixes: &[IpNet],
    wall: Wall,
) -> Result<Lease, StockRefusal> {
    let (mut prefix4, mut prefix6) = (None, None);
    for prefix in prefixes {
        if prefix.trunc() != *prefix {
            return Err(StockRefusal::HostBits {
                prefix: *prefix,
                network: prefix.trunc(),
            });
        }
        if !member.owns(prefix) {
            return Err(StockRefusal::Outside {
                prefix: *prefix,
                domain: member.domain.clone(),
            });
        }
        let before = match prefix {
            IpNet::V4(net) => prefix4.replace(*net).map(IpNet::V4),
            IpNet::V6(net) => prefix6.replace(*net).map(IpNet::V6),
        };
        if let Some(first) = before {
            return Err(StockRefusal::TwoOfAFamily {
                first,
                second: *prefix,
            });
        }
    }
    let prefix6 = match (prefix6, prefix4) {
        (Some(prefix6), _) => prefix6,
        (None, None) => return Err(StockRefusal::Nothing),
        (None, Some(prefix4)) => beside(member, prefix4).ok_or_else(|| StockRefusal::NoPlace6 {
            prefix: prefix4,
            block6: member.block6,
            domain: member.domain.clone(),
        })?,
    };
    let same = |held: &&Lease| {
        held.uid == holder.uid
            && held.router == holder.router
            && held.instance == holder.instance
            && (held.prefix4, held.prefix6) == (prefix4, prefix6)
    };
    let generation = match held {
        Some(held) if same(&held) => held.generation,
        held => {
            let last = held.map_or(0, |held| held.generation.0);
            Generation(wall.unix_secs().max(last.saturating_add(1)))
        }
    };
    Ok(Lease {
        uid: holder.uid,
        router: holder.router.clone(),
        instance: holder.instance,
        generation,
        prefix4,
        prefix6,
    })
}

/// The IPv6 prefix of who holds this IPv4 one: what is apart in the one block is apart in the
/// other, so nobody needs to be asked.
fn beside(member: &Member, prefix4: Ipv4Net) -> Option<Ipv6Net> {
    let (block4, block6) = (member.block4?, member.block6);
    let room = LEN6.checked_sub(block6.prefix_len())?;
    if 32 - block4.prefix_len() > room {
        return None;
    }
    let offset = u32::from(prefix4.network()) - u32::from(block4.network());
    let base = u128::from(block6.network()) | u128::from(offset) << (128 - u32::from(LEN6));
    Ipv6Net::new(base.into(), LEN6).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::fixture::member;

    fn holder() -> StockHolder {
        StockHolder {
            uid: NetworkUid([1; 16]),
            router: RouterName::new("red-east").unwrap(),
            instance: InstanceId([2; 16]),
        }
    }

    fn ask(held: Option<&Lease>, prefixes: &[&str], secs: u64) -> Result<Lease, StockRefusal> {
        let prefixes: Vec<_> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        let wall = Wall::from_unix_secs(secs);
        stock_lease(&holder(), &member("east", 1), held, &prefixes, wall)
    }

    fn refusal(prefixes: &[&str]) -> String {
        ask(None, prefixes, 1).unwrap_err().to_string()
    }

    #[test]
    fn prefixes_that_are_apart_have_ipv6_prefixes_that_are_apart() {
        let of = |prefix| ask(None, &[prefix], 1).unwrap().prefix6.to_string();
        assert_eq!(of("10.80.4.0/24"), "fd00:1:2:3:1::/96");
        assert_eq!(of("10.80.5.0/24"), "fd00:1:2:3:1:100::/96");
        assert_eq!(of("10.80.7.252/30"), "fd00:1:2:3:1:3fc::/96");
    }

    #[test]
    fn an_ipv6_server_counts_before_what_goes_with_ipv4() {
        let lease = ask(None, &["fd00:1:2:3:1:7::/96", "10.80.4.0/24"], 1).unwrap();
        assert_eq!(lease.prefix6.to_string(), "fd00:1:2:3:1:7::/96");
        assert_eq!(lease.prefix4.unwrap().to_string(), "10.80.4.0/24");
        assert_eq!(
            ask(None, &["fd00:1:2:3:1:7::/96"], 1).unwrap().prefix4,
            None
        );
    }

    #[test]
    fn the_round_stays_with_the_prefixes_and_only_grows() {
        let first = ask(None, &["10.80.4.0/24"], 100).unwrap();
        assert_eq!(first.generation, Generation(100));
        assert_eq!(ask(Some(&first), &["10.80.4.0/24"], 200).unwrap(), first);
        let other = ask(Some(&first), &["10.80.5.0/24"], 200).unwrap();
        assert_eq!(other.generation, Generation(200));
        // A clock that was set back.
        let back = ask(Some(&other), &["10.80.4.0/24"], 50).unwrap();
        assert_eq!(back.generation, Generation(201));
        let earlier = Lease {
            instance: InstanceId([3; 16]),
            ..first
        };
        let life = ask(Some(&earlier), &["10.80.4.0/24"], 100).unwrap();
        assert_eq!(life.generation, Generation(101));
    }

    #[test]
    fn what_a_stock_server_may_say_and_does_not_fit_is_named() {
        // Observed: a pool of which a /30 was cut gives a /24 with host bits.
        assert_eq!(
            refusal(&["10.80.4.4/24"]),
            "10.80.4.4/24 is no network address (that would be 10.80.4.0/24): the server's \
             prefix length does not suit its pool"
        );
        for outside in ["172.16.0.0/24", "10.80.0.0/16", "fd00::/96"] {
            assert_eq!(
                refusal(&[outside]),
                format!(
                    "{outside} lies outside of the blocks of domain east in the network document"
                )
            );
        }
        assert!(
            refusal(&["10.80.4.0/24", "10.80.5.0/24"]).contains("one prefix server per family")
        );
        assert_eq!(refusal(&[]), "no server gave a prefix");
        let narrow = Member {
            block6: "fd00:1:2:3:1::/90".parse().unwrap(),
            ..member("east", 1)
        };
        let prefix = ["10.80.4.0/24".parse().unwrap()];
        let wall = Wall::from_unix_secs(1);
        let refused = stock_lease(&holder(), &narrow, None, &prefix, wall).unwrap_err();
        assert!(
            matches!(refused, StockRefusal::NoPlace6 { .. }),
            "{refused}"
        );
    }
}
