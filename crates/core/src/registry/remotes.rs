//! What other domains' registries said: per domain, counted in entries and bytes.

use core::ops::Bound;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::index::{ByService, Tally, beyond};
use super::packed::Packed;
use super::record::Record;
use crate::deadlines::Deadlines;
use crate::federation::{self, Scope};
use crate::ids::{DomainName, NetworkUid};
use crate::time::Mono;

/// What an entry costs beside its packed endpoint: its place in the maps, its name there.
pub(super) const ENTRY_BYTES: usize = 192;

#[derive(Debug, Default)]
pub(super) struct Remotes {
    domains: BTreeMap<Arc<DomainName>, Domain>,
    /// The next deadline of each domain that has one.
    deadlines: Deadlines<DomainName>,
    count: usize,
    bytes: usize,
    /// What was not taken for want of room, by domain.
    refused: BTreeMap<DomainName, Refused>,
}

#[derive(Debug, Default)]
struct Domain {
    /// Under their own names there.
    entries: BTreeMap<Arc<str>, Remote>,
    by_service: ByService,
    deadlines: Deadlines<Arc<str>>,
    uids: Tally<NetworkUid>,
    bytes: usize,
}

/// An endpoint of another domain.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) uid: NetworkUid,
    pub(super) packed: Packed,
    /// When it goes; None while its domain's stream vouches for it.
    pub(super) deadline: Option<Mono>,
}

pub(super) type OfDomain<'a> = (&'a Arc<DomainName>, &'a Remote);

/// A domain, and a name there.
pub(super) type RemotePlace<'a> = (&'a DomainName, &'a str);

#[derive(Debug, Default)]
struct Refused {
    count: u64,
    /// Told to the operator, once until a whole snapshot fits again.
    told: bool,
    /// Since the last snapshot began.
    since: bool,
}

/// The limit that an entry would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limited {
    pub(super) what: &'static str,
    pub(super) limit: usize,
}

/// How much one domain takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteSize {
    pub endpoints: usize,
    /// What they cost in memory.
    pub bytes: usize,
    /// Endpoints not taken for want of room, ever.
    pub refused: u64,
}

impl Remote {
    fn cost(&self) -> usize {
        cost(&self.packed)
    }
}

fn cost(packed: &Packed) -> usize {
    packed.len() + ENTRY_BYTES
}

impl Remotes {
    pub(super) fn insert(
        &mut self,
        domain: &DomainName,
        uid: NetworkUid,
        packed: Packed,
        deadline: Mono,
    ) {
        self.remove(domain, packed.name());
        let entry = Remote {
            uid,
            packed,
            deadline: None,
        };
        if !self.domains.contains_key(domain) {
            self.domains
                .insert(Arc::new(domain.clone()), Domain::default());
        }
        let Some(of) = self.domains.get_mut(domain) else {
            return;
        };
        let name: Arc<str> = entry.packed.name().into();
        of.by_service.insert(&name, entry.packed.services());
        of.uids.add(&uid);
        of.bytes += entry.cost();
        self.bytes += entry.cost();
        self.count += 1;
        of.entries.insert(name.clone(), entry);
        self.set_deadline(domain, &name, Some(deadline));
    }

    pub(super) fn remove(&mut self, domain: &DomainName, name: &str) {
        self.set_deadline(domain, name, None);
        let Some(of) = self.domains.get_mut(domain) else {
            return;
        };
        if let Some(entry) = of.entries.remove(name) {
            of.by_service.remove(name, entry.packed.services());
            of.uids.subtract(&entry.uid);
            of.bytes -= entry.cost();
            self.bytes -= entry.cost();
            self.count -= 1;
        }
        if of.entries.is_empty() {
            self.domains.remove(domain);
        }
    }

    fn set_deadline(&mut self, domain: &DomainName, name: &str, deadline: Option<Mono>) {
        let Some(of) = self.domains.get_mut(domain) else {
            return;
        };
        let Some((name, _)) = of.entries.get_key_value(name) else {
            return;
        };
        let (name, first) = (name.clone(), of.deadlines.next());
        if let Some(entry) = of.entries.get_mut(&name) {
            of.deadlines.set(&name, entry.deadline, deadline);
            entry.deadline = deadline;
        }
        self.deadlines.set(domain, first, of.deadlines.next());
    }

    /// The domain's stream vouches for this entry.
    pub(super) fn vouch(&mut self, domain: &DomainName, name: &str) {
        self.set_deadline(domain, name, None);
    }

    /// The domain's stream is lost: what it vouched for goes at `deadline`.
    pub(super) fn stale(&mut self, domain: &DomainName, deadline: Mono) {
        let Some(of) = self.domains.get_mut(domain) else {
            return;
        };
        let first = of.deadlines.next();
        for (name, entry) in &mut of.entries {
            if entry.deadline.is_none() {
                of.deadlines.set(name, None, Some(deadline));
                entry.deadline = Some(deadline);
            }
        }
        self.deadlines.set(domain, first, of.deadlines.next());
    }

    /// What nobody vouches for goes at `deadline`.
    pub(super) fn postpone(&mut self, deadline: Mono) {
        for (domain, of) in &mut self.domains {
            let first = of.deadlines.next();
            for (name, entry) in &mut of.entries {
                if entry.deadline.is_some() {
                    of.deadlines.set(name, entry.deadline, Some(deadline));
                    entry.deadline = Some(deadline);
                }
            }
            self.deadlines.set(domain, first, of.deadlines.next());
        }
    }

    pub(super) fn get(&self, domain: &DomainName, name: &str) -> Option<&Remote> {
        self.domains.get(domain)?.entries.get(name)
    }

    /// By domain, then by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = OfDomain<'_>> + '_ {
        self.after(None)
    }

    /// Those after a place.
    pub(super) fn after<'a>(
        &'a self,
        after: Option<RemotePlace<'a>>,
    ) -> impl Iterator<Item = OfDomain<'a>> + 'a {
        let domains = self.domains_from(after);
        domains.flat_map(|(domain, of, after)| {
            let range = (beyond(after), Bound::Unbounded);
            let entries = of.entries.range::<str, _>(range);
            entries.map(move |(_, entry)| (domain, entry))
        })
    }

    /// Those that offer a service there.
    pub(super) fn offering<'a>(
        &'a self,
        service: &'a str,
        after: Option<RemotePlace<'a>>,
    ) -> impl Iterator<Item = OfDomain<'a>> + 'a {
        let domains = self.domains_from(after);
        domains.flat_map(move |(domain, of, after)| of.offering(domain, service, after))
    }

    /// Those of one domain that offer a service there.
    pub(super) fn offering_in<'a>(
        &'a self,
        domain: &DomainName,
        service: &str,
        after: Option<RemotePlace<'_>>,
    ) -> impl Iterator<Item = OfDomain<'a>> + use<'a> {
        let domain = self.domains.get_key_value(domain);
        let offering = domain.map(|(domain, of)| {
            let after = after.map(|(_, name)| name);
            of.offering(domain, service, after)
        });
        offering.into_iter().flatten()
    }

    /// The domains from a place on, each with the name after which it begins.
    fn domains_from<'a>(
        &'a self,
        after: Option<RemotePlace<'a>>,
    ) -> impl Iterator<Item = (&'a Arc<DomainName>, &'a Domain, Option<&'a str>)> + 'a {
        let from = after.map_or(Bound::Unbounded, |(domain, _)| Bound::Included(domain));
        let domains = self
            .domains
            .range::<DomainName, _>((from, Bound::Unbounded));
        domains.map(move |(domain, of)| {
            let after = after.filter(|(at, _)| **domain == **at);
            (domain, of, after.map(|(_, name)| name))
        })
    }

    pub(super) fn named(&self, domain: &DomainName, name: &str) -> Option<OfDomain<'_>> {
        let (domain, of) = self.domains.get_key_value(domain)?;
        Some((domain, of.entries.get(name)?))
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn size(&self, domain: &DomainName) -> RemoteSize {
        let of = self.domains.get(domain);
        RemoteSize {
            endpoints: of.map_or(0, |of| of.entries.len()),
            bytes: of.map_or(0, |of| of.bytes),
            refused: self.refused.get(domain).map_or(0, |refused| refused.count),
        }
    }

    /// Endpoints not taken for want of room, ever.
    pub(super) fn refused(&self) -> u64 {
        self.refused.values().map(|refused| refused.count).sum()
    }

    /// Whether there is room for an entry in place of what the domain has under that name.
    pub(super) fn room(
        &self,
        domain: &DomainName,
        packed: &Packed,
        limits: &federation::Config,
    ) -> Result<(), Limited> {
        let size = self.size(domain);
        let known = self.get(domain, packed.name());
        let freed = known.map_or(0, Remote::cost);
        let more = cost(packed);
        let full = |what, limit| Err(Limited { what, limit });
        if known.is_none() && size.endpoints >= limits.endpoints_max {
            full("endpoints", limits.endpoints_max)
        } else if size.bytes - freed + more > limits.domain_bytes_max {
            full("bytes", limits.domain_bytes_max)
        } else if self.bytes - freed + more > limits.total_bytes_max {
            full("bytes of all domains", limits.total_bytes_max)
        } else {
            Ok(())
        }
    }

    /// The domain's entry, other than this one and of a network that is `gives_way`, that ends
    /// first because nobody vouches for it.
    pub(super) fn stalest(
        &self,
        domain: &DomainName,
        but: &str,
        gives_way: impl Fn(NetworkUid) -> bool,
    ) -> Option<Arc<str>> {
        let of = self.domains.get(domain)?;
        let mut ending = of.deadlines.keys().filter(|name| {
            let entry = of.entries.get(*name);
            entry.is_some_and(|entry| gives_way(entry.uid))
        });
        ending.find(|name| &***name != but).cloned()
    }

    /// Counts an endpoint that was not taken; true when the operator is not told yet.
    pub(super) fn refuse(&mut self, domain: &DomainName) -> bool {
        let refused = self.refused.entry(domain.clone()).or_default();
        refused.count += 1;
        refused.since = true;
        !core::mem::replace(&mut refused.told, true)
    }

    /// The domain's snapshot ended; one without a refusal ends the alarm.
    pub(super) fn synced(&mut self, domain: &DomainName) {
        if let Some(refused) = self.refused.get_mut(domain) {
            refused.told &= refused.since;
            refused.since = false;
        }
    }

    /// The domain's entries for which its stream does not vouch, in the networks where it speaks.
    pub(super) fn unvouched(&self, domain: &DomainName, scope: &Scope) -> Vec<Record> {
        let of = self.domains.get(domain).into_iter();
        let unvouched = of.flat_map(|of| {
            of.deadlines.keys().filter(|name| {
                let entry = of.entries.get(*name);
                entry.is_some_and(|entry| scope.contains(entry.uid))
            })
        });
        unvouched.map(|name| removed(domain, name)).collect()
    }

    /// Entries of domains that have their network no longer in common with us.
    pub(super) fn not_common(
        &self,
        common: impl Fn(&DomainName, &NetworkUid) -> bool,
    ) -> Vec<Record> {
        let mut gone = Vec::new();
        for (domain, of) in &self.domains {
            if of.uids.keys().all(|uid| common(domain, uid)) {
                continue;
            }
            let entries = of.entries.iter();
            let left = entries.filter(|(_, entry)| !common(domain, &entry.uid));
            gone.extend(left.map(|(name, _)| removed(domain, name)));
        }
        gone
    }

    pub(super) fn expired(&self, now: Mono) -> impl Iterator<Item = Record> + '_ {
        let domains = self.deadlines.due(now);
        domains.flat_map(move |domain| {
            let of = self.domains.get(domain).into_iter();
            let due = of.flat_map(move |of| of.deadlines.due(now));
            due.map(move |name| removed(domain, name))
        })
    }

    pub(super) fn next_expiry(&self) -> Option<Mono> {
        self.deadlines.next()
    }
}

impl Domain {
    fn offering<'a>(
        &'a self,
        domain: &'a Arc<DomainName>,
        service: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = OfDomain<'a>> + use<'a> {
        let names = self.by_service.names(service, after);
        let entries = names.filter_map(|name| self.entries.get(name));
        entries.map(move |entry| (domain, entry))
    }
}

fn removed(domain: &DomainName, name: &str) -> Record {
    Record::RemoteRemoved {
        domain: domain.clone(),
        name: name.to_owned(),
    }
}
