//! What ends by time: leases, names, endpoints, and the time after a restore.
//!
//! A sign of life needs no write, and so it is accepted only while the store confirms that this
//! replica is the active one. While it does not, nobody can give one, and nothing ends.

use super::api::Effect;
use super::machine::RegistryMachine;
use super::record::Record;
use crate::allocator::LeaseRecord;
use crate::machine::Outbox;
use crate::time::{Mono, Now};

impl RegistryMachine {
    /// The records that end what nobody gave a sign of life for in time.
    pub(super) fn end_what_is_due(&mut self, now: Now, out: &mut Outbox<Effect>) {
        if self.unconfirmed {
            return;
        }
        let silent = self.networks.iter().flat_map(|(uid, network)| {
            let ended = network.allocator.expired(now.mono).into_iter();
            ended.map(|router| Record::Lease {
                uid: *uid,
                record: LeaseRecord::Ended { router },
            })
        });
        let silent = silent.collect();
        self.commit(silent, now, out);
        let readopted = self.networks.iter().filter(|(_, network)| {
            let until = network.allocator.readopts_until();
            until.is_some_and(|until| until <= now.mono)
        });
        let readopted = readopted.map(|(uid, _)| Record::Lease {
            uid: *uid,
            record: LeaseRecord::Readopted,
        });
        let readopted = readopted.collect();
        self.commit(readopted, now, out);
        let unclaimed = self
            .networks
            .iter()
            .flat_map(|(uid, network)| network.names.expired(*uid, now.mono));
        let unclaimed = unclaimed.collect();
        self.commit(unclaimed, now, out);
        let expired = self.objects.expired(now.mono);
        self.commit(expired, now, out);
    }

    pub(super) fn next_expiry(&self) -> Option<(Mono, &'static str)> {
        if self.unconfirmed {
            return None;
        }
        let networks = || self.networks.values();
        let leases = networks().filter_map(|network| network.allocator.next_expiry());
        let readopted = networks().filter_map(|network| network.allocator.readopts_until());
        let names = networks().filter_map(|network| network.names.next_expiry());
        let due = [
            leases.min().map(|at| (at, "lease expiry")),
            readopted.min().map(|at| (at, "end of a restore")),
            names.min().map(|at| (at, "name expiry")),
            self.objects.next_expiry().map(|at| (at, "endpoint expiry")),
        ];
        due.into_iter().flatten().min()
    }

    /// The store says again that this replica is the active one, and nobody else was meanwhile:
    /// everything lives one full lifetime more, as after a promotion.
    pub(super) fn confirmed(&mut self, now: Now) {
        if !core::mem::take(&mut self.unconfirmed) {
            return;
        }
        for record in self.journal_snapshot() {
            self.apply(&record, now.mono);
        }
        let own = now.mono + self.config.endpoint_lifetime;
        let remote = now.mono + self.config.federation.stale_grace;
        self.objects.postpone(own, remote);
    }
}
