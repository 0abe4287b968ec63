//! Commands and watches, one after another.

use ipnet::IpNet;

use super::api::{
    Alarm, Command, Effect, Page, Peer, Place, Query, Refusal, Reply, WatchEvent, WatcherId,
};
use super::machine::RegistryMachine;
use super::names::Claimed;
use super::object::Marks;
use super::record::{Claim, Record};
use super::watch::Watcher;
use crate::allocator::{self, Acquire, Lease, LeaseRecord};
use crate::document::{Chain, Member, Offer};
use crate::ids::{Generation, NetworkUid, RouterName, SpiffeId, WorkloadName};
use crate::machine::Outbox;
use crate::time::Now;

type Out<'a> = &'a mut Outbox<Effect>;

const ADDRESSES_MAX: usize = 16;

impl RegistryMachine {
    pub(super) fn call(
        &mut self,
        peer: &Peer,
        command: Command,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        match command {
            Command::Acquire { uid, acquire } => {
                let held = acquire.held.as_ref();
                if held.is_some_and(|held| held.generation == Generation(0)) {
                    return Err(Refusal::Invalid {
                        field: "held.generation",
                        value: "0".to_owned(),
                        allowed: "1 and above are".to_owned(),
                    });
                }
                self.acquire(uid, &acquire, peer, now, out)
            }
            Command::AcquireStock { uid, stock } => self.acquire_stock(uid, &stock, peer, now, out),
            Command::Renew { lease } => self.renew(&lease, peer, now),
            Command::Release { lease } => self.release(&lease, peer, now, out),
            Command::EndLease { uid, router } => self.end_lease(uid, &router, peer, now, out),
            Command::Exclude {
                uid,
                range,
                excluded,
            } => self.exclude(uid, range, excluded, peer, now, out),
            Command::RegisterService { service } => self.register_service(service, peer, now, out),
            Command::UnregisterService { name } => self.unregister_service(name, peer, now, out),
            Command::RegisterEndpoint { endpoint, lifetime } => {
                self.register_endpoint(endpoint, lifetime, peer, now, out)
            }
            Command::UnregisterEndpoint { name } => self.unregister_endpoint(name, peer, now, out),
            Command::FindServices { query } => {
                self.check_size("network_service", query.size())?;
                Ok(Reply::Services(self.find_services(&query, peer, now)))
            }
            Command::FindEndpoints { query, after } => {
                self.check_size("network_service_endpoint", query.size())?;
                let page = self.find_endpoints(&query, after.as_ref(), peer, now);
                Ok(Reply::Endpoints(page))
            }
            Command::ClaimName { uid, claim } => self.claim_name(uid, &claim, peer, now, out),
            Command::ReleaseName {
                uid,
                name,
                workload,
            } => self.release_name(uid, &name, &workload, peer, now, out),
            Command::Publish { chain } => self.publish(&chain, peer, now, out),
        }
    }

    pub(super) fn acquire(
        &mut self,
        uid: NetworkUid,
        acquire: &Acquire,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        let (network, _, member) = self.network(uid, now.wall)?;
        self.must_be_router("a lease", peer, member)?;
        if let Some(held) = &acquire.held
            && (held.uid != uid || held.router != acquire.router)
        {
            return Err(Refusal::Invalid {
                field: "held",
                value: format!("the lease of {} in network {}", held.router, held.uid),
                allowed: format!("only one of {} in network {uid} is", acquire.router),
            });
        }
        // A registry that lost its memory still hears of rounds from the registrations of those
        // that live on: a new life of such a name must not stand behind the old one.
        let seen = self
            .objects
            .own(acquire.router.as_str())
            .and_then(|own| Marks::of(&own.endpoint))
            .filter(|marks| marks.uid == uid && network.allocator.lease(&acquire.router).is_none())
            .filter(|marks| {
                let admitted = network.allocator.admit_generation(marks.generation);
                admitted.is_ok()
            })
            // Who remembers that round goes on with it.
            .filter(|marks| {
                let held = acquire.held.as_ref();
                held.is_none_or(|held| held.generation < marks.generation)
            });
        if let Some(marks) = seen {
            let generation = marks.generation;
            self.commit_leases(uid, vec![LeaseRecord::Floor { generation }], now, out)?;
        }
        let (network, document, member) = self.network(uid, now.wall)?;
        let (records, granted) = network
            .allocator
            .acquire(acquire, &peer.id, document, member, now.mono)?;
        self.commit_leases(uid, records, now, out)?;
        if let Some(network) = self.networks.get_mut(&uid) {
            network.allocator.touch(&acquire.router, now.mono);
        }
        Ok(Reply::Lease(granted))
    }

    fn renew(&mut self, lease: &Lease, peer: &Peer, now: Now) -> Result<Reply, Refusal> {
        let (network, _, member) = self.network(lease.uid, now.wall)?;
        self.must_be_router("a lease", peer, member)?;
        let granted = network.allocator.renew(lease, &peer.id, member)?;
        if let Some(network) = self.networks.get_mut(&lease.uid) {
            network.allocator.touch(&lease.router, now.mono);
        }
        Ok(Reply::Lease(granted))
    }

    fn release(
        &mut self,
        lease: &Lease,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        let (network, _, member) = self.network(lease.uid, now.wall)?;
        self.must_be_router("a lease", peer, member)?;
        let records = network.allocator.release(lease, &peer.id)?;
        self.commit_leases(lease.uid, records, now, out)
    }

    fn end_lease(
        &mut self,
        uid: NetworkUid,
        router: &RouterName,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        let (network, ..) = self.network(uid, now.wall)?;
        let holder = network.allocator.holder(router);
        if holder.is_none_or(|(holder, _)| *holder != peer.id) {
            self.must_be_operator("a lease's end", peer)?;
        }
        let records = network.allocator.end(router);
        self.commit_leases(uid, records, now, out)
    }

    fn exclude(
        &mut self,
        uid: NetworkUid,
        range: IpNet,
        excluded: bool,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        self.must_be_operator("an exclusion", peer)?;
        let (network, ..) = self.network(uid, now.wall)?;
        let records = if excluded {
            network.allocator.exclude(range)?
        } else {
            network.allocator.include(range)
        };
        self.commit_leases(uid, records, now, out)
    }

    fn commit_leases(
        &mut self,
        uid: NetworkUid,
        records: Vec<LeaseRecord>,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        let records = records
            .into_iter()
            .map(|record| Record::Lease { uid, record })
            .collect();
        self.commit(records, now, out);
        Ok(Reply::Done)
    }

    fn claim_name(
        &mut self,
        uid: NetworkUid,
        claim: &Claim,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        let (network, _, member) = self.network(uid, now.wall)?;
        self.must_be_router("a name", peer, member)?;
        let held = network.allocator.lease(&claim.router).filter(|_| {
            let holder = network.allocator.holder(&claim.router);
            holder.is_some_and(|(holder, _)| *holder == peer.id)
        });
        let Some(lease) = held else {
            let reason = format!("{} holds no lease under {}", peer.id, claim.router);
            return Err(allocator::Refusal::AcquireAgain { reason }.into());
        };
        check_addresses(claim, lease, member)?;
        match network
            .names
            .claim(uid, claim, &peer.id, self.config.names_max)
        {
            Claimed::Granted(records) => {
                self.commit(records, now, out);
                let deadline = now.mono + self.config.name_lifetime;
                if let Some(network) = self.networks.get_mut(&uid) {
                    network.names.touch(&claim.name, deadline);
                }
                Ok(Reply::Name { held_by: None })
            }
            Claimed::HeldBy(workload) => Ok(Reply::Name {
                held_by: Some(workload),
            }),
            Claimed::Full => Err(Refusal::Limit {
                what: "names",
                limit: self.config.names_max,
            }),
        }
    }

    fn release_name(
        &mut self,
        uid: NetworkUid,
        name: &WorkloadName,
        workload: &SpiffeId,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        let (network, _, member) = self.network(uid, now.wall)?;
        self.must_be_router("a name", peer, member)?;
        let records = network.names.release(uid, name, workload, &peer.id);
        self.commit(records, now, out);
        Ok(Reply::Done)
    }

    /// The signatures are the authority: whoever can reach us may bring a version.
    fn publish(
        &mut self,
        chain: &Chain,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        let uid = chain.uid();
        let network = self
            .networks
            .get(&uid)
            .ok_or(Refusal::UnknownNetwork { uid })?;
        let held = network.store.version();
        let refused = |reason: String| Reply::Published {
            version: held,
            accepted: false,
            reason,
        };
        Ok(match network.store.decide(chain) {
            Offer::Newer(chain) => {
                let version = chain.document().version;
                // Taken all the same: other registries cannot know of it. Whoever wrote the
                // version hears it at once.
                let mut notes = self.excluded_leases(&chain).into_iter();
                let reason = notes
                    .next()
                    .map(|(exclusion, range, router)| {
                        let more = match notes.len() {
                            0 => String::new(),
                            more => format!(", {more} more"),
                        };
                        format!(
                            "{exclusion} overlaps {range}, which {router} keeps as long as it renews{more}"
                        )
                    })
                    .unwrap_or_default();
                self.commit(vec![Record::Document { chain }], now, out);
                Reply::Published {
                    version,
                    accepted: true,
                    reason,
                }
            }
            Offer::Same => Reply::Published {
                version: held,
                accepted: true,
                reason: "held already".to_owned(),
            },
            Offer::Older { held, offered } => {
                refused(format!("version {offered} is older than {held}"))
            }
            Offer::Conflict { version } => {
                let from = peer.id.to_string();
                out.push(Effect::Alarm(Alarm::DocumentConflict {
                    uid,
                    version,
                    from,
                }));
                refused(format!("version {version} is held with other content"))
            }
            Offer::OtherNetwork { offered } => refused(format!("it is of network {offered}")),
        })
    }

    pub(super) fn watch(
        &mut self,
        watcher: WatcherId,
        peer: Peer,
        query: Query,
        now: Now,
        out: Out<'_>,
    ) {
        if let Err(refusal) = self.takes_watches() {
            return out.push(Effect::EndWatch { watcher, refusal });
        }
        if let Err(refusal) = self.watchers.room(&peer, &self.config) {
            return self.say(Effect::EndWatch { watcher, refusal }, out);
        }
        let services = |service| WatchEvent::Service {
            service,
            deleted: false,
        };
        let snapshot = match &query {
            Query::Endpoints(query) => self
                .check_size("network_service_endpoint", query.size())
                .map(|()| shown(self.find_endpoints(query, None, &peer, now))),
            Query::Services(query) => self.check_size("network_service", query.size()).map(|()| {
                let found = self.find_services(query, &peer, now).into_iter();
                (found.map(services).collect(), None)
            }),
            Query::Document(uid) => self.may_read_document(*uid, &peer, now.wall).map(|()| {
                let chain = self.document(*uid).cloned().map(WatchEvent::Document);
                (chain.into_iter().collect(), None)
            }),
        };
        match snapshot {
            Ok((events, next)) => {
                let rest = next.is_some();
                let sees = self.shown_to(&peer, now.wall);
                let new = Watcher {
                    peer,
                    query,
                    rest: next,
                    sees,
                };
                self.watchers.insert(watcher, new);
                let effect = Effect::Deliver {
                    watcher,
                    events,
                    rest,
                };
                self.say(effect, out);
            }
            Err(refusal) => self.say(Effect::EndWatch { watcher, refusal }, out),
        }
    }

    fn takes_watches(&self) -> Result<(), Refusal> {
        if self.halted().is_some() || self.is_congested() {
            let reason = "too much waits for the journal".to_owned();
            return Err(Refusal::Unavailable { reason });
        }
        Ok(())
    }

    /// The next page of a watch's snapshot. What changed on those before was told; what stands
    /// on those to come is shown there as it is then.
    pub(super) fn watch_rest(&mut self, watcher: WatcherId, now: Now, out: Out<'_>) {
        let Some(watch) = self.watchers.get(watcher) else {
            return;
        };
        let (Query::Endpoints(query), Some(place)) = (&watch.query, &watch.rest) else {
            return;
        };
        if let Err(refusal) = self.takes_watches() {
            self.watchers.remove(watcher);
            return out.push(Effect::EndWatch { watcher, refusal });
        }
        let page = self.find_endpoints(query, Some(place), &watch.peer, now);
        let (events, next) = shown(page);
        let rest = next.is_some();
        self.watchers.set_rest(watcher, next);
        let effect = Effect::Deliver {
            watcher,
            events,
            rest,
        };
        self.say(effect, out);
    }
}

fn shown(page: Page) -> (Vec<WatchEvent>, Option<Place>) {
    let events = page.found.into_iter().map(|found| WatchEvent::Endpoint {
        found,
        deleted: false,
    });
    (events.collect(), page.next)
}

/// A workload has addresses of the prefixes that its router leased.
fn check_addresses(claim: &Claim, lease: &Lease, member: &Member) -> Result<(), Refusal> {
    let invalid = |value: String, allowed: String| {
        Err(Refusal::Invalid {
            field: "addresses",
            value,
            allowed,
        })
    };
    if claim.addresses.len() > ADDRESSES_MAX {
        return invalid(
            format!("a list of {}", claim.addresses.len()),
            format!("at most {ADDRESSES_MAX} are"),
        );
    }
    let prefixes = || lease.prefixes().filter(|prefix| member.owns(prefix));
    let foreign = claim
        .addresses
        .iter()
        .find(|address| !prefixes().any(|prefix| prefix.contains(*address)));
    let Some(foreign) = foreign else {
        return Ok(());
    };
    let leased: Vec<_> = prefixes().map(|prefix| prefix.to_string()).collect();
    invalid(
        foreign.to_string(),
        format!(
            "addresses inside {}, leased to {}, are",
            leased.join(" and "),
            lease.router
        ),
    )
}
