//! What must hold: at every record that takes something in, at moments drawn, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vl3_core::allocator::LeaseRecord;
use vl3_core::ids::DomainName;
use vl3_core::registry::{
    Command, Endpoint, EndpointQuery, FoundEndpoint, Marks, Record, Refusal, Reply, WatcherId,
};

use super::cast::{Network, domain_name, has, spiffe};
use super::faults::Fault;
use super::node::REMOTE_MAX;
use super::world::{Asked, Step, World};
use crate::broken::Broken;

const ENDPOINT_BYTES_MAX: usize = 8 * 1024;

pub(super) fn number_of(domain: &DomainName) -> usize {
    let number = domain.as_str().trim_start_matches('d').parse();
    number.unwrap_or(usize::MAX)
}

impl World {
    /// Invariants 4 and 12 where something of another domain is believed.
    pub(super) fn check_records(&self, node: usize, records: &[Record]) -> Step {
        for record in records {
            if let Record::Remote {
                uid,
                domain,
                endpoint,
            } = record
            {
                let endpoint = endpoint.endpoint();
                if let Err(why) = self.may_believe(node, *uid, domain, &endpoint) {
                    let what = format!("d{node} believes {domain} that {}: {why}", endpoint.name);
                    return Err(Broken::new(12, what));
                }
            }
        }
        Ok(())
    }

    fn may_believe(
        &self,
        node: usize,
        uid: vl3_core::ids::NetworkUid,
        domain: &DomainName,
        endpoint: &Endpoint,
    ) -> Result<(), &'static str> {
        let speaker = number_of(domain);
        let marks = Marks::of(endpoint).ok_or("it has no marks")?;
        if marks.uid != uid {
            return Err("it is of another network");
        }
        if marks.domain != *domain {
            return Err("it is of another domain");
        }
        if endpoint.size() > ENDPOINT_BYTES_MAX {
            return Err("it is too big");
        }
        let known = self.networks.iter().find(|network| network.uid == uid);
        let name = known.map(|network| network.name.to_string());
        if name.is_none_or(|name| endpoint.services != [name]) {
            return Err("it offers something else");
        }
        let invented = endpoint.name.starts_with("lie-") && self.tally.of(Fault::LieTooMany).0 > 0;
        if !invented && !self.truth.was_said(speaker, endpoint) {
            return Err("nobody there said so");
        }
        let _ = node;
        Ok(())
    }

    /// Invariants 1, 4, 9 and 12 over everything that one registry holds.
    pub(super) fn check_node(&self, node: usize) -> Step {
        let Some(machine) = self.machine(node) else {
            return Ok(());
        };
        let own = domain_name(node);
        for chain in machine.documents() {
            if self.written(node, chain.uid()).is_none() {
                let (uid, version) = (chain.uid(), chain.document().version);
                let what = format!("{own} holds a version {version} of {uid} that nobody signed");
                return Err(Broken::new(12, what));
            }
        }
        let leases: Vec<_> = machine.leases().collect();
        for (index, lease) in leases.iter().enumerate() {
            let document = self.written(node, lease.uid);
            let Some(member) = document.and_then(|document| document.members.get(&own)) else {
                continue;
            };
            for prefix in lease.prefixes() {
                if !member.owns(&prefix) {
                    let what = format!("{prefix} of {} is not of {own}", lease.router);
                    return Err(Broken::new(1, what));
                }
                let others = leases[index + 1..]
                    .iter()
                    .filter(|other| other.uid == lease.uid);
                for other in others {
                    if other
                        .prefixes()
                        .any(|other| prefix.contains(&other) || other.contains(&prefix))
                    {
                        let what = format!("{} and {} share {prefix}", lease.router, other.router);
                        return Err(Broken::new(1, what));
                    }
                }
            }
        }
        let mut counts: BTreeMap<DomainName, usize> = BTreeMap::new();
        for (domain, endpoint) in machine.endpoints() {
            let (Some(domain), Some(marks)) = (domain, Marks::of(&endpoint)) else {
                continue;
            };
            *counts.entry(domain.clone()).or_default() += 1;
            let document = self.written(node, marks.uid);
            let live = |of| document.is_some_and(|document| has(document, of));
            if !live(number_of(domain)) || !live(node) {
                let what = format!(
                    "{own} holds {}@{domain}, which is no live member",
                    endpoint.name
                );
                return Err(Broken::new(4, what));
            }
        }
        if let Some((domain, count)) = counts.iter().find(|(_, count)| **count > REMOTE_MAX) {
            return Err(Broken::new(
                9,
                format!("{own} holds {count} endpoints of {domain}"),
            ));
        }
        Ok(())
    }

    /// After a start: what was acknowledged is there.
    pub(super) fn check_promises(&self, node: usize) -> Step {
        let Some(machine) = self.machine(node) else {
            return Ok(());
        };
        let own: BTreeMap<_, _> = machine
            .endpoints()
            .filter(|(domain, _)| domain.is_none())
            .map(|(_, endpoint)| (endpoint.name.clone(), endpoint))
            .collect();
        for promised in self.truth.promised(node, self.now) {
            let held = own.get(&promised.name);
            if held != Some(promised) {
                let what = format!("d{node} acknowledged {promised:?}, it holds {held:?}");
                return Err(Broken::new(2, what));
            }
        }
        Ok(())
    }

    pub(super) fn truth_after_crash(&mut self, node: usize) {
        for (network, name) in self.truth.crashed(node) {
            let uid = self.networks[network].uid;
            let records = self.nodes[node].disk.records().iter().rev();
            let last = records.filter_map(|record| match record {
                Record::Lease { uid: of, record } if *of == uid => match record {
                    LeaseRecord::Granted { lease, .. } => Some((&lease.router, true)),
                    LeaseRecord::Ended { router } => Some((router, false)),
                    _ => None,
                },
                _ => None,
            });
            let last = last.into_iter().find(|(router, _)| router.as_str() == name);
            if !last.is_some_and(|(_, is_granted)| is_granted) {
                self.truth.ended(network, name);
            }
        }
    }

    /// Somebody of another domain asks for everything.
    pub(super) fn ask_as_stranger(&mut self, node: usize, domain: usize) -> Step {
        let id = spiffe(domain, &format!("vl3/router/red-d{domain}"));
        let peer = self.peer(node, domain, id);
        self.count(Fault::Stranger);
        let (query, after) = (EndpointQuery::default(), None);
        self.ask(
            node,
            peer,
            Command::FindEndpoints { query, after },
            Asked::Stranger(domain),
        )
    }

    /// Invariant 4: only what is of a network that both are in.
    pub(super) fn check_stranger(
        &self,
        node: usize,
        domain: usize,
        result: &Result<Reply, Refusal>,
    ) -> Step {
        let Ok(Reply::Endpoints(page)) = result else {
            return Ok(());
        };
        let common = self.common(node, domain);
        for found in &page.found {
            let endpoint = found.shown.endpoint();
            let uid = Marks::of(&endpoint).map(|marks| marks.uid);
            if uid.is_none_or(|uid| !common.contains(&uid)) {
                let what = format!("d{node} shows {} to d{domain}", endpoint.name);
                return Err(Broken::new(4, what));
            }
        }
        Ok(())
    }

    /// Asks what a watch should add up to; at rest nothing waits for the disk.
    pub(super) fn compare_watches(&mut self, node: usize) -> Step {
        if !self.nodes[node].idle || self.nodes[node].machine.is_none() {
            return Ok(());
        }
        let of = self.watches.iter();
        let of = of.filter(|(_, watch)| watch.node == node && !watch.has_rest);
        let of: Vec<_> = of
            .map(|(watcher, watch)| (*watcher, watch.peer.clone(), watch.query.clone()))
            .collect();
        for (watcher, peer, query) in of {
            let after = None;
            self.ask(
                node,
                peer,
                Command::FindEndpoints { query, after },
                Asked::Watched(watcher, Vec::new()),
            )?;
        }
        Ok(())
    }

    pub(super) fn check_watch(
        &mut self,
        watcher: WatcherId,
        mut found: Vec<FoundEndpoint>,
        result: Result<Reply, Refusal>,
    ) -> Step {
        let Some(watch) = self.watches.get(&watcher) else {
            return Ok(());
        };
        let Ok(Reply::Endpoints(page)) = result else {
            let what = format!("d{} refuses a Find to {watch:?}: {result:?}", watch.node);
            return Err(Broken::new(7, what));
        };
        found.extend(page.found);
        if page.next.is_some() {
            let (node, query, after) = (watch.node, watch.query.clone(), page.next);
            let peer = watch.peer.clone();
            let find = Command::FindEndpoints { query, after };
            return self.ask(node, peer, find, Asked::Watched(watcher, found));
        }
        let found: BTreeMap<_, _> = found
            .into_iter()
            .map(|found| found.shown.endpoint())
            .map(|endpoint| (endpoint.name.clone(), endpoint))
            .collect();
        let empty = BTreeMap::new();
        let seen = watch.seen.as_ref().unwrap_or(&empty);
        if *seen == found {
            return Ok(());
        }
        let differs = |name: &&String| seen.get(*name) != found.get(*name);
        let name = seen.keys().chain(found.keys()).find(differs);
        let what = format!(
            "a watch at d{} of {:?} has another {name:?} than a Find: {:?}, found {:?}",
            watch.node,
            watch.query.services,
            name.and_then(|name| seen.get(name)),
            name.and_then(|name| found.get(name)),
        );
        Err(Broken::new(7, what))
    }

    /// After the last fault and some time: everybody has what is, and nothing else.
    pub(super) fn examine(&mut self) -> Step {
        if let Some(watch) = self.watches.values().find(|watch| watch.has_rest) {
            let what = format!(
                "a watch at d{} is not shown its snapshot's rest",
                watch.node
            );
            return Err(Broken::new(7, what));
        }
        for node in 0..self.nodes.len() {
            self.check_node(node)?;
            self.check_promises(node)?;
            self.check_replay(node)?;
            self.compare_watches(node)?;
            self.check_watched(node)?;
        }
        self.check_documents()?;
        self.check_clients()?;
        for node in 0..self.nodes.len() {
            for domain in 0..self.nodes.len() {
                if node != domain {
                    self.check_convergence(node, domain)?;
                }
            }
        }
        Ok(())
    }

    fn check_documents(&self) -> Step {
        for network in &self.networks {
            for node in (0..self.nodes.len()).filter(|node| network.has(*node)) {
                let held = self
                    .machine(node)
                    .and_then(|machine| machine.document(network.uid));
                let newest = network.chain.newest();
                if held.is_none_or(|held| held.newest().bytes != newest.bytes) {
                    let held = held.map(|chain| chain.document().version);
                    let what = format!(
                        "d{node} holds version {held:?} of {}, or another content than {} has, the newest",
                        network.name, newest.document.version
                    );
                    return Err(Broken::new(7, what));
                }
            }
            self.check_removed(network)?;
        }
        Ok(())
    }

    /// Nobody is obliged to reach whom a version removed, nor to tell it of later ones; but who
    /// still believes to be a member has no stream, in whatever network, with one that knows.
    fn check_removed(&self, network: &Network) -> Step {
        let held = |node: usize| {
            let held = self.machine(node)?.document(network.uid)?;
            Some(held.document())
        };
        for node in (0..self.nodes.len()).filter(|node| !network.has(*node)) {
            let believes = held(node).filter(|document| {
                let member = document.members.get(&domain_name(node));
                member.is_some_and(|member| !member.revoked)
            });
            let Some(version) = believes.map(|document| document.version) else {
                continue;
            };
            for other in 0..self.nodes.len() {
                let knows = held(other).is_some_and(|document| document.version > version);
                if knows && self.stands_between(node, other) {
                    let what = format!(
                        "d{node} holds version {version} of {}, its stream with d{other} stands",
                        network.name
                    );
                    return Err(Broken::new(7, what));
                }
            }
        }
        Ok(())
    }

    fn stands_between(&self, a: usize, b: usize) -> bool {
        let with = |node: usize, other: usize| {
            let name = domain_name(other);
            let remotes = self.machine(node).map(|machine| machine.remotes());
            remotes
                .into_iter()
                .flatten()
                .any(|remote| remote.domain == name && remote.synced)
        };
        with(a, b) && with(b, a)
    }

    /// Whoever wants to be registered is, with its last words, and nobody else.
    fn check_clients(&self) -> Step {
        for (index, client) in self.clients.iter().enumerate() {
            let of_network = client.network.map(|network| &self.networks[network]);
            if of_network.is_some_and(|network| !network.has(client.domain)) {
                continue;
            }
            let Some(machine) = self.machine(client.domain) else {
                continue;
            };
            let mut own = machine.endpoints().filter(|(domain, _)| domain.is_none());
            let held = own.find(|(_, endpoint)| endpoint.name == client.name);
            let held = held.map(|(_, endpoint)| endpoint.url.clone());
            let wanted = self.wanted(index).filter(|_| client.wants);
            if client.wants && wanted.is_none() || held != wanted.map(|wanted| wanted.url) {
                let what = format!(
                    "{} of d{} is registered as {held:?}, {client:?}",
                    client.name, client.domain
                );
                return Err(Broken::new(7, what));
            }
        }
        Ok(())
    }

    fn check_convergence(&self, node: usize, domain: usize) -> Step {
        let (Some(here), Some(there)) = (self.machine(node), self.machine(domain)) else {
            return Ok(());
        };
        // Members hold the newest version, see above, but two domains that were removed and that
        // nobody can tell go on with what they have.
        let mut common = &self.common(node, domain) & &self.common(domain, node);
        let members = |network: &&Network| network.has(node) && network.has(domain);
        let newest = self.networks.iter().filter(members);
        common.extend(newest.map(|network| network.uid));
        let of_common = |endpoint: &Arc<Endpoint>| {
            Marks::of(endpoint).is_some_and(|marks| common.contains(&marks.uid))
        };
        let name = domain_name(domain);
        let held: BTreeSet<_> = here
            .endpoints()
            .filter(|(of, _)| *of == Some(&name))
            .map(|(_, endpoint)| (endpoint.name.clone(), endpoint.url.clone()))
            .collect();
        let real: BTreeSet<_> = there
            .endpoints()
            .filter(|(of, endpoint)| of.is_none() && of_common(endpoint))
            .map(|(_, endpoint)| (endpoint.name.clone(), endpoint.url.clone()))
            .collect();
        if held == real {
            return Ok(());
        }
        let stream = here
            .remotes()
            .into_iter()
            .find(|remote| remote.domain == name);
        let what = format!("d{node} holds {held:?} of d{domain}, which has {real:?}; {stream:?}");
        Err(Broken::new(7, what))
    }
}
