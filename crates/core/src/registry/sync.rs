//! What documents and other registries' words mean for this one.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ipnet::IpNet;

use super::api::{Alarm, Effect, Peer, Refusal, WatchEvent};
use super::machine::RegistryMachine;
use super::object::Endpoint;
use super::packed::Packed;
use super::record::Record;
use super::remotes::Limited;
use super::speakers::Stated;
use crate::document::{Chain, Offer, Role};
use crate::federation::{Event, Federation, Membership, StreamId, SyncMessage, Work, believe};
use crate::ids::{DomainName, NetworkUid, RouterName};
use crate::machine::Outbox;
use crate::time::{Now, Wall};

type Out<'a> = &'a mut Outbox<Effect>;
type Offered = (NetworkUid, Arc<Endpoint>, Duration);

impl RegistryMachine {
    /// A stream is believed to be of the member whose registry its identity is.
    pub(super) fn sync_opened(&mut self, stream: StreamId, peer: Peer, now: Now, out: Out<'_>) {
        let expected = self.federation.dialled(stream).cloned();
        if matches!(stream, StreamId::Dialled(_)) && expected.is_none() {
            // Given up while it was being dialled.
            let reason = "nobody waits for it any more".to_owned();
            return out.push(Effect::CloseStream { stream, reason });
        }
        let speaker = self.speaker(&peer, expected.as_ref(), now.wall);
        let turned_away = match &speaker {
            Some((domain, scope)) => self.turns_away(domain, scope, now).map(str::to_owned),
            None => Some(format!(
                "{} is not the registry of a member of a common network",
                peer.id
            )),
        };
        let (Some((domain, scope)), None) = (speaker, &turned_away) else {
            let reason = turned_away.unwrap_or_default();
            let said = reason.clone();
            out.push(Effect::CloseStream { stream, reason });
            return self.federate(now, out, |federation, events| {
                federation.closed(stream, &said, now.mono, events)
            });
        };
        self.federate(now, out, |federation, events| {
            federation.opened(stream, &domain, scope, now.mono, events)
        });
        let standing = self.federation.stream(&domain);
        if standing.is_some_and(|(standing, _)| standing == stream) {
            self.speakers.insert(domain, peer);
        }
    }

    /// Calls the child and carries out what comes of it.
    pub(super) fn federate(
        &mut self,
        now: Now,
        out: Out<'_>,
        call: impl FnOnce(&mut Federation, &mut Outbox<Event>),
    ) {
        if self.is_following() {
            // The active replica speaks for the domain.
            return;
        }
        let mut events = Outbox::default();
        call(&mut self.federation, &mut events);
        let mut events: VecDeque<_> = events.take().into();
        while let Some(event) = events.pop_front() {
            match event {
                Event::Dial {
                    stream,
                    domain,
                    contacts,
                } => out.push(Effect::Dial {
                    stream,
                    domain,
                    contacts,
                }),
                Event::Send { stream, messages } => {
                    self.say(Effect::Send { stream, messages }, out)
                }
                Event::Close { stream, reason } => out.push(Effect::CloseStream { stream, reason }),
                Event::Greet { domain } => {
                    let (documents, snapshot) = self.offer_to(&domain);
                    let mut more = Outbox::default();
                    self.federation
                        .greet(&domain, documents, snapshot, &mut more);
                    events.extend(more.take());
                }
                Event::Opened { domain, uids } => {
                    let missed = self.missed_by(&domain, &uids, now.wall);
                    self.inform(&domain, missed, out);
                }
                Event::Upsert {
                    domain,
                    uid,
                    endpoint,
                } => self.believe_endpoint(domain, uid, endpoint, now, out),
                Event::Remove { domain, uid, name } => {
                    let held = self.objects.remotes.get(&domain, &name);
                    let held = held.is_some_and(|held| held.uid == uid);
                    let work = if held { Work::Change } else { Work::Repeat };
                    if self.admits(&domain, work, now, out) && held {
                        self.forget(&domain, &name, now, out);
                    }
                }
                Event::Synced { domain } => {
                    let scope = self.scope(&domain);
                    let gone = self.objects.remotes.unvouched(&domain, &scope);
                    #[cfg(feature = "plants")]
                    let gone = if crate::plants::Plant::Snapshot.is_chosen() {
                        Vec::new()
                    } else {
                        gone
                    };
                    self.objects.remotes.synced(&domain);
                    self.commit(gone, now, out);
                }
                Event::Lost { domain } => {
                    let deadline = now.mono + self.config.federation.stale_grace;
                    self.objects.remotes.stale(&domain, deadline);
                }
                Event::Offered { domain, chain } => self.offered(&domain, chain, now, out),
            }
        }
    }

    /// Documents of the networks in which the other end speaks, and the own endpoints in them.
    fn offer_to(&self, domain: &DomainName) -> (Vec<Chain>, Vec<Offered>) {
        let scope = self.scope(domain);
        let documents = scope
            .uids()
            .filter_map(|uid| self.document(uid).cloned())
            .collect();
        let lifetime = self.config.endpoint_lifetime;
        let offered = self.objects.owns().filter_map(|own| {
            let uid = own.uid?;
            scope
                .contains(uid)
                .then(|| (uid, own.endpoint.clone(), lifetime))
        });
        (documents, offered.collect())
    }

    /// Documents of networks that the domain believes to be common and that are not: it was
    /// away when the version came that ended its membership, or ours. Only for whom the
    /// document lists, and who is known here by the same roots.
    fn missed_by(
        &self,
        domain: &DomainName,
        uids: &BTreeSet<NetworkUid>,
        wall: Wall,
    ) -> Vec<Chain> {
        let Some(speaker) = self.speakers.get(domain) else {
            return Vec::new();
        };
        let scope = self.scope(domain);
        let known: Vec<_> = scope
            .uids()
            .filter_map(|uid| self.document(uid)?.document().member(domain, wall))
            .collect();
        let may_read = |chain: &&Chain| {
            let member = chain.document().members.get(domain);
            member.is_some_and(|member| {
                member.grants(Role::Registry, &speaker.id)
                    && known.iter().any(|known| known.bundle == member.bundle)
            })
        };
        let missed = uids
            .iter()
            .filter(|uid| !self.federation.is_common(domain, **uid));
        let missed = missed.filter_map(|uid| self.document(*uid));
        missed.filter(may_read).cloned().collect()
    }

    /// At once: what an admin signed need not be on our disk before others have it, and the
    /// stream may end with it.
    fn inform(&self, domain: &DomainName, documents: Vec<Chain>, out: Out<'_>) {
        let messages: Vec<_> = documents.into_iter().map(SyncMessage::Document).collect();
        if let Some((stream, _)) = self.federation.stream(domain)
            && !messages.is_empty()
        {
            out.push(Effect::Send { stream, messages });
        }
    }

    /// With whom a version ends what was common hears it as the last word on the stream.
    fn take_leave(&self, chain: &Chain, wall: Wall, out: Out<'_>) {
        let document = chain.document();
        let live = |domain| document.member(domain, wall).is_some();
        let stays = live(&self.config.domain);
        for domain in self.federation.speaking_in(document.uid) {
            if !stays || !live(domain) {
                self.inform(domain, vec![chain.clone()], out);
            }
        }
    }

    fn believe_endpoint(
        &mut self,
        domain: DomainName,
        uid: NetworkUid,
        endpoint: Arc<Endpoint>,
        now: Now,
        out: Out<'_>,
    ) {
        let judged = self.judge(&domain, uid, &endpoint, now);
        let packed = Packed::new(&endpoint);
        let known = self.objects.remotes.get(&domain, &endpoint.name);
        let known = known.is_some_and(|known| known.packed == packed && known.uid == uid);
        let work = if known && judged.is_ok() {
            Work::Repeat
        } else {
            Work::Change
        };
        if !self.admits(&domain, work, now, out) {
            return;
        }
        if let Err(reason) = judged {
            let name = endpoint.name.clone();
            self.forget(&domain, &name, now, out);
            let name = name.chars().take(64).collect();
            return out.push(Effect::Alarm(Alarm::NotBelieved {
                domain,
                name,
                reason,
            }));
        }
        if let Err(full) = self.make_room(&domain, &packed, now, out) {
            self.forget(&domain, &endpoint.name, now, out);
            if self.objects.remotes.refuse(&domain) {
                out.push(Effect::Alarm(Alarm::DomainLimited {
                    domain,
                    what: full.what,
                    limit: full.limit,
                }));
            }
            return;
        }
        if !known {
            let record = Record::Remote {
                uid,
                domain: domain.clone(),
                endpoint: packed,
            };
            self.commit(vec![record], now, out);
        }
        self.objects.remotes.vouch(&domain, &endpoint.name);
    }

    /// Whether the domain's stream may say this, and instead of what it replaces.
    fn judge(
        &self,
        domain: &DomainName,
        uid: NetworkUid,
        endpoint: &Endpoint,
        now: Now,
    ) -> Result<(), String> {
        let scope = self.scope(domain);
        let Ok((_, document, _)) = self.network(uid, now.wall) else {
            return Err(format!("network {uid} is not common"));
        };
        let member = document.member(domain, now.wall);
        let Some(member) = member.filter(|_| scope.contains(uid)) else {
            return Err(format!(
                "its registry does not speak for {domain} in network {}",
                document.name
            ));
        };
        let held = self.objects.remotes.get(domain, &endpoint.name);
        if let Some(held) = held.filter(|held| !self.may_displace(&scope, held.uid)) {
            return Err(format!("network {} has an endpoint of that name", held.uid));
        }
        let bytes_max = self.config.federation.endpoint_bytes_max;
        believe(endpoint, uid, document, member, bytes_max)
            .map_err(|disbelief| disbelief.to_string())
    }

    /// In a domain at its limit, what its stream vouches for takes the place of what it does
    /// not: most of a snapshot may have other names than the one before.
    fn make_room(
        &mut self,
        domain: &DomainName,
        packed: &Packed,
        now: Now,
        out: Out<'_>,
    ) -> Result<(), Limited> {
        let scope = self.scope(domain);
        loop {
            let remotes = &self.objects.remotes;
            let Err(full) = remotes.room(domain, packed, &self.config.federation) else {
                return Ok(());
            };
            let stalest =
                remotes.stalest(domain, packed.name(), |uid| self.may_displace(&scope, uid));
            let Some(name) = stalest else {
                return Err(full);
            };
            self.forget(domain, &name, now, out);
        }
    }

    /// What the domain says of this name now is not taken: what it said before ends, unless it
    /// stands in a network in which the domain's stream has no say.
    fn forget(&mut self, domain: &DomainName, name: &str, now: Now, out: Out<'_>) {
        let (held, scope) = (self.objects.remotes.get(domain, name), self.scope(domain));
        if held.is_some_and(|held| self.may_displace(&scope, held.uid)) {
            let record = Record::RemoteRemoved {
                domain: domain.clone(),
                name: name.to_owned(),
            };
            self.commit(vec![record], now, out);
        }
    }

    fn offered(&mut self, domain: &DomainName, chain: Chain, now: Now, out: Out<'_>) {
        let uid = chain.uid();
        let Some(network) = self.networks.get(&uid) else {
            return;
        };
        match network.store.decide(&chain) {
            Offer::Newer(chain) => self.commit(vec![Record::Document { chain }], now, out),
            Offer::Conflict { version } => {
                let from = format!("the registry of {domain}");
                out.push(Effect::Alarm(Alarm::DocumentConflict {
                    uid,
                    version,
                    from,
                }));
            }
            Offer::Same | Offer::Older { .. } | Offer::OtherNetwork { .. } => {}
        }
    }

    /// A newer document holds: everything that rests on it is looked at again.
    pub(super) fn document_changed(&mut self, chain: &Chain, now: Now, out: Out<'_>) {
        let uid = chain.uid();
        self.say(
            Effect::DocumentChanged {
                chain: chain.clone(),
            },
            out,
        );
        let (mut told, mut ended) = (Vec::new(), Vec::new());
        for (id, watcher) in self.watchers.of_document(uid) {
            match self.may_read_document(uid, &watcher.peer, now.wall) {
                Ok(()) => told.push(id),
                Err(refusal) => ended.push((id, refusal)),
            }
        }
        for watcher in told {
            let events = vec![WatchEvent::Document(chain.clone())];
            self.deliver(watcher, events, out);
        }
        for (watcher, refusal) in ended {
            self.end_watch(watcher, refusal, out);
        }
        self.alarm_exclusions(chain, out);
        self.take_leave(chain, now.wall, out);
        self.reconcile(now, out);
        self.federate(now, out, |federation, events| {
            federation.document(chain, events);
            // The version may vouch for whom the one before did not.
            for stream in federation.streams_without(uid) {
                federation.close(stream, "a document changed", now.mono, events);
            }
        });
    }

    pub(super) fn end_watch(
        &mut self,
        watcher: super::api::WatcherId,
        refusal: Refusal,
        out: Out<'_>,
    ) {
        self.watchers.remove(watcher);
        self.say(Effect::EndWatch { watcher, refusal }, out);
    }

    fn alarm_exclusions(&self, chain: &Chain, out: Out<'_>) {
        for (exclusion, range, router) in self.excluded_leases(chain) {
            out.push(Effect::Alarm(Alarm::ExclusionOverLease {
                uid: chain.uid(),
                exclusion,
                range,
                router,
            }));
        }
    }

    /// What a document excludes although it is leased here: it stays leased.
    pub(super) fn excluded_leases(&self, chain: &Chain) -> Vec<(IpNet, IpNet, RouterName)> {
        let mut found = Vec::new();
        let Some(network) = self.networks.get(&chain.uid()) else {
            return found;
        };
        for exclusion in &chain.document().policy.exclusions {
            for lease in network.allocator.leases() {
                let ranges = lease
                    .prefixes()
                    .filter(|range| exclusion.contains(range) || range.contains(exclusion));
                found.extend(ranges.map(|range| (*exclusion, range, lease.router.clone())));
            }
        }
        found
    }

    /// Brings streams and remote entries in line with who is a live member where.
    pub(super) fn reconcile(&mut self, now: Now, out: Out<'_>) {
        let mut members: BTreeMap<DomainName, Membership> = BTreeMap::new();
        let mut dials_only = false;
        let mut ends = Vec::new();
        let mut live = BTreeSet::new();
        let mut stated = Stated::default();
        for network in self.order.iter().filter_map(|uid| self.networks.get(uid)) {
            let document = network.store.document();
            let uid = document.uid;
            ends.extend(
                document
                    .live_members(now.wall)
                    .filter_map(|member| member.not_after),
            );
            live.extend(
                document
                    .live_members(now.wall)
                    .map(|member| (uid, member.domain.clone())),
            );
            let Some(own) = document.member(&self.config.domain, now.wall) else {
                continue;
            };
            dials_only |= own.dials_only;
            for member in document.live_members(now.wall) {
                if !stated.agrees(member, document) {
                    continue;
                }
                let membership = members.entry(member.domain.clone()).or_default();
                membership.uids.insert(uid);
                membership.dials_only |= member.dials_only;
                for contact in &member.contacts {
                    if !membership.contacts.contains(contact) {
                        membership.contacts.push(contact.clone());
                    }
                }
            }
        }
        let ended: BTreeSet<_> = self.live.difference(&live).map(|(uid, _)| *uid).collect();
        self.live = live;
        for uid in ended {
            // Also where it ended by time alone: its certificates count no more.
            if let Some(chain) = self.document(uid).cloned() {
                self.say(Effect::DocumentChanged { chain }, out);
            }
        }
        // A wall-clock end becomes a remaining time; a clock that stepped is looked at again.
        let next = ends.into_iter().min();
        self.membership_check = next.map(|end| {
            now.mono
                + end
                    .remaining(now.wall)
                    .clamp(Duration::from_secs(1), Duration::from_secs(3600))
        });
        let gone = self.objects.remotes.not_common(|domain, uid| {
            let common = members.get(domain);
            common.is_some_and(|common| common.uids.contains(uid))
        });
        self.commit(gone, now, out);
        self.federate(now, out, |federation, events| {
            federation.reconcile(dials_only, members, now.mono, events)
        });
        self.rescope(now, out);
        self.alarm_contradictions(stated.contradictions, out);
        self.end_watches_of_former_members(now.wall, out);
    }

    /// What another domain's watch showed before, it would go on to show: nothing is deleted.
    /// Opened again it shows what its domain may see now.
    fn end_watches_of_former_members(&mut self, wall: Wall, out: Out<'_>) {
        let others = self.watchers.of_others();
        let ended: Vec<_> = others
            .filter(|(_, watcher)| self.shown_to(&watcher.peer, wall) != watcher.sees)
            .map(|(id, _)| id)
            .collect();
        for watcher in ended {
            let reason = "the networks that the domain of the watcher has in common with this one are others now";
            let refusal = Refusal::Unavailable {
                reason: reason.to_owned(),
            };
            self.end_watch(watcher, refusal, out);
        }
    }
}
