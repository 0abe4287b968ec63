//! Finding free prefixes in a block.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Whether two ranges share an address.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The first and last address of a range, as numbers of one width.
fn bounds(range: &IpNet) -> (u128, u128) {
    match range {
        IpNet::V4(net) => (
            u32::from(net.network()).into(),
            u32::from(net.broadcast()).into(),
        ),
        IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
    }
}

/// The lowest prefix of `len` in `block` that touches none of `taken`. Steps over a taken
/// range at once, so it takes at most `taken.len() + 1` rounds.
pub fn first_free(block: IpNet, len: u8, taken: &[IpNet]) -> Option<IpNet> {
    free(block, len, taken, false)
}

/// The highest one.
pub(super) fn last_free(block: IpNet, len: u8, taken: &[IpNet]) -> Option<IpNet> {
    free(block, len, taken, true)
}

fn free(block: IpNet, len: u8, taken: &[IpNet], from_the_end: bool) -> Option<IpNet> {
    let width: u32 = if matches!(block, IpNet::V4(_)) {
        32
    } else {
        128
    };
    let size_bits = width.checked_sub(u32::from(len))?;
    let (first, last) = bounds(&block);
    let mut taken: Vec<_> = taken
        .iter()
        .filter(|range| {
            matches!(
                (range, &block),
                (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_))
            )
        })
        .map(bounds)
        .filter(|(from, to)| *to >= first && *from <= last)
        .map(|(from, to)| (from.max(first), to.min(last)))
        .collect();
    // From the end is from the start of the mirror image: a block is a multiple of the size.
    let mirrored = |at: u128| first + (last - at);
    if from_the_end {
        for (from, to) in &mut taken {
            (*from, *to) = (mirrored(*to), mirrored(*from));
        }
    }
    taken.sort_unstable();
    let span = 1_u128.checked_shl(size_bits)?.checked_sub(1)?;
    let mut start = first;
    for (from, to) in taken {
        if to < start {
            continue;
        }
        if from > start.checked_add(span)? {
            break;
        }
        // Up to the next multiple of the size behind the taken range.
        let behind = to.checked_add(1)?;
        start = behind.checked_add(span)? & !span;
    }
    let end = start.checked_add(span)?;
    if end > last {
        return None;
    }
    prefix(
        &block,
        if from_the_end { mirrored(end) } else { start },
        len,
    )
}

fn prefix(like: &IpNet, start: u128, len: u8) -> Option<IpNet> {
    match like {
        IpNet::V4(_) => {
            let address = u32::try_from(start).ok()?;
            Ipv4Net::new(address.into(), len).ok().map(IpNet::V4)
        }
        IpNet::V6(_) => Ipv6Net::new(start.into(), len).ok().map(IpNet::V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_free_prefix_steps_over_what_is_taken() {
        let block = net("10.0.0.0/22");
        assert_eq!(first_free(block, 24, &[]), Some(net("10.0.0.0/24")));
        assert_eq!(
            first_free(block, 24, &[net("10.0.0.9/32")]),
            Some(net("10.0.1.0/24"))
        );
        let taken = [net("10.0.1.128/25"), net("10.0.0.0/24"), net("10.0.2.0/30")];
        assert_eq!(first_free(block, 24, &taken), Some(net("10.0.3.0/24")));
        assert_eq!(first_free(block, 25, &taken), Some(net("10.0.1.0/25")));
        assert_eq!(first_free(block, 24, &[net("10.0.0.0/8")]), None);
        assert_eq!(first_free(block, 21, &[]), None);
    }

    #[test]
    fn the_highest_free_prefix_is_found_in_the_same_way() {
        let block = net("10.0.0.0/22");
        assert_eq!(last_free(block, 24, &[]), Some(net("10.0.3.0/24")));
        let taken = [net("10.0.3.9/32"), net("10.0.1.128/25"), net("10.0.2.0/30")];
        assert_eq!(last_free(block, 24, &taken), Some(net("10.0.0.0/24")));
        assert_eq!(last_free(block, 25, &taken), Some(net("10.0.3.128/25")));
        assert_eq!(last_free(block, 24, &[net("10.0.0.0/8")]), None);
        let v6 = net("ffff:ffff:ffff:ffff:ffff::/80");
        let last = net("ffff:ffff:ffff:ffff:ffff:ffff::/96");
        assert_eq!(last_free(v6, 96, &[]), Some(last));
    }

    #[test]
    fn the_ends_of_the_number_space_are_no_trap() {
        let v4 = net("255.255.255.0/24");
        assert_eq!(
            first_free(v4, 25, &[net("255.255.255.0/25")]),
            Some(net("255.255.255.128/25"))
        );
        assert_eq!(first_free(v4, 25, &[net("255.255.255.0/24")]), None);
        let v6 = net("ffff:ffff:ffff:ffff:ffff::/80");
        assert_eq!(first_free(v6, 96, &[v6]), None);
    }
}
