//! The decisions: nothing here changes state.

use ipnet::IpNet;

use super::scope::{Choice, PREFIX_LEN4_MAX, PREFIX_LEN6, Scope, UNKNOWN_ROUND};
use super::space::overlap;
use super::{Acquire, Allocator, Entry, Granted, Lease, LeaseRecord, Readopting, Refusal};
use crate::document::{Document, Member};
use crate::ids::{Generation, RouterName, SpiffeId};
use crate::time::Mono;

/// How far a router's memory may be ahead of everything that is known here: no registry forgets
/// so many rounds, and no router can use all of them up by presenting the last one.
const AHEAD_MAX: u64 = 1 << 32;

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
        // Of two leases that overlap the later one has the higher round.
        let before = displaced.iter().filter_map(|router| self.lease(router));
        let before = before
            .map(|lease| lease.generation.0.saturating_add(1))
            .max();
        let generation = generation.max(Generation(before.unwrap_or(0)));
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
    /// the other family is what is free, and given last. None when somebody else has a part of
    /// it (a lease of a backup that nobody showed to be alive does not count), when it is no
    /// prefix that a router is given here, or shorter than the usual one.
    pub fn complete(
        &self,
        presented: IpNet,
        acquire: &Acquire,
        document: &Document,
        member: &Member,
        now: Mono,
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
            (IpNet::V6(_), Some(len), Some(block)) => match scope.cut_last(block.into(), len)? {
                IpNet::V4(prefix) => Some(prefix),
                IpNet::V6(_) => return None,
            },
            (IpNet::V6(_), ..) => None,
        };
        let prefix6 = match presented {
            IpNet::V6(prefix) => prefix,
            IpNet::V4(_) => match scope.cut_last(member.block6.into(), PREFIX_LEN6)? {
                IpNet::V6(prefix) => prefix,
                IpNet::V4(_) => return None,
            },
        };
        let lease = Lease {
            uid: self.uid,
            router: acquire.router.clone(),
            instance: acquire.instance,
            generation: UNKNOWN_ROUND,
            prefix4,
            prefix6,
        };
        let has_room =
            scope.is_free(&lease, len4) || scope.doubted_in_the_way(&lease, len4, now).is_some();
        has_room.then_some(lease)
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

    pub(super) fn readopting(&self, now: Mono) -> Option<&Readopting> {
        self.readopting
            .as_ref()
            .filter(|readopting| now < readopting.until)
    }

    pub(super) fn refuse_while_readopting(&self, now: Mono) -> Result<(), Refusal> {
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
    pub(super) fn refusal(&self, now: Mono) -> Refusal {
        Refusal::ReadoptOnly {
            seconds: self.until.saturating_since(now).as_secs() + 1,
        }
    }
}
