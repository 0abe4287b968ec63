//! Who holds a name in one domain (R1.10): the first workload identity that took it, as long as
//! its lease. A table, kept by whoever owns the domain's names.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::ids::{RouterName, SpiffeId, WorkloadName};
use crate::time::Mono;

/// One held name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub workload: SpiffeId,
    pub router: RouterName,
    pub addresses: BTreeSet<IpAddr>,
    /// Free again after this, unless claimed anew.
    pub until: Mono,
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Held from now on; `changed` when router or addresses differ from before.
    Granted { changed: bool },
    /// Another identity holds it: no record for the claimer.
    Held { by: SpiffeId },
    /// The table is full.
    Full,
}

/// Names of one domain and network. Bounded by `limit`.
#[derive(Clone, Debug)]
pub struct NameTable {
    holdings: BTreeMap<WorkloadName, Holding>,
    limit: usize,
    refused: u64,
}

impl NameTable {
    pub const fn new(limit: usize) -> Self {
        Self {
            holdings: BTreeMap::new(),
            limit,
            refused: 0,
        }
    }

    /// Takes or renews a name. The same identity may come through another router (it moved).
    pub fn claim(&mut self, name: WorkloadName, wanted: Holding, now: Mono) -> Claim {
        let full = self.holdings.len() >= self.limit;
        match self.holdings.get_mut(&name) {
            Some(held) if held.workload != wanted.workload && held.until > now => {
                self.refused += 1;
                Claim::Held {
                    by: held.workload.clone(),
                }
            }
            Some(held) => {
                let changed = held.workload != wanted.workload
                    || held.router != wanted.router
                    || held.addresses != wanted.addresses;
                *held = wanted;
                Claim::Granted { changed }
            }
            None if full => {
                self.refused += 1;
                Claim::Full
            }
            None => {
                self.holdings.insert(name, wanted);
                Claim::Granted { changed: true }
            }
        }
    }

    /// Gives a name back; only its holder can. True when it was held.
    pub fn release(&mut self, name: &WorkloadName, workload: &SpiffeId) -> bool {
        let held = self
            .holdings
            .get(name)
            .is_some_and(|held| held.workload == *workload);
        if held {
            self.holdings.remove(name);
        }
        held
    }

    /// Frees what ran out and names it.
    pub fn expire(&mut self, now: Mono) -> Vec<WorkloadName> {
        let out: Vec<WorkloadName> = self
            .holdings
            .iter()
            .filter(|(_, held)| held.until <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &out {
            self.holdings.remove(name);
        }
        out
    }

    pub fn next_expiry(&self) -> Option<Mono> {
        self.holdings.values().map(|held| held.until).min()
    }

    pub fn get(&self, name: &WorkloadName) -> Option<&Holding> {
        self.holdings.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&WorkloadName, &Holding)> {
        self.holdings.iter()
    }

    /// Claims that got no record.
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(workload: &str, until: u64) -> Holding {
        Holding {
            workload: SpiffeId::new(workload).unwrap(),
            router: RouterName::new("red-east").unwrap(),
            addresses: BTreeSet::from(["10.1.0.5".parse().unwrap()]),
            until: Mono::from_secs(until),
        }
    }

    #[test]
    fn r1_10_a_name_stays_with_the_first_identity_that_took_it() {
        let mut table = NameTable::new(10);
        let (web, first, other) = (
            WorkloadName::new("web").unwrap(),
            "spiffe://east.test/workload/a",
            "spiffe://east.test/workload/b",
        );
        let now = Mono::from_secs(1);
        assert_eq!(
            table.claim(web.clone(), holding(first, 60), now),
            Claim::Granted { changed: true }
        );
        assert_eq!(
            table.claim(web.clone(), holding(first, 90), now),
            Claim::Granted { changed: false }
        );
        let by = SpiffeId::new(first).unwrap();
        assert_eq!(
            table.claim(web.clone(), holding(other, 60), now),
            Claim::Held { by: by.clone() }
        );
        assert_eq!(table.refused(), 1);
        assert!(!table.release(&web, &SpiffeId::new(other).unwrap()));
        assert_eq!(table.next_expiry(), Some(Mono::from_secs(90)));
        assert_eq!(table.expire(Mono::from_secs(89)), []);
        assert_eq!(table.expire(Mono::from_secs(90)), [web.clone()]);
        assert_eq!(
            table.claim(web, holding(other, 200), Mono::from_secs(91)),
            Claim::Granted { changed: true }
        );
    }

    #[test]
    fn r1_10_the_table_is_bounded() {
        let mut table = NameTable::new(1);
        let id = "spiffe://east.test/workload/a";
        let claim = |table: &mut NameTable, name: &str| {
            table.claim(WorkloadName::new(name).unwrap(), holding(id, 60), Mono(0))
        };
        assert_eq!(claim(&mut table, "a"), Claim::Granted { changed: true });
        assert_eq!(claim(&mut table, "b"), Claim::Full);
        assert_eq!(claim(&mut table, "a"), Claim::Granted { changed: false });
    }
}
