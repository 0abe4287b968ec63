//! Who owns which prefix of one domain's blocks in one network: leases of routers.
//!
//! A lease belongs to the stable router name, covers both families and has a generation that
//! only grows. It ends by release, by an operator, or after a silent lifetime. Durable:
//! Deciding (`decide.rs`) changes nothing, [`Allocator::apply`] takes one record; renewals are
//! no records, they move a monotonic deadline, and after a restart every lease has one full
//! lifetime.

mod decide;
mod scope;
mod space;
mod stock_lease;
mod types;

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod restore_tests;
#[cfg(test)]
mod stock_restore_tests;
#[cfg(test)]
mod tests;

pub use space::first_free;
pub use stock_lease::{StockHolder, StockRefusal, stock_lease};
pub use types::{Acquire, Config, Granted, Lease, LeaseRecord, Refusal};

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::deadlines::Deadlines;
use crate::ids::{DomainName, Generation, NetworkUid, RouterName, SpiffeId};
use crate::time::Mono;

/// The leases of one domain in one network. Owned by the registry's machine.
#[derive(Clone, Debug)]
pub struct Allocator {
    uid: NetworkUid,
    domain: DomainName,
    config: Config,
    leases: BTreeMap<RouterName, Entry>,
    deadlines: Deadlines<RouterName>,
    /// Ranges that an operator excluded while running.
    exclusions: BTreeSet<IpNet>,
    /// The highest generation of any lease that ended or left its prefixes: a name that returns
    /// starts above it, so that no memory of dead names is needed. Whoever is given other
    /// prefixes than its own starts above it too: of two leases that overlap, the one with the
    /// higher generation is the later one.
    floor: Generation,
    /// After a restore from backup: until then presented leases are taken back, but nothing
    /// is granted anew. A restart starts the period anew.
    readopting: Option<Readopting>,
    /// Leases of a backup whose holders gave no sign of life since. Not durable beyond the
    /// period: after a restart nobody is in doubt before two renewal intervals.
    doubted: BTreeSet<RouterName>,
}

/// The time after a restore from backup.
#[derive(Clone, Copy, Debug)]
struct Readopting {
    until: Mono,
    /// The backup's floor: lower rounds of routers that the backup does not know had ended.
    floor: Generation,
}

#[derive(Clone, Debug)]
struct Entry {
    lease: Lease,
    /// The identity that acquired the name first; another one is refused.
    holder: SpiffeId,
    /// What this router must not be given; binds later grants to others too.
    exclusions: Vec<IpNet>,
    /// Not durable: starts anew with every restart.
    deadline: Mono,
}

impl Allocator {
    pub fn new(uid: NetworkUid, domain: DomainName, config: Config) -> Self {
        Self {
            uid,
            domain,
            config,
            leases: BTreeMap::new(),
            deadlines: Deadlines::default(),
            exclusions: BTreeSet::new(),
            floor: Generation(0),
            readopting: None,
            doubted: BTreeSet::new(),
        }
    }

    /// When nothing but taking leases back ends; [`LeaseRecord::Readopted`] is due then.
    pub fn readopts_until(&self) -> Option<Mono> {
        self.readopting.map(|readopting| readopting.until)
    }

    /// Takes one record, when it is decided and when it is replayed. `now` starts the lifetime.
    pub fn apply(&mut self, record: LeaseRecord, now: Mono) {
        match record {
            LeaseRecord::Granted {
                lease,
                holder,
                exclusions,
            } => {
                let deadline = now + self.config.lifetime;
                let entry = Entry {
                    lease,
                    holder,
                    exclusions,
                    deadline,
                };
                let router = entry.lease.router.clone();
                self.doubted.remove(&router);
                let (prefix4, prefix6) = (entry.lease.prefix4, entry.lease.prefix6);
                let before = self.leases.insert(router.clone(), entry);
                let before_deadline = before.as_ref().map(|entry| entry.deadline);
                self.deadlines.set(&router, before_deadline, Some(deadline));
                // What it leaves may go to others, who must stand above it.
                if let Some(Entry { lease, .. }) = before
                    && (lease.prefix4, lease.prefix6) != (prefix4, prefix6)
                {
                    self.floor = self.floor.max(lease.generation);
                }
            }
            LeaseRecord::Ended { router } => {
                self.doubted.remove(&router);
                if let Some(entry) = self.leases.remove(&router) {
                    self.deadlines.set(&router, Some(entry.deadline), None);
                    self.floor = self.floor.max(entry.lease.generation);
                }
            }
            LeaseRecord::Floor { generation } => self.floor = self.floor.max(generation),
            LeaseRecord::Excluded { range } => {
                self.exclusions.insert(range);
            }
            LeaseRecord::Included { range } => {
                self.exclusions.remove(&range);
            }
            LeaseRecord::Restored { floor } => {
                self.doubted = self.leases.keys().cloned().collect();
                // Restored again within the period: what the first backup did not know of, and
                // whose rounds have been heard of since, has not ended for that.
                let floor = floor.unwrap_or(self.floor);
                let before = self.readopting.map(|readopting| readopting.floor);
                self.readopting = Some(Readopting {
                    until: now + self.config.renew_after * 2,
                    floor: before.map_or(floor, |before| floor.min(before)),
                });
            }
            LeaseRecord::Readopted => self.readopting = None,
        }
    }

    /// A sign of life of the holder: one full lifetime from now.
    pub fn touch(&mut self, router: &RouterName, now: Mono) {
        self.doubted.remove(router);
        if let Some(entry) = self.leases.get_mut(router) {
            let deadline = now + self.config.lifetime;
            self.deadlines
                .set(router, Some(entry.deadline), Some(deadline));
            entry.deadline = deadline;
        }
    }

    /// Whether its holder gave no sign of life for two renewal intervals, or since the start.
    pub fn is_silent(&self, router: &RouterName, now: Mono) -> bool {
        self.leases.get(router).is_some_and(|entry| {
            let left = entry.deadline.saturating_since(now);
            self.config.lifetime.saturating_sub(left) >= self.config.renew_after * 2
        })
    }

    /// Whether nobody ever showed that a lease of a backup is alive.
    fn is_doubted(&self, router: &RouterName, now: Mono) -> bool {
        self.doubted.contains(router) && self.is_silent(router, now)
    }

    /// The records that bring an empty allocator to this state.
    pub fn snapshot(&self) -> Vec<LeaseRecord> {
        let floor = [LeaseRecord::Floor {
            generation: self.floor,
        }];
        let excluded = self
            .exclusions
            .iter()
            .map(|range| LeaseRecord::Excluded { range: *range });
        let granted = self.leases.values().map(|entry| LeaseRecord::Granted {
            lease: entry.lease.clone(),
            holder: entry.holder.clone(),
            exclusions: entry.exclusions.clone(),
        });
        let restored = self.readopting.map(|readopting| LeaseRecord::Restored {
            floor: Some(readopting.floor),
        });
        floor
            .into_iter()
            .chain(excluded)
            .chain(granted)
            .chain(restored)
            .collect()
    }

    pub fn leases(&self) -> impl Iterator<Item = &Lease> + '_ {
        self.leases.values().map(|entry| &entry.lease)
    }

    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    pub fn lease(&self, router: &RouterName) -> Option<&Lease> {
        self.leases.get(router).map(|entry| &entry.lease)
    }

    /// Who holds the name, and until when without a sign of life.
    pub fn holder(&self, router: &RouterName) -> Option<(&SpiffeId, Mono)> {
        self.leases
            .get(router)
            .map(|entry| (&entry.holder, entry.deadline))
    }

    pub fn exclusions(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.exclusions.iter().copied()
    }

    /// Leases whose holder was silent for a lifetime.
    pub fn expired(&self, now: Mono) -> Vec<RouterName> {
        self.deadlines.due(now).cloned().collect()
    }

    pub fn next_expiry(&self) -> Option<Mono> {
        self.deadlines.next()
    }

    pub const fn uid(&self) -> NetworkUid {
        self.uid
    }
}
