//! The invariants of the design, looked at from outside of the machines.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use vl3_core::allocator::Lease;
use vl3_core::forward::{PortClass, PortId};
use vl3_core::ids::PublicKey;
use vl3_core::names::{Rcode, Reply};
use vl3_core::registry::{Boot, Marks, RegistryMachine};
use vl3_core::router::{OWN_PORT, State, WorkloadAnswer};

use crate::broken::Broken;
use crate::cast::{domain_name, registry_id};
use crate::dns::addresses;
use crate::event::{Data, Node};
use crate::plane::PortEnd;
use crate::truth::{Asked, Wanted};
use crate::world::World;

/// Most routers that a packet may cross.
const ROUTERS_MAX: usize = 3;

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Where a packet comes from or goes to, by who really stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Member,
    Remote,
    Sibling,
    Own,
    Gone,
}

impl World {
    /// 1 and 12: leases of one registry are apart and inside of the domain's blocks; what
    /// another domain said is said about itself.
    pub fn check_registry(&self, index: usize) -> Result<(), Broken> {
        let Some(machine) = &self.registries[index].machine else {
            return Ok(());
        };
        let own = domain_name(index);
        let leases: Vec<&Lease> = machine.leases().collect();
        for (position, lease) in leases.iter().enumerate() {
            let Some(chain) = machine.document(lease.uid) else {
                return Err(Broken::new(
                    4,
                    format!("{own} leases in a network that it does not serve"),
                ));
            };
            let Some(member) = chain.document().members.get(&own) else {
                continue;
            };
            for prefix in lease.prefixes() {
                if !member.owns(&prefix) {
                    return Err(Broken::new(
                        12,
                        format!("{own} leases {prefix}, which is outside of its blocks"),
                    ));
                }
                for excluded in &chain.document().policy.exclusions {
                    if overlap(&prefix, excluded) {
                        return Err(Broken::new(
                            1,
                            format!("{own} leases {prefix}, excluded by {excluded}"),
                        ));
                    }
                }
                for other in &leases[position + 1..] {
                    if other.uid == lease.uid
                        && other.prefixes().any(|range| overlap(&range, &prefix))
                    {
                        let (a, b) = (&lease.router, &other.router);
                        return Err(Broken::new(
                            1,
                            format!("{own} leases {prefix} to {a} and what overlaps it to {b}"),
                        ));
                    }
                }
            }
        }
        for (domain, endpoint) in machine.endpoints() {
            let (Some(domain), Some(marks)) = (domain, Marks::of(endpoint)) else {
                continue;
            };
            if marks.domain != *domain {
                let what = format!("{own} believes {domain} about a router of {}", marks.domain);
                return Err(Broken::new(12, what));
            }
            if machine.document(marks.uid).is_none() {
                return Err(Broken::new(
                    4,
                    format!("{own} holds an endpoint of a foreign network from {domain}"),
                ));
            }
        }
        Ok(())
    }

    /// 2: a registry that starts from the journal is the registry that runs.
    pub fn check_replay(&self, index: usize) -> Result<(), Broken> {
        let node = Node::Registry(index);
        let registry = &self.registries[index];
        let Some(machine) = registry.machine.as_ref().filter(|_| registry.idle) else {
            return Ok(());
        };
        let boot = Boot {
            documents: registry.documents.clone(),
            records: registry.disk.records().to_vec(),
            restored: false,
        };
        let config =
            vl3_core::registry::Config::new(domain_name(index), registry_id(index), [0; 16], 1);
        let again = RegistryMachine::boot(config, boot, self.now_at(node)).map_err(|error| {
            Broken::new(2, format!("{node}: its journal does not replay: {error}"))
        })?;
        let (runs, replayed) = (machine.snapshot(), again.snapshot());
        if runs != replayed {
            let position = runs
                .iter()
                .zip(&replayed)
                .position(|(a, b)| a != b)
                .unwrap_or(runs.len().min(replayed.len()));
            let what = format!(
                "{node}: runs with {} records, its journal gives {}; first difference: {:?} against {:?}",
                runs.len(),
                replayed.len(),
                runs.get(position),
                replayed.get(position)
            );
            return Err(Broken::new(2, what));
        }
        Ok(())
    }

    /// 2: what a router would start with is what it runs with.
    pub fn check_router_replay(&self, index: usize) -> Result<(), Broken> {
        let router = &self.routers[index];
        let Some(machine) = router.machine.as_ref().filter(|_| router.disk.is_idle()) else {
            return Ok(());
        };
        let mut replayed = State::default();
        for record in router.disk.records() {
            replayed.apply(record);
        }
        if replayed != *machine.state() {
            let what = format!(
                "router-{index} runs with {:?}, its journal gives {replayed:?}",
                machine.state()
            );
            return Err(Broken::new(2, what));
        }
        Ok(())
    }

    /// 1 and 5: what a router is granted touches nobody else's, and its generation grows.
    pub fn lease_granted(&mut self, index: usize, lease: &Lease) -> Result<(), Broken> {
        let role = self.routers[index].role;
        if let Some(before) = self.truth.granted.get(&index)
            && lease.generation < before.generation
        {
            let what = format!(
                "{} went from generation {} to {}",
                lease.router, before.generation, lease.generation
            );
            return Err(Broken::new(5, what));
        }
        for (other, router) in self.routers.iter().enumerate() {
            let (Some(held), true) = (
                &router.lease,
                router.machine.is_some() && !router.is_fenced(),
            ) else {
                continue;
            };
            let apart = other == index || router.role == role || held.uid != lease.uid;
            if !apart
                && held
                    .prefixes()
                    .any(|range| lease.prefixes().any(|prefix| overlap(&range, &prefix)))
            {
                let what = format!(
                    "{} and {} both hold parts of {held:?}",
                    lease.router, held.router
                );
                return Err(Broken::new(1, what));
            }
        }
        self.truth.granted.insert(index, lease.clone());
        Ok(())
    }

    /// 5: the generation at which this router holds each link.
    pub fn check_router(&mut self, index: usize) -> Result<(), Broken> {
        let Some(machine) = &self.routers[index].machine else {
            return Ok(());
        };
        // Whoever was forgotten by everybody, its own registry included, starts over.
        let links = &machine.state().links;
        self.truth
            .consumed
            .retain(|(consumer, router), _| *consumer != index || links.contains_key(router));
        for (router, link) in links {
            let (key, generation) = ((index, router.clone()), link.generation);
            match self.truth.consumed.get(&key) {
                Some(highest) if *highest > generation => {
                    let what = format!(
                        "router-{index} moved from generation {highest} of {} to {generation}",
                        key.1
                    );
                    return Err(Broken::new(5, what));
                }
                _ => {
                    self.truth.consumed.insert(key, generation);
                }
            }
        }
        Ok(())
    }

    /// 12: every route leads to somebody whose domain owns the prefix.
    pub fn check_table(&self, index: usize) -> Result<(), Broken> {
        let router = &self.routers[index];
        let document = router.document();
        let own = domain_name(self.site(Node::Router(index)));
        for route in &router.plane.routes {
            let speaker = match self.stands_behind(index, route.port) {
                (Stands::Remote, Some(domain)) => domain_name(domain),
                (Stands::Sibling | Stands::Member | Stands::Own, _) => own.clone(),
                (Stands::Remote, None) | (Stands::Gone, _) => continue,
            };
            let owns = document
                .members
                .get(&speaker)
                .is_some_and(|member| member.owns(&route.prefix));
            if !owns {
                let what = format!(
                    "router-{index} sends {} to {speaker}, which does not own it",
                    route.prefix
                );
                return Err(Broken::new(12, what));
            }
        }
        Ok(())
    }

    /// Who really is behind a port, and of which domain.
    fn stands_behind(&self, index: usize, port: PortId) -> (Stands, Option<usize>) {
        if port == OWN_PORT {
            return (Stands::Own, None);
        }
        match self.routers[index]
            .plane
            .ports
            .get(&port)
            .map(|port| &port.end)
        {
            None => (Stands::Gone, None),
            Some(PortEnd::Tun { .. }) => (Stands::Member, None),
            Some(PortEnd::Peer { key, .. }) => self.holder_of(index, *key),
        }
    }

    fn holder_of(&self, index: usize, key: PublicKey) -> (Stands, Option<usize>) {
        if self.workloads.iter().any(|workload| workload.key == key) {
            return (Stands::Member, None);
        }
        let own = self.site(Node::Router(index));
        match self.routers.iter().position(|router| router.key == key) {
            Some(other) => {
                let site = self.site(Node::Router(other));
                (
                    if site == own {
                        Stands::Sibling
                    } else {
                        Stands::Remote
                    },
                    Some(site),
                )
            }
            None => (Stands::Gone, None),
        }
    }

    /// 3: the order of packets, and how many routers one crosses.
    pub fn check_crossing(
        &self,
        index: usize,
        data: &Data,
        from: PortId,
        to: PortId,
    ) -> Result<(), Broken> {
        let (ingress, _) = self.stands_behind(index, from);
        let (egress, _) = self.stands_behind(index, to);
        let allowed = match ingress {
            Stands::Member | Stands::Own => true,
            Stands::Remote => egress != Stands::Remote,
            Stands::Sibling => !matches!(egress, Stands::Remote | Stands::Sibling),
            Stands::Gone => return Ok(()),
        };
        if !allowed {
            let what = format!(
                "router-{index} carries a packet from a {ingress:?} to a {egress:?}: {data:?}"
            );
            return Err(Broken::new(3, what));
        }
        if data.crossed.len() > ROUTERS_MAX {
            return Err(Broken::new(
                3,
                format!("a packet crosses {:?}", data.crossed),
            ));
        }
        Ok(())
    }

    /// 3 and 4: what arrives at a workload is for it, from who it says, of its network.
    pub fn check_delivery(&mut self, index: usize, data: &Data) -> Result<(), Broken> {
        self.truth.delivered += 1;
        if data.network != self.cast.workloads[index].network {
            return Err(Broken::new(
                4,
                format!("workload-{index} receives {data:?} of another network"),
            ));
        }
        if data.forged {
            return Err(Broken::new(
                3,
                format!("workload-{index} receives a forged packet: {data:?}"),
            ));
        }
        let mine = self.workloads[index]
            .addresses()
            .any(|address| address == data.destination);
        let others = self.workloads.iter().enumerate().any(|(other, workload)| {
            other != index
                && workload.alive
                && self.cast.workloads[other].network == data.network
                && workload
                    .addresses()
                    .any(|address| address == data.destination)
        });
        if !mine && others {
            return Err(Broken::new(
                3,
                format!("workload-{index} receives what is for another: {data:?}"),
            ));
        }
        Ok(())
    }

    /// 1 and 12: an address that a workload is given is inside of its router's lease, and
    /// nobody else's.
    pub fn check_answer(&mut self, index: usize, answer: &WorkloadAnswer) -> Result<(), Broken> {
        let Some(router) = self.workloads[index].router else {
            return Ok(());
        };
        let given: Vec<IpAddr> = answer.addresses.iter().map(IpNet::addr).collect();
        if given.is_empty() {
            return Err(Broken::new(
                6,
                format!("workload-{index} is answered without any address"),
            ));
        }
        let lease = self.routers[router].lease.clone();
        for address in &given {
            let inside = lease
                .iter()
                .flat_map(Lease::prefixes)
                .any(|prefix| prefix.contains(address));
            if !inside && lease.is_some() {
                return Err(Broken::new(
                    12,
                    format!("workload-{index} is given {address}, outside of {lease:?}"),
                ));
            }
            if lease
                .iter()
                .flat_map(Lease::addresses)
                .any(|own| own == *address)
            {
                return Err(Broken::new(
                    1,
                    format!("workload-{index} is given the router's own {address}"),
                ));
            }
        }
        for (other, workload) in self.workloads.iter().enumerate() {
            let same_place = other != index && workload.alive && workload.router == Some(router);
            if same_place && workload.addresses().any(|address| given.contains(&address)) {
                let what =
                    format!("workload-{index} is given an address of workload-{other}: {given:?}");
                return Err(Broken::new(1, what));
            }
        }
        self.truth.had.entry(index).or_default().extend(given);
        Ok(())
    }

    /// Whether a workload's name is live, and in which lives of it and its router.
    /// To an asker whose router knows of the domain and is not fenced off from it.
    pub fn name_is_live(&self, asker: usize, target: usize) -> Option<(u32, usize, u32)> {
        let asked = &self.routers[self.workloads[asker].router?];
        let domain = domain_name(self.cast.workloads[target].domain);
        if asked.is_fenced() || !asked.document().members.contains_key(&domain) {
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
        });
        (named && alone).then_some((workload.lives, router, process.lives))
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
