//! A new view: what of the stored answers it makes wrong (R3.9, R5.6), and whether new upstreams
//! lead back to us (R4.3).

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Resolver, ResolverEffect};
use crate::ids::WorkloadName;
use crate::machine::{Outbox, Ticket};
use crate::names::overlay::LocalName;
use crate::names::resolution::Query;
use crate::names::{Flags, Name, Network, Question, RecordType, Upstream, UpstreamId, View};
use crate::time::{Mono, Now};

/// A probe that comes back later than this is not recognised.
const LOOP_PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Probes at one time.
const LOOP_PROBES_MAX: usize = 256;
/// Where names of probes lie that must not lie below a suffix: nobody's, yet not special.
const LOOP_PROBE_ZONE: &str = "vl3-loop-probe.arpa";

/// A random name on its way through one upstream.
#[derive(Debug)]
pub(super) struct LoopProbe {
    name: Name,
    upstream: UpstreamId,
    ticket: Option<Ticket>,
    pub(super) until: Mono,
}

impl Resolver {
    pub(super) fn follow(&mut self, view: Arc<View>, now: Now, out: &mut Outbox<ResolverEffect>) {
        let before = self.view.replace(Arc::clone(&view));
        self.view_number = self.view_number.wrapping_add(1);
        self.epoch += 1;
        self.has_leases = view.network().is_some_and(|network| {
            let mut names = network.state.names.values();
            names.any(|local| local.lease_until.is_some())
        });
        self.health.follow(view.upstreams(), &mut self.probes);
        let mut new: Vec<Arc<Upstream>> = Vec::new();
        let known: BTreeMap<&UpstreamId, &Arc<Upstream>> = before
            .iter()
            .flat_map(|before| before.upstreams())
            .map(|upstream| (&upstream.id, upstream))
            .collect();
        for upstream in view.upstreams() {
            if known
                .get(&upstream.id)
                .is_none_or(|known| *known != upstream)
            {
                new.push(Arc::clone(upstream));
            }
        }
        if let Some(before) = &before {
            self.drop_what_changed(before, &view, &new);
        }
        for upstream in new.iter().filter(|upstream| upstream.marks_loops()) {
            self.probe_loop(&upstream.id, now, out);
        }
    }

    /// R3.9, R5.6: nothing else is flushed.
    fn drop_what_changed(&mut self, before: &View, view: &View, new: &[Arc<Upstream>]) {
        if !before.has_same_policies(view) {
            self.cache.clear();
            return;
        }
        let sources: BTreeSet<u32> = view.sources().collect();
        let gone: BTreeSet<u32> = before
            .sources()
            .filter(|source| !sources.contains(source))
            .collect();
        // One that was changed counts as gone, and takes part in names it had no part in before.
        let changed: BTreeSet<&UpstreamId> = new
            .iter()
            .filter(|upstream| upstream.owner.is_none())
            .map(|upstream| &upstream.id)
            .collect();
        let is_changed = |name: &Name| {
            let now_for = |view: &View| {
                view.configured_for(name).is_some_and(|(_, list)| {
                    list.iter().any(|upstream| changed.contains(&upstream.id))
                })
            };
            now_for(view) || now_for(before)
        };
        if !gone.is_empty() || !changed.is_empty() {
            self.cache.remove_where(|name, sources| {
                sources.iter().any(|source| gone.contains(source))
                    || (!changed.is_empty() && is_changed(name))
            });
        }
        match (before.network(), view.network()) {
            (Some(before), Some(network)) => self.drop_names(before, network),
            (Some(network), None) | (None, Some(network)) => {
                let network = network.zone().clone();
                self.cache
                    .remove_where(|name, _| name.is_at_or_below(&network));
            }
            (None, None) => {}
        }
    }

    fn drop_names(&mut self, before: &Network, network: &Network) {
        if before.document.version != network.document.version || before.zone != network.zone {
            // Who may say what is another matter from here on.
            let zones = [before.zone.clone(), network.zone.clone()];
            self.cache.remove_where(|name, _| {
                zones.iter().any(|zone| name.is_at_or_below(zone))
                    || name.reverse_prefix().is_some()
            });
            return;
        }
        for (name, local) in changed_names(&before.state.names, &network.state.names) {
            let shared = network.zone.child(name.as_str());
            let canonical = network.canonical(name, network.domain());
            for name in [shared, canonical].into_iter().flatten() {
                self.cache.remove_name(&name);
            }
            for address in &local.addresses {
                self.cache.remove_name(&Name::reverse_of(*address));
            }
        }
    }

    /// R4.3: a name that nobody else asks for, through this upstream.
    pub(super) fn probe_loop(
        &mut self,
        id: &UpstreamId,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
    ) {
        let upstream = self
            .view
            .as_ref()
            .and_then(|view| view.upstreams().find(|upstream| upstream.id == *id))
            .cloned();
        let Some(upstream) = upstream.filter(|upstream| upstream.marks_loops()) else {
            return;
        };
        let suffix = upstream.suffixes.first().cloned();
        let suffix = suffix
            .filter(|suffix| !suffix.is_root())
            .or_else(|| Name::parse(LOOP_PROBE_ZONE).ok());
        let label = format!("{:016x}", self.rng.next_u64());
        let name = suffix.and_then(|suffix| suffix.child(&label).ok());
        let server = upstream.servers.first().copied();
        let (Some(name), Some(server)) = (name, server) else {
            return;
        };
        if self.loop_probes.len() >= LOOP_PROBES_MAX {
            return;
        }
        let ticket = self.tickets.issue();
        let until = now.mono + LOOP_PROBE_LIMIT;
        self.loop_probes.push(LoopProbe {
            name: name.clone(),
            upstream: upstream.id.clone(),
            ticket: Some(ticket),
            until,
        });
        let flags = Flags {
            recursion_desired: upstream.recursion_desired(),
            ..Flags::default()
        };
        self.counters.probes += 1;
        // Without a mark: it finds loops through servers that strip options.
        out.push(ResolverEffect::Query(Query {
            ticket,
            server,
            transport: upstream.transport,
            upstream,
            after: None,
            question: Arc::new(Question::new(name, RecordType::TXT)),
            flags,
            mixed_case: false,
            mark: None,
            probe: true,
        }));
    }

    /// The upstream by which a probe of ours left that comes in here.
    pub(super) fn own_probe(&self, name: &Name) -> Option<UpstreamId> {
        self.loop_probes
            .iter()
            .find(|probe| probe.name == *name)
            .map(|probe| probe.upstream.clone())
    }

    /// True when that was the query of a probe. Its name is still known until its time is over.
    pub(super) fn loop_probe_ended(&mut self, ticket: Ticket) -> bool {
        let probe = self
            .loop_probes
            .iter_mut()
            .find(|probe| probe.ticket == Some(ticket));
        probe.is_some_and(|probe| probe.ticket.take().is_some())
    }

    pub(super) fn forget_loop_probes(&mut self, now: Now, out: &mut Outbox<ResolverEffect>) {
        let over = self
            .loop_probes
            .extract_if(.., |probe| probe.until <= now.mono);
        for ticket in over.filter_map(|probe| probe.ticket) {
            out.push(ResolverEffect::Forget(ticket));
        }
    }
}

/// Names that came, went or have other addresses: both maps in step.
fn changed_names<'a>(
    before: &'a BTreeMap<WorkloadName, LocalName>,
    after: &'a BTreeMap<WorkloadName, LocalName>,
) -> Vec<(&'a WorkloadName, &'a LocalName)> {
    let is_other = |name: &WorkloadName, local: &LocalName, other: &BTreeMap<_, LocalName>| {
        other
            .get(name)
            .is_none_or(|known| known.addresses != local.addresses)
    };
    let went = before
        .iter()
        .filter(|(name, local)| is_other(name, local, after));
    let came = after
        .iter()
        .filter(|(name, local)| is_other(name, local, before));
    went.chain(came).collect()
}
