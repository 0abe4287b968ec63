//! The invariants of the design, looked at from outside of the machines.

use std::net::IpAddr;

use ipnet::IpNet;
use vl3_core::allocator::Lease;
use vl3_core::forward::PortId;
use vl3_core::ids::PublicKey;
use vl3_core::registry::{Boot, Marks, RegistryMachine};
use vl3_core::router::{OWN_PORT, State, WorkloadAnswer};

use crate::broken::Broken;
use crate::cast::{domain_name, registry_id};
use crate::event::{Data, Node};
use crate::plane::PortEnd;
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
            let (Some(domain), Some(marks)) = (domain, Marks::of(&endpoint)) else {
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
            ..Boot::default()
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
}
