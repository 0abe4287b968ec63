//! What was promised, kept outside of the machines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use vl3_core::Mono;
use vl3_core::allocator::Lease;
use vl3_core::ids::Generation;
use vl3_core::registry::{Command, Endpoint, Refusal, Reply};

use super::clients::Op;
use super::node::{ENDPOINT_LIFETIME, LEASE_LIFETIME};
use super::world::Step;
use crate::broken::Broken;

#[derive(Debug, Default)]
pub(super) struct Truth {
    /// By network and router name: granted, not released, and until when without a renewal.
    leases: BTreeMap<(usize, String), (Lease, Mono)>,
    /// By domain and network: what its operator excludes at the moment.
    excluded: BTreeSet<(usize, usize, IpNet)>,
    /// The highest round that was ever granted to a name.
    generations: BTreeMap<(usize, String), Generation>,
    /// By domain and name: acknowledged, and until when without a refresh.
    registered: BTreeMap<(usize, String), (Arc<Endpoint>, Mono)>,
    /// What routers of a domain ever asked to register: domain, name, URL, round.
    said: BTreeSet<(usize, String, String, Option<String>)>,
    /// Calls of these names are under way.
    asked: BTreeMap<(usize, String), u32>,
    /// By domain, network and router name: calls that end the lease are under way.
    ending: BTreeMap<(usize, usize, String), u32>,
    pub(super) grants: u64,
}

fn name_of(command: &Command) -> Option<&str> {
    match command {
        Command::RegisterEndpoint { endpoint, .. } => Some(&endpoint.name),
        Command::UnregisterEndpoint { name } => Some(name),
        _ => None,
    }
}

fn key(domain: usize, endpoint: &Endpoint) -> (usize, String, String, Option<String>) {
    let labels = endpoint.labels.values().next();
    let generation = labels.and_then(|labels| labels.get("vl3/gen")).cloned();
    (
        domain,
        endpoint.name.clone(),
        endpoint.url.clone(),
        generation,
    )
}

impl Truth {
    pub(super) fn asked(&mut self, node: usize, command: &Command) {
        if let Command::RegisterEndpoint { endpoint, .. } = command {
            self.said.insert(key(node, endpoint));
        }
        if let Some(name) = name_of(command) {
            *self.asked.entry((node, name.to_owned())).or_default() += 1;
        }
    }

    pub(super) fn ends(&mut self, node: usize, network: usize, name: &str) {
        let of = (node, network, name.to_owned());
        *self.ending.entry(of).or_default() += 1;
    }

    /// Whether somebody of that domain ever registered this.
    pub(super) fn was_said(&self, domain: usize, endpoint: &Endpoint) -> bool {
        self.said.contains(&key(domain, endpoint))
    }

    pub(super) fn answered(
        &mut self,
        node: usize,
        network: Option<usize>,
        name: &str,
        op: Op,
        result: &Result<Reply, Refusal>,
        (arrived, now): (Mono, Mono),
    ) -> Step {
        let of = (node, name.to_owned());
        if matches!(op, Op::Register | Op::Unregister)
            && let Some(asked) = self.asked.get_mut(&of)
        {
            *asked = asked.saturating_sub(1);
        }
        let end = (node, network.unwrap_or_default(), name.to_owned());
        if matches!(op, Op::Release | Op::End)
            && let Some(count) = self.ending.get_mut(&end)
        {
            *count = count.saturating_sub(1);
        }
        match (op, result) {
            (Op::Acquire | Op::Renew, Ok(Reply::Lease(granted))) => {
                let network = network.unwrap_or_default();
                self.granted(node, network, name, &granted.lease, (arrived, now))
            }
            (Op::Acquire, Ok(Reply::Stock { granted, .. })) => {
                let (network, lease) = (network.unwrap_or_default(), &granted.lease);
                self.granted(node, network, lease.router.as_str(), lease, (arrived, now))
            }
            (Op::Release | Op::End, Ok(_)) => {
                let network = network.unwrap_or_default();
                self.leases.remove(&(network, name.to_owned()));
                Ok(())
            }
            (Op::Register, Ok(Reply::Endpoint(found))) => {
                let until = arrived + ENDPOINT_LIFETIME;
                self.registered.insert(of, (found.shown.endpoint(), until));
                Ok(())
            }
            (Op::Unregister, Ok(_)) => {
                self.registered.remove(&of);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Invariants 1 and 5, as those see it who were told.
    fn granted(
        &mut self,
        node: usize,
        network: usize,
        name: &str,
        lease: &Lease,
        (arrived, now): (Mono, Mono),
    ) -> Step {
        self.grants += 1;
        let of = (network, name.to_owned());
        let excluded = self.excluded.iter();
        let mut excluded = excluded.filter(|of| (of.0, of.1) == (node, network));
        let hit = |prefix: IpNet, range: &IpNet| prefix.contains(range) || range.contains(&prefix);
        if let Some((.., range)) =
            excluded.find(|(.., range)| lease.prefixes().any(|prefix| hit(prefix, range)))
        {
            let what = format!("{lease:?} is granted, the operator excludes {range}");
            return Err(Broken::new(1, what));
        }
        for ((other_network, other), (held, until)) in &self.leases {
            if *other_network != network || other == name || *until <= now {
                continue;
            }
            for (a, b) in lease
                .prefixes()
                .flat_map(|a| held.prefixes().map(move |b| (a, b)))
            {
                if a.contains(&b) || b.contains(&a) {
                    let what = format!("{a} is granted to {name} while {other} holds {b}");
                    return Err(Broken::new(1, what));
                }
            }
        }
        let highest = self.generations.entry(of.clone()).or_default();
        if lease.generation < *highest {
            let what = format!(
                "{name} is granted round {} after {highest}",
                lease.generation
            );
            return Err(Broken::new(5, what));
        }
        *highest = lease.generation;
        self.leases
            .insert(of, (lease.clone(), arrived + LEASE_LIFETIME));
        Ok(())
    }

    /// The lease that a name was granted lives until then at least.
    pub(super) fn holds(&self, network: usize, name: &str, until: Mono) -> bool {
        let held = self.leases.get(&(network, name.to_owned()));
        held.is_some_and(|(_, held_until)| *held_until >= until)
    }

    pub(super) fn excludes(&mut self, node: usize, network: usize, range: IpNet) {
        self.excluded.insert((node, network, range));
    }

    pub(super) fn includes(&mut self, node: usize, network: usize, range: IpNet) {
        self.excluded.remove(&(node, network, range));
    }

    /// Somebody starts anew where the disk is older than what it was granted.
    pub(super) fn forgot(&mut self, network: usize, name: &str) {
        let of = (network, name.to_owned());
        self.generations.remove(&of);
        self.leases.remove(&of);
    }

    /// Of calls under way at a crash nobody knows whether they were carried out. Says which
    /// leases, by network and router name, were about to end.
    pub(super) fn crashed(&mut self, node: usize) -> Vec<(usize, String)> {
        let asked = core::mem::take(&mut self.asked);
        for (of, count) in asked {
            if of.0 != node {
                self.asked.insert(of, count);
            } else if count > 0 {
                self.registered.remove(&of);
            }
        }
        let ending = core::mem::take(&mut self.ending);
        let (own, others) = ending.into_iter().partition(|(of, _)| of.0 == node);
        self.ending = others;
        let own: BTreeMap<(usize, usize, String), u32> = own;
        let own = own.into_iter().filter(|(_, count)| *count > 0);
        own.map(|((_, network, name), _)| (network, name)).collect()
    }

    /// The lease ended, though nobody was told.
    pub(super) fn ended(&mut self, network: usize, name: String) {
        self.leases.remove(&(network, name));
    }

    /// The disk is older than what was promised: a router that cannot present its lease may
    /// be given an old round again.
    pub(super) fn restored(&mut self, node: usize, forgetful: &[(usize, String)]) {
        self.registered.retain(|(domain, _), _| *domain != node);
        self.excluded.retain(|(domain, ..)| *domain != node);
        for of in forgetful {
            self.generations.remove(of);
            self.leases.remove(of);
        }
    }

    /// What must be registered at a node.
    pub(super) fn promised(
        &self,
        node: usize,
        now: Mono,
    ) -> impl Iterator<Item = &Arc<Endpoint>> + '_ {
        let of = self
            .registered
            .range((node, String::new())..(node + 1, String::new()));
        of.filter(move |(of, (_, until))| {
            *until > now && self.asked.get(*of).is_none_or(|count| *count == 0)
        })
        .map(|(_, (endpoint, _))| endpoint)
    }
}
