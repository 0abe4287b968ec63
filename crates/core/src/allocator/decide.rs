//! The decisions: nothing here changes state.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::space::{first_free, overlap};
use super::{Acquire, Allocator, Entry, Granted, Lease, LeaseRecord, Readopting, Refusal};
use crate::document::{Document, Member};
use crate::ids::{Generation, RouterName, SpiffeId};
use crate::time::Mono;

/// IPv6 prefix length of a router.
const PREFIX_LEN6: u8 = 96;
/// The longest IPv4 prefix that has room for a router and a workload.
const PREFIX_LEN4_MAX: u8 = 30;

/// How far a router's memory may be ahead of everything that is known here: no registry forgets
/// so many rounds, and no router can use all of them up by presenting the last one.
const AHEAD_MAX: u64 = 1 << 32;

/// The prefixes of one lease.
type Prefixes = (Option<Ipv4Net>, Ipv6Net);

/// What an acquire is given.
struct Choice {
    prefixes: Prefixes,
    /// They are those that the router had.
    kept: bool,
    /// The round that goes on after a restore.
    round: Option<Generation>,
    /// Whose leases of a backup give way to it.
    displaced: Vec<RouterName>,
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

impl Allocator {
    /// Grants, gives back, takes over or refuses. `member` is the own domain's entry.
    pub fn acquire(
        &self,
        acquire: &Acquire,
        holder: &SpiffeId,
        document: &Document,
        member: &Member,
        now: Mono,
    ) -> Result<(Vec<LeaseRecord>, Granted), Refusal> {
        let len4 = self.prefix_len4(acquire, member)?;
        let exclusions = self.admit_exclusions(acquire)?;
        if let Some(held) = &acquire.held {
            self.admit_generation(held.generation)?;
        }
        if acquire.held.is_none() {
            // What a backup says may have been given to somebody else since.
            self.refuse_while_readopting(now)?;
        }
        let own = self.leases.get(&acquire.router);
        if let Some(own) = own {
            self.admit_instance(own, acquire, holder)?;
        } else if self.leases.len() >= self.config.leases_max {
            let what = format!("domain {}", self.domain);
            let wanted = format!("router: at most {} may hold leases", self.config.leases_max);
            return Err(Refusal::Exhausted { what, wanted });
        }

        let scope = Scope {
            allocator: self,
            document,
            member,
            acquire,
            exclusions: &exclusions,
        };
        let newer = |held: &&Lease| own.is_none_or(|own| held.generation > own.lease.generation);
        let presented = acquire.held.as_ref().filter(newer);
        let Choice {
            prefixes,
            kept,
            round,
            displaced,
        } = scope.choose(own, presented, len4, now)?;

        // The same holder, the same prefixes: the same round. Everything else is a new one.
        let own_generation = own.map_or(self.floor, |own| own.lease.generation);
        let presented_generation = acquire
            .held
            .as_ref()
            .map_or(Generation(0), |held| held.generation);
        let highest = own_generation.max(presented_generation);
        let same_instance = match (own, presented) {
            (_, Some(held)) => {
                held.instance == acquire.instance && held.generation > own_generation
            }
            (Some(own), None) => own.lease.instance == acquire.instance,
            (None, None) => false,
        };
        let generation = if let Some(round) = round {
            round
        } else if kept && same_instance {
            highest
        } else if kept {
            Generation(highest.0.saturating_add(1))
        } else {
            Generation(highest.max(self.floor).0.saturating_add(1))
        };
        let lease = Lease {
            uid: self.uid,
            router: acquire.router.clone(),
            instance: acquire.instance,
            generation,
            prefix4: prefixes.0,
            prefix6: prefixes.1,
        };
        let unchanged = own.is_some_and(|own| own.lease == lease && own.exclusions == exclusions);
        let granted = Granted {
            lease: lease.clone(),
            renew_after: self.config.renew_after,
        };
        if unchanged {
            return Ok((Vec::new(), granted));
        }
        let ended = displaced
            .into_iter()
            .map(|router| LeaseRecord::Ended { router });
        let record = LeaseRecord::Granted {
            lease,
            holder: holder.clone(),
            exclusions,
        };
        Ok((ended.chain([record]).collect(), granted))
    }

    /// The lease that a stock router's prefix of one family was part of, as it may have been:
    /// the other family is what is free. None when somebody else has a part of it, when it is
    /// no prefix that a router is given here, or shorter than the usual one.
    pub fn complete(
        &self,
        presented: IpNet,
        acquire: &Acquire,
        document: &Document,
        member: &Member,
    ) -> Option<Lease> {
        let len4 = self.prefix_len4(acquire, member).ok()?;
        let exclusions = self.admit_exclusions(acquire).ok()?;
        let scope = Scope {
            allocator: self,
            document,
            member,
            acquire,
            exclusions: &exclusions,
        };
        let prefix4 = match (presented, len4, member.block4) {
            (IpNet::V4(prefix), Some(len), _) if prefix.prefix_len() >= len => Some(prefix),
            (IpNet::V4(_), ..) => return None,
            (IpNet::V6(_), Some(len), Some(block)) => match scope.cut(block.into(), len).ok()? {
                IpNet::V4(prefix) => Some(prefix),
                IpNet::V6(_) => return None,
            },
            (IpNet::V6(_), ..) => None,
        };
        let prefix6 = match presented {
            IpNet::V6(prefix) => prefix,
            IpNet::V4(_) => match scope.cut(member.block6.into(), PREFIX_LEN6).ok()? {
                IpNet::V6(prefix) => prefix,
                IpNet::V4(_) => return None,
            },
        };
        let lease = Lease {
            uid: self.uid,
            router: acquire.router.clone(),
            instance: acquire.instance,
            generation: Generation(0),
            prefix4,
            prefix6,
        };
        scope.is_free(&lease, len4).then_some(lease)
    }

    /// A sign of life. Changes nothing durable; the caller touches the lease on success.
    pub fn renew(
        &self,
        lease: &Lease,
        holder: &SpiffeId,
        member: &Member,
    ) -> Result<Granted, Refusal> {
        let again = |reason: &str| Refusal::AcquireAgain {
            reason: reason.to_owned(),
        };
        let own = self
            .leases
            .get(&lease.router)
            .ok_or_else(|| again("unknown here"))?;
        Self::admit_holder(own, holder)?;
        Self::admit_round(own, lease)?;
        if lease != &own.lease {
            return Err(again("not the one that is held here"));
        }
        if lease.prefixes().any(|prefix| !member.owns(&prefix)) {
            return Err(again("outside of the domain's blocks"));
        }
        Ok(Granted {
            lease: own.lease.clone(),
            renew_after: self.config.renew_after,
        })
    }

    /// Gives a lease back. Unknown or given back already: nothing to do.
    pub fn release(&self, lease: &Lease, holder: &SpiffeId) -> Result<Vec<LeaseRecord>, Refusal> {
        let Some(own) = self.leases.get(&lease.router) else {
            return Ok(Vec::new());
        };
        Self::admit_holder(own, holder)?;
        Self::admit_round(own, lease)?;
        Ok(vec![LeaseRecord::Ended {
            router: lease.router.clone(),
        }])
    }

    /// Ends a lease without its holder: an operator's word, or silence.
    pub fn end(&self, router: &RouterName) -> Vec<LeaseRecord> {
        let known = self.leases.contains_key(router);
        known
            .then(|| LeaseRecord::Ended {
                router: router.clone(),
            })
            .into_iter()
            .collect()
    }

    /// An operator excludes a range from new grants.
    pub fn exclude(&self, range: IpNet) -> Result<Vec<LeaseRecord>, Refusal> {
        let range = range.trunc();
        if self.exclusions.contains(&range) {
            return Ok(Vec::new());
        }
        if self.exclusions.len() >= self.config.exclusions_max {
            let what = format!(
                "the list of excluded ranges ({})",
                self.config.exclusions_max
            );
            return Err(Refusal::Exhausted {
                what,
                wanted: "range".to_owned(),
            });
        }
        self.refuse_collision(&range)?;
        Ok(vec![LeaseRecord::Excluded { range }])
    }

    pub fn include(&self, range: IpNet) -> Vec<LeaseRecord> {
        let range = range.trunc();
        let known = self.exclusions.contains(&range);
        known
            .then_some(LeaseRecord::Included { range })
            .into_iter()
            .collect()
    }

    fn readopting(&self, now: Mono) -> Option<&Readopting> {
        self.readopting
            .as_ref()
            .filter(|readopting| now < readopting.until)
    }

    fn refuse_while_readopting(&self, now: Mono) -> Result<(), Refusal> {
        self.readopting(now)
            .map_or(Ok(()), |readopting| Err(readopting.refusal(now)))
    }

    fn prefix_len4(&self, acquire: &Acquire, member: &Member) -> Result<Option<u8>, Refusal> {
        let Some(block) = member.block4 else {
            return Ok(None);
        };
        let shortest = block.prefix_len();
        match acquire.prefix_len4 {
            None => {
                let usual = (shortest + 2).min(28).max(shortest);
                let len = self.config.prefix_len4.unwrap_or(usual);
                Ok(Some(len.clamp(shortest, PREFIX_LEN4_MAX)))
            }
            Some(len) if (shortest..=PREFIX_LEN4_MAX).contains(&len) => Ok(Some(len)),
            Some(len) => Err(Refusal::Invalid {
                field: "prefix_len4",
                value: len.to_string(),
                allowed: format!("{shortest} to {PREFIX_LEN4_MAX} are (block {block})"),
            }),
        }
    }

    /// Canonical and sorted; refused when one of them covers what somebody already holds.
    fn admit_exclusions(&self, acquire: &Acquire) -> Result<Vec<IpNet>, Refusal> {
        if acquire.exclusions.len() > self.config.exclusions_max {
            return Err(Refusal::Invalid {
                field: "exclusions",
                value: format!("a list of {}", acquire.exclusions.len()),
                allowed: format!("at most {} ranges are", self.config.exclusions_max),
            });
        }
        let mut exclusions: Vec<_> = acquire.exclusions.iter().map(IpNet::trunc).collect();
        exclusions.sort_unstable();
        exclusions.dedup();
        exclusions
            .iter()
            .try_for_each(|exclusion| self.refuse_collision(exclusion))?;
        Ok(exclusions)
    }

    fn refuse_collision(&self, exclusion: &IpNet) -> Result<(), Refusal> {
        let mut leased = self
            .leases()
            .flat_map(|lease| lease.prefixes().map(move |prefix| (lease, prefix)));
        leased
            .find(|(_, prefix)| overlap(prefix, exclusion))
            .map_or(Ok(()), |(lease, range)| {
                let whose = format!("the prefix of {}, which holds it", lease.router);
                Err(Refusal::Collision {
                    exclusion: *exclusion,
                    range,
                    whose,
                })
            })
    }

    /// Whether a router can have lived that long.
    pub fn admit_generation(&self, generation: Generation) -> Result<(), Refusal> {
        let live = self.leases().map(|lease| lease.generation);
        let known = live.fold(self.floor, Generation::max);
        let highest = Generation(known.0.saturating_add(AHEAD_MAX));
        if generation > highest {
            return Err(Refusal::GenerationTooHigh {
                generation,
                highest,
            });
        }
        Ok(())
    }

    fn admit_holder(own: &Entry, holder: &SpiffeId) -> Result<(), Refusal> {
        if own.holder == *holder {
            return Ok(());
        }
        Err(Refusal::HeldByOther {
            router: own.lease.router.clone(),
            holder: own.holder.clone(),
        })
    }

    /// A lease of a lower round, or of another instance in the same one, is fenced.
    fn admit_round(own: &Entry, lease: &Lease) -> Result<(), Refusal> {
        let held = &own.lease;
        if lease.generation < held.generation
            || (lease.generation == held.generation && lease.instance != held.instance)
        {
            return Err(Refusal::Fenced {
                router: held.router.clone(),
                generation: held.generation,
            });
        }
        Ok(())
    }

    /// A fresh instance takes the name over; one that remembers an older round is fenced.
    fn admit_instance(
        &self,
        own: &Entry,
        acquire: &Acquire,
        holder: &SpiffeId,
    ) -> Result<(), Refusal> {
        Self::admit_holder(own, holder)?;
        let stale = acquire
            .held
            .as_ref()
            .is_some_and(|held| held.generation < own.lease.generation);
        if stale && acquire.instance != own.lease.instance {
            let generation = own.lease.generation;
            return Err(Refusal::Fenced {
                router: own.lease.router.clone(),
                generation,
            });
        }
        Ok(())
    }
}

impl Readopting {
    fn refusal(&self, now: Mono) -> Refusal {
        Refusal::ReadoptOnly {
            seconds: self.until.saturating_since(now).as_secs() + 1,
        }
    }
}

/// What one acquire may be given.
struct Scope<'a> {
    allocator: &'a Allocator,
    document: &'a Document,
    member: &'a Member,
    acquire: &'a Acquire,
    exclusions: &'a [IpNet],
}

impl Scope<'_> {
    fn choose(
        &self,
        own: Option<&Entry>,
        presented: Option<&Lease>,
        len4: Option<u8>,
        now: Mono,
    ) -> Result<Choice, Refusal> {
        if let Some(held) = presented {
            if let Some(readopting) = self.allocator.readopting(now) {
                // Later than the backup, or else ended before it.
                let was_ended = own.is_none() && held.generation <= readopting.floor;
                let displaced = self.in_the_way(held, len4).filter(|_| !was_ended);
                let displaced = displaced.ok_or_else(|| readopting.refusal(now))?;
                return Ok(Choice::readopted(held, displaced));
            }
            if self.is_free(held, len4) {
                return Ok(Choice::kept(held));
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
        let in_the_way = self.allocator.leases().filter(|other| {
            other.router != held.router
                && other
                    .prefixes()
                    .any(|range| held.prefixes().any(|prefix| overlap(&range, &prefix)))
        });
        in_the_way
            .map(|other| (other.generation < held.generation).then(|| other.router.clone()))
            .collect()
    }

    /// Whether a lease that the router remembers can be taken back as it is.
    fn is_free(&self, held: &Lease, len4: Option<u8>) -> bool {
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

    /// Everything that a new grant must not touch: others' leases, and exclusions of the
    /// document, the operator, the router itself and the routers that hold leases.
    fn taken(&self) -> Vec<IpNet> {
        let others = || {
            self.allocator
                .leases
                .values()
                .filter(|entry| entry.lease.router != self.acquire.router)
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
