//! What one acquire may be given: what the router had, what is free, and who gives way.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::space::{first_free, last_free, overlap};
use super::{Acquire, Allocator, Entry, Lease, Refusal};
use crate::document::{Document, Member};
use crate::ids::{Generation, RouterName};
use crate::time::Mono;

/// IPv6 prefix length of a router.
pub(super) const PREFIX_LEN6: u8 = 96;
/// The longest IPv4 prefix that has room for a router and a workload.
pub(super) const PREFIX_LEN4_MAX: u8 = 30;

/// Of a stock router, which remembers a prefix and no round.
pub(super) const UNKNOWN_ROUND: Generation = Generation(0);

/// The prefixes of one lease.
type Prefixes = (Option<Ipv4Net>, Ipv6Net);

/// What an acquire is given.
pub(super) struct Choice {
    pub(super) prefixes: Prefixes,
    /// They are those that the router had.
    pub(super) kept: bool,
    /// The round that goes on after a restore.
    pub(super) round: Option<Generation>,
    /// Whose leases of a backup give way to it.
    pub(super) displaced: Vec<RouterName>,
}

impl Choice {
    const fn kept(lease: &Lease) -> Self {
        Self {
            prefixes: (lease.prefix4, lease.prefix6),
            kept: true,
            round: None,
            displaced: Vec::new(),
        }
    }

    fn readopted(lease: &Lease, displaced: Vec<RouterName>) -> Self {
        Self {
            round: Some(lease.generation),
            displaced,
            ..Self::kept(lease)
        }
    }

    const fn new(prefixes: Prefixes) -> Self {
        Self {
            prefixes,
            kept: false,
            round: None,
            displaced: Vec::new(),
        }
    }
}

/// What one acquire may be given.
pub(super) struct Scope<'a> {
    pub(super) allocator: &'a Allocator,
    pub(super) document: &'a Document,
    pub(super) member: &'a Member,
    pub(super) acquire: &'a Acquire,
    pub(super) exclusions: &'a [IpNet],
}

impl Scope<'_> {
    pub(super) fn choose(
        &self,
        own: Option<&Entry>,
        presented: Option<&Lease>,
        len4: Option<u8>,
        now: Mono,
    ) -> Result<Choice, Refusal> {
        if let Some(held) = presented {
            if let Some(readopting) = self.allocator.readopting(now) {
                // Later than the backup, or else ended before it. Whoever knows no round is
                // taken back where nobody else is, and gives way to all who know theirs.
                let was_ended = own.is_none()
                    && held.generation != UNKNOWN_ROUND
                    && held.generation <= readopting.floor;
                let displaced = self.in_the_way(held, len4).filter(|_| !was_ended);
                let displaced = displaced.ok_or_else(|| readopting.refusal(now))?;
                return Ok(Choice::readopted(held, displaced));
            }
            if self.is_free(held, len4) {
                return Ok(Choice::kept(held));
            }
            if let Some(displaced) = self.doubted_in_the_way(held, len4, now) {
                return Ok(Choice {
                    displaced,
                    ..Choice::kept(held)
                });
            }
        }
        if let Some(own) = own {
            // Never moved by an exclusion; only by blocks that are no longer the domain's.
            let lease = &own.lease;
            let inside = lease.prefixes().all(|prefix| self.member.owns(&prefix));
            if inside && lease.prefix4.is_some() == len4.is_some() {
                return Ok(Choice::kept(lease));
            }
        }
        self.allocator.refuse_while_readopting(now)?;
        let prefix4 = match (self.member.block4, len4) {
            (Some(block), Some(len)) => Some(self.cut(IpNet::V4(block), len)?),
            _ => None,
        };
        let prefix6 = self.cut(IpNet::V6(self.member.block6), PREFIX_LEN6)?;
        match (prefix4, prefix6) {
            (None, IpNet::V6(prefix6)) => Ok(Choice::new((None, prefix6))),
            (Some(IpNet::V4(prefix4)), IpNet::V6(prefix6)) => {
                Ok(Choice::new((Some(prefix4), prefix6)))
            }
            (_, other) => Err(Refusal::AcquireAgain {
                reason: format!("{other} is of the wrong family"),
            }),
        }
    }

    /// Whose leases of a backup give way to one that the router remembers; None where it is not
    /// known to be later than all of them. Exclusions of the backup do not count: they move no
    /// lease.
    fn in_the_way(&self, held: &Lease, len4: Option<u8>) -> Option<Vec<RouterName>> {
        let excludes_itself = held
            .prefixes()
            .any(|prefix| self.exclusions.iter().any(|range| overlap(range, &prefix)));
        if excludes_itself || held.instance != self.acquire.instance || !self.fits(held, len4) {
            return None;
        }
        self.overlapping(held)
            .map(|other| (other.generation < held.generation).then(|| other.router.clone()))
            .collect()
    }

    /// After the time for taking leases back: whose leases of a backup give way to one that a
    /// router presents, because nobody showed them to be alive. None where there are others.
    pub(super) fn doubted_in_the_way(
        &self,
        held: &Lease,
        len4: Option<u8>,
        now: Mono,
    ) -> Option<Vec<RouterName>> {
        if self.allocator.readopting(now).is_some() || !self.fits(held, len4) {
            return None;
        }
        let gives_way = |other: &Lease| {
            let is_later = held.generation == UNKNOWN_ROUND || held.generation > other.generation;
            is_later && self.allocator.is_doubted(&other.router, now)
        };
        let displaced: Option<Vec<_>> = self
            .overlapping(held)
            .map(|other| gives_way(other).then(|| other.router.clone()))
            .collect();
        let displaced = displaced?;
        let excluded = self.taken_but(&displaced);
        let is_free = !held
            .prefixes()
            .any(|prefix| excluded.iter().any(|range| overlap(range, &prefix)));
        is_free.then_some(displaced)
    }

    /// Others' leases that have a part of this one.
    fn overlapping<'a>(&'a self, held: &'a Lease) -> impl Iterator<Item = &'a Lease> + 'a {
        self.allocator.leases().filter(|other| {
            other.router != held.router
                && other
                    .prefixes()
                    .any(|range| held.prefixes().any(|prefix| overlap(&range, &prefix)))
        })
    }

    /// Whether a lease that the router remembers can be taken back as it is.
    pub(super) fn is_free(&self, held: &Lease, len4: Option<u8>) -> bool {
        let taken = self.taken();
        self.fits(held, len4)
            && !held
                .prefixes()
                .any(|prefix| taken.iter().any(|range| overlap(range, &prefix)))
    }

    /// Whether a lease has the form of those that are granted, inside the domain's blocks.
    fn fits(&self, held: &Lease, len4: Option<u8>) -> bool {
        let lengths = held.prefix6.prefix_len() == PREFIX_LEN6
            && held.prefix4.is_some() == len4.is_some()
            && held
                .prefix4
                .is_none_or(|prefix| prefix.prefix_len() <= PREFIX_LEN4_MAX);
        let canonical = held
            .prefixes()
            .all(|prefix| prefix.trunc() == prefix && self.member.owns(&prefix));
        lengths && canonical
    }

    fn cut(&self, block: IpNet, len: u8) -> Result<IpNet, Refusal> {
        first_free(block, len, &self.taken()).ok_or_else(|| Refusal::Exhausted {
            what: format!("block {block} of domain {}", self.allocator.domain),
            wanted: format!("prefix of length {len} for {}", self.acquire.router),
        })
    }

    pub(super) fn cut_last(&self, block: IpNet, len: u8) -> Option<IpNet> {
        last_free(block, len, &self.taken())
    }

    /// Everything that a new grant must not touch: others' leases, and exclusions of the
    /// document, the operator, the router itself and the routers that hold leases.
    fn taken(&self) -> Vec<IpNet> {
        self.taken_but(&[])
    }

    /// The same without some routers.
    fn taken_but(&self, without: &[RouterName]) -> Vec<IpNet> {
        let others = || {
            self.allocator.leases.values().filter(|entry| {
                let router = &entry.lease.router;
                *router != self.acquire.router && !without.contains(router)
            })
        };
        let leased = others().flat_map(|entry| entry.lease.prefixes());
        #[cfg(feature = "plants")]
        let leased = leased.map(|prefix| {
            let is_planted = crate::plants::Plant::Allocator.is_chosen();
            if is_planted {
                IpNet::from(prefix.network())
            } else {
                prefix
            }
        });
        let excluded = others().flat_map(|entry| entry.exclusions.iter().copied());
        let operator = self.allocator.exclusions.iter().copied();
        let policy = self.document.policy.exclusions.iter().copied();
        leased
            .chain(excluded)
            .chain(operator)
            .chain(policy)
            .chain(self.exclusions.iter().copied())
            .collect()
    }
}
