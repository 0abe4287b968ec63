//! The invariants that concern names, and the world at rest.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vl3_core::forward::{PortClass, PortId};
use vl3_core::names::{Rcode, Reply};

use crate::broken::Broken;
use crate::cast::domain_name;
use crate::dns::addresses;
use crate::plane::PortEnd;
use crate::truth::{Asked, Wanted};
use crate::world::World;

impl World {
    /// Whether a workload's name is live, and in which lives of it and its router, to an asker
    /// whose router's document has the domain: a label that is no member's is denied at once.
    pub fn name_is_live(&self, asker: usize, target: usize) -> Option<(u32, usize, u32)> {
        let asked = &self.routers[self.workloads[asker].router?];
        let domain = domain_name(self.cast.workloads[target].domain);
        if !asked.document().members.contains_key(&domain) {
            return None;
        }
        let workload = &self.workloads[target];
        let router = workload.router.filter(|_| workload.alive)?;
        let process = &self.routers[router];
        let named = process.machine.is_some()
            && process
                .view
                .names
                .contains_key(&self.cast.workloads[target].name);
        // Two instances of one name know different workloads until one of them is fenced.
        let alone = !self.routers.iter().enumerate().any(|(other, process)| {
            other != router
                && process.role == self.routers[router].role
                && process.machine.is_some()
                && !process.is_fenced()
        });
        (named && alone && !process.is_fenced()).then_some((workload.lives, router, process.lives))
    }

    /// 8, 12, 4: what a workload is told about a name.
    pub fn check_name(&mut self, asked: &Asked, reply: &Reply) -> Result<(), Broken> {
        self.truth.names_answered += 1;
        let found: Vec<IpAddr> = addresses(&reply.answers).collect();
        match asked.wanted {
            Wanted::Canonical(target) | Wanted::Shared(target) => {
                let still = self.name_is_live(asked.asker, target);
                if reply.rcode == Rcode::NX_DOMAIN && asked.live.is_some() && asked.live == still {
                    let what = format!(
                        "workload-{} is told NXDOMAIN for the live workload-{target}",
                        asked.asker
                    );
                    return Err(Broken::new(8, what));
                }
                let had = self.truth.had.get(&target);
                if let Some(foreign) = found
                    .iter()
                    .find(|address| !had.is_some_and(|had| had.contains(address)))
                {
                    let what = format!(
                        "workload-{} is told {foreign} for workload-{target}",
                        asked.asker
                    );
                    return Err(Broken::new(12, what));
                }
                let now: Vec<IpAddr> = self.workloads[target].addresses().collect();
                if !found.is_empty() && found.iter().all(|address| now.contains(address)) {
                    self.truth.resolved.insert((asked.asker, target));
                }
                if reply.rcode == Rcode::NX_DOMAIN {
                    self.truth.denied.insert((asked.asker, asked.wanted));
                }
            }
            Wanted::Nobody | Wanted::OtherNetwork(_) => {
                if !found.is_empty() {
                    let invariant = if asked.wanted == Wanted::Nobody { 8 } else { 4 };
                    let what = format!(
                        "workload-{} finds {found:?} for {:?}",
                        asked.asker, asked.wanted
                    );
                    return Err(Broken::new(invariant, what));
                }
                if reply.rcode == Rcode::NX_DOMAIN {
                    self.truth.denied.insert((asked.asker, asked.wanted));
                }
            }
        }
        Ok(())
    }

    /// Live pairs of one network.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let live: Vec<usize> = (0..self.workloads.len())
            .filter(|index| self.workloads[*index].alive)
            .collect();
        live.iter()
            .flat_map(|from| live.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| {
                from != to && self.cast.workloads[*from].network == self.cast.workloads[*to].network
            })
            .collect()
    }

    /// 7, 8, 4: everything lives again and only what lives.
    pub fn examine(&self) -> Result<(), Broken> {
        for (index, workload) in self.workloads.iter().enumerate() {
            if workload.alive && workload.answer.is_none() {
                let why = workload
                    .refused
                    .clone()
                    .unwrap_or_else(|| "no answer".to_owned());
                return Err(Broken::new(
                    7,
                    format!("workload-{index} is not attached: {why}"),
                ));
            }
        }
        for (from, to) in self.pairs() {
            for v6 in [false, true] {
                if !self.truth.reached.contains(&(from, to, v6)) {
                    let family = if v6 { "IPv6" } else { "IPv4" };
                    let (a, b) = (self.workloads[from].router, self.workloads[to].router);
                    let what = format!(
                        "workload-{from} (router {a:?}) does not reach workload-{to} (router {b:?}) over {family}"
                    );
                    return Err(Broken::new(7, what));
                }
            }
            if !self.truth.resolved.contains(&(from, to)) {
                return Err(Broken::new(
                    7,
                    format!("workload-{from} does not resolve workload-{to}"),
                ));
            }
        }
        for (index, workload) in self
            .workloads
            .iter()
            .enumerate()
            .filter(|(_, workload)| workload.alive)
        {
            let network = self.cast.workloads[index].network;
            if !self.truth.denied.contains(&(index, Wanted::Nobody)) {
                return Err(Broken::new(
                    8,
                    format!("workload-{index} is not told NXDOMAIN for a name of nobody"),
                ));
            }
            for dead in self
                .truth
                .dead
                .iter()
                .filter(|dead| self.cast.workloads[**dead].network == network)
            {
                if !self
                    .truth
                    .denied
                    .contains(&(index, Wanted::Canonical(*dead)))
                {
                    return Err(Broken::new(
                        8,
                        format!("workload-{index} still hears of the dead workload-{dead}"),
                    ));
                }
            }
            debug_assert!(workload.alive, "filtered");
        }
        self.examine_ports()
    }

    /// 6: asked twice is asked once: one port for each live workload and each link.
    fn examine_ports(&self) -> Result<(), Broken> {
        for (index, router) in self
            .routers
            .iter()
            .enumerate()
            .filter(|(_, router)| router.machine.is_some())
        {
            let mut seen: BTreeMap<Vec<u8>, PortId> = BTreeMap::new();
            for (port, held) in &router.plane.ports {
                let name = match &held.end {
                    PortEnd::Peer { key, .. } => key.0.to_vec(),
                    PortEnd::Tun { session } => session.0.to_be_bytes().to_vec(),
                };
                if let Some(other) = seen.insert(name, *port) {
                    return Err(Broken::new(
                        6,
                        format!("router-{index} holds {other:?} and {port:?} for one peer"),
                    ));
                }
                if held.class == PortClass::Member && !self.serves(index, &held.end) {
                    return Err(Broken::new(
                        6,
                        format!("router-{index} still serves {port:?}, whose workload is gone"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn serves(&self, router: usize, end: &PortEnd) -> bool {
        self.workloads.iter().any(|workload| {
            workload.alive
                && workload.router == Some(router)
                && match end {
                    PortEnd::Peer { key, .. } => workload.key == *key,
                    PortEnd::Tun { session } => workload.session == Some(*session),
                }
        })
    }

    /// 6: after the last Close no peer, name or member is left.
    pub fn examine_empty(&self) -> Result<(), Broken> {
        for (index, router) in self
            .routers
            .iter()
            .enumerate()
            .filter(|(_, router)| router.machine.is_some())
        {
            let members = router
                .plane
                .ports
                .iter()
                .filter(|(_, port)| port.class == PortClass::Member)
                .count();
            if members > 0 {
                return Err(Broken::new(
                    6,
                    format!("router-{index} has {members} members after all have closed"),
                ));
            }
            if let Some((name, _)) = router.view.names.iter().next() {
                return Err(Broken::new(
                    6,
                    format!("router-{index} still publishes {name} after its Close"),
                ));
            }
        }
        for (index, registry) in self.registries.iter().enumerate() {
            let left = registry
                .machine
                .as_ref()
                .and_then(|machine| machine.names().next().map(|(_, claim)| claim.clone()));
            if let Some(claim) = left {
                return Err(Broken::new(
                    6,
                    format!(
                        "registry-{index} still holds {} after its Close",
                        claim.name
                    ),
                ));
            }
        }
        Ok(())
    }
}
