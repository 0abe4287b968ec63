//! Who speaks for a domain, and in which networks: what one network's document says counts in
//! that network only.

use std::collections::BTreeMap;

use super::api::{Alarm, Effect, Peer};
use super::machine::RegistryMachine;
use crate::document::{Document, Member, Role};
use crate::federation::{Scope, StreamId, Work};
use crate::ids::{DomainName, NetworkUid};
use crate::machine::Outbox;
use crate::time::{Now, Wall};

type Out<'a> = &'a mut Outbox<Effect>;

/// A network says of a domain what a better one denies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    pub counts: NetworkUid,
    pub ignored: NetworkUid,
    pub what: String,
}

/// Where the documents of one registry's networks contradict each other, the best one first.
/// Domains that are revoked do not count.
pub fn contradictions<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Vec<Contradiction> {
    let mut stated = Stated::default();
    for document in documents {
        let members = document.members.values().filter(|member| !member.revoked);
        members.for_each(|member| {
            stated.agrees(member, document);
        });
    }
    stated.contradictions
}

/// Streams that ended for what their domains demanded, ever.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) too_fast: u64,
    pub(super) congested: u64,
}

const TOO_FAST: &str = "more changes than one domain may make";
const CONGESTED: &str = "too much waits for the disk";

/// Which domain is which trust domain, as the best network says that names either.
#[derive(Debug, Default)]
pub(super) struct Stated {
    domains: BTreeMap<DomainName, (String, NetworkUid)>,
    trust_domains: BTreeMap<String, (DomainName, NetworkUid)>,
    pub(super) contradictions: Vec<Contradiction>,
}

impl Stated {
    /// Takes what one more network says of a member, the best network first; false when a
    /// better one says otherwise.
    pub(super) fn agrees(&mut self, member: &Member, document: &Document) -> bool {
        let (domain, trust_domain) = (&member.domain, &member.trust_domain);
        let uid = document.uid;
        let mut deny = |counts: NetworkUid, what: String| {
            self.contradictions.push(Contradiction {
                counts,
                ignored: uid,
                what,
            });
            false
        };
        match (
            self.domains.get(domain),
            self.trust_domains.get(trust_domain),
        ) {
            (Some((known, counts)), _) if known != trust_domain => {
                let what = format!(
                    "domain {domain} is of trust domain {known} in the one and of {trust_domain} in the other"
                );
                deny(*counts, what)
            }
            (_, Some((known, counts))) if known != domain => {
                let what = format!(
                    "trust domain {trust_domain} is that of {known} in the one and of {domain} in the other"
                );
                deny(*counts, what)
            }
            (Some(_), Some(_)) => true,
            _ => {
                let stated = (trust_domain.clone(), uid);
                self.domains.insert(domain.clone(), stated);
                let stated = (domain.clone(), uid);
                self.trust_domains.insert(trust_domain.clone(), stated);
                true
            }
        }
    }
}

impl RegistryMachine {
    /// For which domain an identity speaks as its registry, and in which of the networks that
    /// are common with it.
    pub(super) fn speaker(
        &self,
        peer: &Peer,
        expected: Option<&DomainName>,
        wall: Wall,
    ) -> Option<(DomainName, Scope)> {
        let (mut domain, mut scope) = (expected, Scope::default());
        for (rank, uid) in self.order.iter().enumerate() {
            let network = self.network(*uid, wall).ok();
            let said = network.and_then(|(_, document, _)| {
                let document = Some(document).filter(|_| self.counts_in(peer, *uid))?;
                document.speaker(Role::Registry, &peer.id, wall)
            });
            let said = said.map(|member| &member.domain).filter(|said| {
                **said != self.config.domain
                    && domain.is_none_or(|domain| domain == *said)
                    && self.federation.is_common(said, *uid)
            });
            if let Some(said) = said {
                domain = Some(said);
                scope.push(rank, *uid);
            }
        }
        let domain = domain.filter(|_| !scope.is_empty())?;
        Some((domain.clone(), scope))
    }

    /// Why a domain gets no stream now.
    pub(super) fn turns_away(
        &mut self,
        domain: &DomainName,
        scope: &Scope,
        now: Now,
    ) -> Option<&'static str> {
        if self.is_congested_for_others() {
            self.ended.congested += 1;
            Some(CONGESTED)
        } else if !self.federation.admits(domain, scope, Work::Open, now.mono) {
            self.ended.too_fast += 1;
            Some(TOO_FAST)
        } else {
            None
        }
    }

    /// Whether a domain may make that work; otherwise its stream ends.
    pub(super) fn admits(
        &mut self,
        domain: &DomainName,
        work: Work,
        now: Now,
        out: Out<'_>,
    ) -> bool {
        let scope = self.scope(domain);
        if self.federation.admits(domain, &scope, work, now.mono) {
            return true;
        }
        self.ended.too_fast += 1;
        out.push(Effect::Alarm(Alarm::DomainTooFast {
            domain: domain.clone(),
            limit: self.config.federation.changes.per_second,
        }));
        let stream = self.federation.stream(domain).map(|(stream, _)| stream);
        self.federate(now, out, |federation, events| {
            if let Some(stream) = stream {
                federation.close(stream, TOO_FAST, now.mono, events);
            }
        });
        false
    }

    /// What a stream brings has no room now: its domain begins anew when there is.
    pub(super) fn end_congested(&mut self, stream: StreamId, now: Now, out: Out<'_>) {
        if self.federation.dialled(stream).is_none() {
            // It ended already, and more of it was on its way.
            return;
        }
        self.ended.congested += 1;
        self.federate(now, out, |federation, events| {
            federation.close(stream, CONGESTED, now.mono, events)
        });
    }

    /// Where the stream of a domain speaks; nowhere without one.
    pub(super) fn scope(&self, domain: &DomainName) -> Scope {
        let stream = self.federation.stream(domain);
        stream.map(|(_, scope)| scope.clone()).unwrap_or_default()
    }

    /// Whether a stream may take away what was said in that network.
    pub(super) fn may_displace(&self, scope: &Scope, uid: NetworkUid) -> bool {
        let rank = self.order.iter().position(|of| *of == uid);
        scope.may_displace(rank.unwrap_or(usize::MAX), uid)
    }

    /// Streams whose other ends speak elsewhere since the documents changed are opened anew.
    pub(super) fn rescope(&mut self, now: Now, out: Out<'_>) {
        let federation = &self.federation;
        self.speakers
            .retain(|domain, _| federation.stream(domain).is_some());
        let changed = self.speakers.iter().filter_map(|(domain, peer)| {
            let (stream, scope) = self.federation.stream(domain)?;
            let speaker = self.speaker(peer, Some(domain), now.wall);
            let same = speaker.is_some_and(|(_, now)| now == *scope);
            (!same).then_some(stream)
        });
        let changed: Vec<_> = changed.collect();
        self.federate(now, out, |federation, events| {
            for stream in changed {
                let reason = "the documents grant it something else";
                federation.close(stream, reason, now.mono, events);
            }
        });
    }

    /// Tells the operator what is new.
    pub(super) fn alarm_contradictions(&mut self, found: Vec<Contradiction>, out: Out<'_>) {
        let before = core::mem::take(&mut self.contradictions);
        self.contradictions = found.into_iter().collect();
        for news in self.contradictions.difference(&before).cloned() {
            out.push(Effect::Alarm(Alarm::Contradiction {
                counts: news.counts,
                ignored: news.ignored,
                what: news.what,
            }));
        }
    }
}
