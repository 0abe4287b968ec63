//! Commands of those who are no clients here: other identities, operators, stock routers, a
//! second process of a router; and what a registry must say to them.

use core::time::Duration;
use ipnet::IpNet;
use vl3_core::allocator::Acquire;
use vl3_core::ids::{InstanceId, RouterName, SpiffeId, WorkloadName};
use vl3_core::registry::{Claim, Command, Peer, Refusal, Reply, Service, StockAcquire};

use super::cast::{registry_id, spiffe};
use super::clients::Op;
use super::faults::Fault;
use super::world::{Asked, Event, Step, Undo, World};
use crate::broken::Broken;

/// Addresses of the prefixes that routers ask for here.
const LEN4: u8 = 28;

impl World {
    /// One command at a registry that runs, next to a router that has a lease.
    pub(super) fn probe(&mut self, node: usize) -> Step {
        let of = self.clients.iter().position(|client| {
            client.domain == node && client.network.is_some() && client.lease.is_some()
        });
        let Some(client) = of.filter(|_| self.nodes[node].machine.is_some()) else {
            return Ok(());
        };
        let network = self.clients[client].network.unwrap_or_default();
        let uid = self.networks[network].uid;
        let (name, own) = (
            self.clients[client].name.clone(),
            self.clients[client].id.clone(),
        );
        let router = RouterName::new(&name).expect("a router name");
        let restored = self.nodes[node].restored;
        // The router's lease stands there for some time to come.
        let firm = !restored
            && self
                .truth
                .holds(network, &name, self.now + Duration::from_secs(1));
        let asks = |router: &RouterName, instance: u8, len4: u8| Command::Acquire {
            uid,
            acquire: Acquire {
                router: router.clone(),
                instance: InstanceId([instance; 16]),
                held: None,
                prefix_len4: Some(len4),
                exclusions: Vec::new(),
            },
        };
        let workload = WorkloadName::new(&format!("w{}", self.rng.below(3))).expect("a label");
        match self.rng.below(12) {
            0 => {
                self.count(Fault::OthersName);
                let other = spiffe(node, "workload/intruder");
                self.probe_with(
                    node,
                    other,
                    asks(&router, 90, LEN4),
                    network,
                    &name,
                    Op::Other,
                )
            }
            1 if firm => {
                self.count(Fault::OthersName);
                let other = spiffe(node, "vl3/router/other");
                self.probe_with(
                    node,
                    other,
                    asks(&router, 91, LEN4),
                    network,
                    &name,
                    Op::Acquire,
                )
            }
            2 if !restored => {
                self.count(Fault::RouterTwice);
                self.nodes[node].somebody_lost = true;
                let instance = 200 + u8::try_from(self.rng.below(50)).unwrap_or(0);
                let command = asks(&router, instance, LEN4);
                self.probe_with(node, own, command, network, &name, Op::Acquire)
            }
            3 if firm => {
                self.count(Fault::Greedy);
                self.nodes[node].somebody_lost = true;
                let name = format!("greedy-d{node}");
                let router = RouterName::new(&name).expect("a router name");
                let greedy = spiffe(node, "vl3/router/greedy");
                self.probe_with(
                    node,
                    greedy,
                    asks(&router, 92, 24),
                    network,
                    &name,
                    Op::Acquire,
                )
            }
            4 => {
                self.count(Fault::StockRouter);
                self.nodes[node].somebody_lost = true;
                let stock = spiffe(node, "vl3/router/stock");
                let command = Command::AcquireStock {
                    uid,
                    stock: StockAcquire::default(),
                };
                self.probe_with(node, stock, command, network, "stock", Op::Acquire)
            }
            5 if !restored => {
                self.count(Fault::LeaseEnded);
                self.nodes[node].somebody_lost = true;
                let command = Command::EndLease { uid, router };
                self.probe_with(node, registry_id(node), command, network, &name, Op::End)
            }
            6 => {
                let other = spiffe(node, "workload/intruder");
                let command = Command::EndLease { uid, router };
                self.probe_with(node, other, command, network, &name, Op::End)
            }
            7 => self.exclude(node, network),
            8 => {
                self.count(Fault::NameReleased);
                let command = Command::ReleaseName {
                    uid,
                    workload: spiffe(node, &format!("workload/{workload}")),
                    name: workload,
                };
                self.probe_with(node, own, command, network, &name, Op::Other)
            }
            9 => {
                self.count(Fault::OthersName);
                let lease = self.clients[client].lease.as_ref();
                let claim = Claim {
                    name: workload,
                    workload: spiffe(node, "workload/intruder"),
                    addresses: lease
                        .into_iter()
                        .flat_map(|lease| lease.addresses())
                        .collect(),
                    router,
                };
                let command = Command::ClaimName { uid, claim };
                self.probe_with(node, own, command, network, &name, Op::Other)
            }
            10 => {
                self.count(Fault::ServiceChanged);
                let service = format!("service-{}", self.rng.below(3));
                let command = if self.rng.one_in(3) {
                    Command::UnregisterService { name: service }
                } else {
                    let service = Service {
                        name: service,
                        ..Service::default()
                    };
                    Command::RegisterService { service }
                };
                let id = spiffe(node, "workload/services");
                self.probe_with(node, id, command, network, &name, Op::Other)
            }
            _ if self.rng.one_in(2) => {
                self.nodes[node].disk_fails = true;
                Ok(())
            }
            _ if !restored => {
                self.count(Fault::RouterSilent);
                self.nodes[node].somebody_lost = true;
                let lasts = self.millis(45_000, 70_000);
                self.clients[client].silent_until = self.now + lasts;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn probe_with(
        &mut self,
        node: usize,
        id: SpiffeId,
        command: Command,
        network: usize,
        name: &str,
        op: Op,
    ) -> Step {
        if op == Op::End {
            self.truth.ends(node, network, name);
        }
        let asked = Asked::Probe {
            network,
            name: name.to_owned(),
            op,
            arrived: self.now,
        };
        let peer = self.peer(node, node, id);
        self.ask(node, peer, command, asked)
    }

    /// One of the ranges that routers are given, of the domain's block.
    fn draw_range(&mut self, domain: usize) -> IpNet {
        let last = 16 * self.rng.below(16);
        let range = format!("10.{domain}.0.{last}/{LEN4}");
        range.parse().expect("a prefix")
    }

    /// What a router must not be given: its own pods, as it were.
    pub(super) fn draw_exclusions(&mut self, domain: usize, network: Option<usize>) -> Vec<IpNet> {
        let some = network.is_some() && self.rng.one_in(3);
        let count = if some { 1 + self.rng.below(4) } else { 0 };
        (0..count).map(|_| self.draw_range(domain)).collect()
    }

    fn exclude(&mut self, node: usize, network: usize) -> Step {
        if self.nodes[node].excluded.is_some() {
            return self.include(node);
        }
        self.count(Fault::Excluded);
        let range = self.draw_range(node);
        let uid = self.networks[network].uid;
        let command = Command::Exclude {
            uid,
            range,
            excluded: true,
        };
        let lasts = self.millis(5000, 40_000);
        self.later(lasts, Event::Undo(Undo::Exclude(node)));
        let peer = Peer::own(registry_id(node));
        self.ask(node, peer, command, Asked::Excluded(network, range))
    }

    pub(super) fn include(&mut self, node: usize) -> Step {
        let Some((network, range)) = self.nodes[node].excluded.take() else {
            return Ok(());
        };
        self.truth.includes(node, network, range);
        if self.nodes[node].machine.is_none() {
            let after = Duration::from_secs(1);
            self.nodes[node].excluded = Some((network, range));
            self.later(after, Event::Undo(Undo::Exclude(node)));
            return Ok(());
        }
        let uid = self.networks[network].uid;
        let command = Command::Exclude {
            uid,
            range,
            excluded: false,
        };
        let peer = Peer::own(registry_id(node));
        self.ask(node, peer, command, Asked::Operator)
    }

    /// Invariant 1: no prefix is of a range that its router or the document excludes.
    pub(super) fn check_own_exclusions(
        &self,
        client: usize,
        op: Op,
        result: &Result<Reply, Refusal>,
    ) -> Step {
        let (Op::Acquire, Ok(Reply::Lease(granted))) = (op, result) else {
            return Ok(());
        };
        let of = &self.clients[client];
        let network = of.network.map(|network| self.networks[network].document());
        let document = network.into_iter().flat_map(|of| &of.policy.exclusions);
        let mut excluded = of.exclusions.iter().chain(document);
        let hit = |range: &&IpNet| {
            let mut prefixes = granted.lease.prefixes();
            prefixes.any(|prefix| prefix.contains(*range) || range.contains(&prefix))
        };
        match excluded.find(hit) {
            Some(range) => {
                let what = format!(
                    "{} is granted {:?}, excluded is {range}",
                    of.name, granted.lease
                );
                Err(Broken::new(1, what))
            }
            None => Ok(()),
        }
    }
}
