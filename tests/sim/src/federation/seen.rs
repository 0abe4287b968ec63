//! What leaves a registry, against what the director knows: messages to other domains, events
//! to watchers, alarms to the operator.

use std::collections::BTreeSet;

use vl3_core::document::Document;
use vl3_core::federation::SyncMessage;
use vl3_core::ids::NetworkUid;
use vl3_core::registry::{Alarm, Marks, WatchEvent, WatcherId};

use super::cast::domain_name;
use super::checks::number_of;
use super::faults::Fault;
use super::world::{Step, World};
use crate::broken::Broken;

impl World {
    /// What an admin wrote into the version of a network that a node holds.
    pub(super) fn written(&self, node: usize, uid: NetworkUid) -> Option<&Document> {
        let network = self.networks.iter().find(|network| network.uid == uid)?;
        network.written(self.machine(node)?.document(uid)?)
    }

    /// Invariants 4 and 12 where a machine speaks, before a liar changes it: only own endpoints
    /// of a network that both are in, as they were registered.
    pub(super) fn check_sent(&self, node: usize, to: usize, messages: &[SyncMessage]) -> Step {
        let mut common = None;
        for message in messages {
            let SyncMessage::Upsert { uid, endpoint, .. } = message else {
                continue;
            };
            let common = common.get_or_insert_with(|| self.common(node, to));
            let marks = Marks::of(endpoint);
            let marked =
                marks.is_some_and(|marks| marks.uid == *uid && marks.domain == domain_name(node));
            if !marked || !common.contains(uid) {
                let what = format!("d{node} tells d{to} of {} in {uid}", endpoint.name);
                return Err(Broken::new(4, what));
            }
            if !self.truth.was_said(node, endpoint) {
                let what = format!("d{node} tells d{to} {endpoint:?}, which nobody registered");
                return Err(Broken::new(12, what));
            }
        }
        Ok(())
    }

    /// Invariant 4 where somebody of another domain watches.
    pub(super) fn check_told(&self, watcher: WatcherId, events: &[WatchEvent]) -> Step {
        let watch = self.watches.get(&watcher);
        let Some(watch) = watch.filter(|watch| watch.of != watch.node) else {
            return Ok(());
        };
        let common = self.common(watch.node, watch.of);
        for event in events {
            let WatchEvent::Endpoint { found, deleted } = event else {
                continue;
            };
            let endpoint = found.shown.endpoint();
            let uid = Marks::of(&endpoint).map(|marks| marks.uid);
            if !deleted && uid.is_none_or(|uid| !common.contains(&uid)) {
                let (node, of, name) = (watch.node, watch.of, &endpoint.name);
                let what = format!("a watch at d{node} shows {name} to d{of}");
                return Err(Broken::new(4, what));
            }
        }
        Ok(())
    }

    /// An alarm calls an operator: only for what was injected.
    pub(super) fn alarmed(&mut self, node: usize, alarm: &Alarm) -> Step {
        self.note(node, format_args!("alarm: {alarm}"));
        let is_due = match alarm {
            Alarm::DocumentConflict { .. } => self.two_contents,
            // Also of who has not heard of a version that it is no member by.
            Alarm::NotBelieved { domain, .. } => {
                let changed = [Fault::MemberAdded, Fault::MemberRevoked];
                self.liars.contains(&number_of(domain))
                    || changed.iter().any(|fault| self.tally.of(*fault).0 > 0)
            }
            Alarm::DomainLimited { domain, .. } | Alarm::DomainTooFast { domain, .. } => {
                self.liars.contains(&number_of(domain))
            }
            Alarm::JournalFailed { .. } => self.nodes[node].disk_failed,
            Alarm::ExclusionOverLease { .. } | Alarm::Contradiction { .. } => false,
        };
        if is_due {
            return Ok(());
        }
        let what = format!("d{node} raises an alarm for nothing: {alarm}");
        Err(Broken::new(12, what))
    }

    /// At the end: who watches the routers of another domain sees those that want to be there.
    pub(super) fn check_watched(&self, node: usize) -> Step {
        let domain = (node + 1) % self.nodes.len();
        let network = &self.networks[0];
        if !network.has(node) || !network.has(domain) {
            return Ok(());
        }
        let service = format!("{}@{}", network.name, domain_name(domain));
        let clients = self.clients.iter();
        let wanted: BTreeSet<_> = clients
            .filter(|client| client.domain == domain && client.network == Some(0) && client.wants)
            .map(|client| client.name.as_str())
            .collect();
        for watch in self.watches.values() {
            if watch.node != node
                || watch.of != node
                || watch.has_rest
                || watch.query.services != [&*service]
            {
                continue;
            }
            let seen = watch.seen.iter().flatten();
            let seen: BTreeSet<_> = seen.map(|(name, _)| name.as_str()).collect();
            let seen: BTreeSet<_> = seen
                .into_iter()
                .map(|name| name.split('@').next().unwrap_or(name))
                .collect();
            if seen != wanted {
                let what = format!("a watch at d{node} of {service} has {seen:?} of {wanted:?}");
                return Err(Broken::new(7, what));
            }
        }
        Ok(())
    }
}
