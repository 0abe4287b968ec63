//! Routers, plain endpoints and watchers of each domain: what they want, and what they ask
//! for again and again until they have it.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use vl3_core::Mono;
use vl3_core::allocator::{self, Acquire, Lease};
use vl3_core::ids::{InstanceId, RouterName, SpiffeId, WorkloadName};
use vl3_core::registry::{
    CallId, Claim, Command, Endpoint, EndpointQuery, Input, Peer, Query, Refusal, Reply,
    WatchEvent, WatcherId,
};

use super::answers::Answer;
use super::cast::spiffe;
use super::faults::Fault;
use super::pipes::router_endpoint;
use super::world::{Asked, Event, Step, World};

const CALL_TIMEOUT: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Acquire,
    Renew,
    Release,
    /// By an operator.
    End,
    Register,
    Unregister,
    Claim,
    /// Whatever changes nothing that was promised.
    Other,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) domain: usize,
    /// None: an endpoint of the domain's own that no other domain sees.
    pub(super) network: Option<usize>,
    pub(super) name: String,
    pub(super) id: SpiffeId,
    /// What its prefixes must not be.
    pub(super) exclusions: Vec<IpNet>,
    pub(super) silent_until: Mono,
    /// Whether it wants to be there.
    pub(super) wants: bool,
    pub(super) lease: Option<Lease>,
    /// What it presents when it acquires again.
    pub(super) held: Option<Lease>,
    pub(super) instance: u8,
    /// Of what it registers.
    pub(super) version: u64,
    registered: bool,
    pending: Option<(u64, Mono)>,
    number: u64,
    turn: u64,
}

/// Somebody who watches, and what was told.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) node: usize,
    /// None: of another domain, not opened again.
    slot: Option<usize>,
    /// The domain of who watches.
    pub(super) of: usize,
    pub(super) peer: Peer,
    pub(super) query: EndpointQuery,
    /// None until the first events; a later generation of the same name may not be followed
    /// by a lower one of the same life.
    pub(super) seen: Option<BTreeMap<String, Arc<Endpoint>>>,
    /// It did not read all of its snapshot yet.
    pub(super) has_rest: bool,
}

impl World {
    pub(super) fn draw_clients(&mut self) {
        for domain in 0..self.nodes.len() {
            for network in 0..self.networks.len() {
                if network > 0 && domain > 1 {
                    continue;
                }
                let siblings = 1 + usize::from(self.rng.one_in(4));
                for sibling in 0..siblings {
                    let usual = format!("{}-d{domain}", self.networks[network].name);
                    let name = if sibling == 0 {
                        usual
                    } else {
                        format!("{usual}-2")
                    };
                    self.add_client(domain, Some(network), name, "vl3/router");
                }
            }
            self.add_client(domain, None, format!("plain-d{domain}"), "workload");
            for slot in 0..2 {
                self.later(Duration::from_millis(50), Event::Rewatch(domain * 2 + slot));
            }
        }
    }

    fn add_client(&mut self, domain: usize, network: Option<usize>, name: String, path: &str) {
        let id = spiffe(domain, &format!("{path}/{name}"));
        let client = self.clients.len();
        let exclusions = self.draw_exclusions(domain, network);
        self.clients.push(Client {
            domain,
            network,
            name,
            id,
            exclusions,
            silent_until: Mono::default(),
            wants: true,
            lease: None,
            held: None,
            instance: 1,
            version: 1,
            registered: false,
            pending: None,
            number: 0,
            turn: 0,
        });
        let after = self.millis(100, 6000);
        self.later(after, Event::Tick(client));
    }

    pub(super) fn tick(&mut self, client: usize) {
        let now = self.now;
        let of = &mut self.clients[client];
        if of.silent_until > now && !self.is_calm {
            return self.queue.push(of.silent_until, Event::Tick(client));
        }
        if let Some((_, until)) = of.pending.filter(|(_, until)| *until > now) {
            return self.queue.push(until, Event::Tick(client));
        }
        of.turn += 1;
        let op = match (of.network, of.wants, of.lease.is_some()) {
            (None, true, _) => Some(Op::Register),
            (_, false, _) if of.registered => Some(Op::Unregister),
            (Some(_), false, true) => Some(Op::Release),
            (_, false, _) => None,
            (Some(_), true, false) => Some(Op::Acquire),
            (Some(_), true, true) => Some(match of.turn % 4 {
                0 => Op::Claim,
                1 => Op::Renew,
                _ => Op::Register,
            }),
        };
        if let Some(op) = op {
            of.number += 1;
            of.pending = Some((of.number, now + CALL_TIMEOUT));
            let number = of.number;
            let event = Event::Call { client, number, op };
            if !self.is_calm && self.rng.one_in(20) {
                self.count(Fault::CallLost);
            } else {
                let after = self.millis(1, 10);
                self.later(after, event.clone());
                if !self.is_calm && self.rng.one_in(30) {
                    self.count(Fault::CallTwice);
                    let after = self.millis(10, 40);
                    self.later(after, event);
                }
            }
        }
        let after = self.millis(4000, 7000);
        self.later(after, Event::Tick(client));
    }

    fn command(&self, client: usize, op: Op) -> Option<Command> {
        let of = &self.clients[client];
        let router = || RouterName::new(&of.name).expect("a router name");
        let network = of.network.map(|network| &self.networks[network]);
        Some(match op {
            Op::Acquire => Command::Acquire {
                uid: network?.uid,
                acquire: Acquire {
                    router: router(),
                    instance: InstanceId([of.instance; 16]),
                    held: of.held.clone(),
                    prefix_len4: Some(28),
                    exclusions: of.exclusions.clone(),
                },
            },
            Op::Renew => Command::Renew {
                lease: of.lease.clone()?,
            },
            Op::End | Op::Other => return None,
            Op::Release => Command::Release {
                lease: of.lease.clone()?,
            },
            Op::Register => Command::RegisterEndpoint {
                endpoint: self.wanted(client)?,
                lifetime: None,
            },
            Op::Unregister => Command::UnregisterEndpoint {
                name: of.name.clone(),
            },
            Op::Claim => {
                let lease = of.lease.as_ref()?;
                let name = format!("w{}", of.turn / 4 % 3);
                Command::ClaimName {
                    uid: network?.uid,
                    claim: Claim {
                        name: WorkloadName::new(&name).expect("a label"),
                        workload: spiffe(of.domain, &format!("workload/{name}")),
                        addresses: lease.addresses().collect(),
                        router: router(),
                    },
                }
            }
        })
    }

    /// What the client registers now.
    pub(super) fn wanted(&self, client: usize) -> Option<Endpoint> {
        let of = &self.clients[client];
        let Some(network) = of.network else {
            return Some(Endpoint {
                name: of.name.clone(),
                services: vec!["plain".to_owned()],
                url: format!("tcp://192.0.2.9:{}", 6000 + of.version % 1000),
                ..Endpoint::default()
            });
        };
        let generation = of.lease.as_ref()?.generation;
        let network = &self.networks[network];
        let (name, version) = (&of.name, of.version);
        Some(router_endpoint(
            of.domain,
            network.uid,
            network.name.as_str(),
            name,
            generation,
            version,
        ))
    }

    pub(super) fn call_arrives(&mut self, client: usize, number: u64, op: Op) -> Step {
        let node = self.clients[client].domain;
        if self.nodes[node].machine.is_none() {
            return Ok(());
        }
        let Some(command) = self.command(client, op) else {
            return Ok(());
        };
        self.truth.asked(node, &command);
        let of = &self.clients[client];
        if let (Op::Release, Some(network)) = (op, of.network) {
            self.truth.ends(node, network, &of.name);
        }
        let peer = self.peer(node, node, self.clients[client].id.clone());
        let arrived = self.now;
        let asked = Asked::Client {
            client,
            number,
            op,
            arrived,
        };
        self.ask(node, peer, command, asked)
    }

    /// The registry answered: what it says now holds.
    pub(super) fn answered(
        &mut self,
        node: usize,
        call: CallId,
        result: Result<Reply, Refusal>,
    ) -> Step {
        if let Some(answer) = Answer::of(&result) {
            self.tally.met(answer);
        }
        match self.calls.remove(&call.0) {
            Some(Asked::Probe {
                network,
                name,
                op,
                arrived,
            }) => {
                let times = (arrived, self.now);
                self.truth
                    .answered(node, Some(network), &name, op, &result, times)
            }
            Some(Asked::Excluded(network, range)) => {
                if result.is_ok() {
                    self.truth.excludes(node, network, range);
                    self.nodes[node].excluded = Some((network, range));
                }
                Ok(())
            }
            Some(Asked::Client {
                client,
                number,
                op,
                arrived,
            }) => {
                self.note(node, format_args!("answers {op:?}: {}", result.is_ok()));
                let network = self.clients[client].network;
                let name = self.clients[client].name.clone();
                let times = (arrived, self.now);
                self.truth
                    .answered(node, network, &name, op, &result, times)?;
                self.check_own_exclusions(client, op, &result)?;
                if !self.is_calm && self.rng.one_in(25) {
                    self.count(Fault::ReplyLost);
                    return Ok(());
                }
                let after = self.millis(1, 10);
                let result = Box::new(result);
                self.later(
                    after,
                    Event::Answer {
                        client,
                        number,
                        result,
                    },
                );
                Ok(())
            }
            Some(Asked::Stranger(domain)) => self.check_stranger(node, domain, &result),
            Some(Asked::Watched(watcher, before)) => self.check_watch(watcher, before, result),
            Some(Asked::Operator) | None => Ok(()),
        }
    }

    pub(super) fn answer_arrives(
        &mut self,
        client: usize,
        number: u64,
        result: Result<Reply, Refusal>,
    ) {
        let of = &mut self.clients[client];
        if of.pending.is_none_or(|(pending, _)| pending != number) {
            return;
        }
        of.pending = None;
        match result {
            Ok(Reply::Lease(granted)) => {
                let is_new = of.lease.as_ref() != Some(&granted.lease);
                of.held = Some(granted.lease.clone());
                of.lease = Some(granted.lease);
                if is_new {
                    of.turn = 1;
                    self.later(Duration::from_millis(10), Event::Tick(client));
                }
            }
            Ok(Reply::Endpoint(_)) => of.registered = true,
            Ok(_) if !of.wants => {
                if of.registered {
                    of.registered = false;
                } else {
                    (of.lease, of.held) = (None, None);
                }
            }
            Err(Refusal::Lease(allocator::Refusal::Collision { .. })) => of.exclusions.clear(),
            Err(Refusal::Lease(allocator::Refusal::AcquireAgain { .. })) => of.lease = None,
            Err(Refusal::Lease(allocator::Refusal::Fenced { .. })) => {
                // As a process that starts again with another state directory would.
                of.instance += 1;
                (of.lease, of.held) = (None, None);
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Slots are two a domain: a router that watches everything, a workload one service.
    pub(super) fn open_watch(&mut self, slot: usize) -> Step {
        let node = slot / 2;
        if self.nodes[node].machine.is_none() {
            self.later(Duration::from_secs(1), Event::Rewatch(slot));
            return Ok(());
        }
        let watcher = WatcherId(self.number());
        let service = match slot % 2 {
            0 if node.is_multiple_of(2) => Vec::new(),
            0 => vec!["red".to_owned()],
            _ => vec![format!("red@d{}", (node + 1) % self.nodes.len())],
        };
        let query = EndpointQuery {
            services: service,
            ..EndpointQuery::default()
        };
        let path = match slot % 2 {
            0 => format!("vl3/router/red-d{node}"),
            _ => "workload/w".to_owned(),
        };
        let id = spiffe(node, &path);
        let peer = self.peer(node, node, id);
        let watch = Watch {
            node,
            slot: Some(slot),
            of: node,
            peer,
            query,
            seen: None,
            has_rest: false,
        };
        self.watch(watcher, watch)
    }

    /// Somebody of another domain watches what it may see, until it is cut.
    pub(super) fn watch_as_stranger(&mut self, node: usize, domain: usize) -> Step {
        let id = spiffe(domain, &format!("vl3/router/red-d{domain}"));
        let peer = self.peer(node, domain, id);
        if peer.vouched.is_empty() {
            return Ok(());
        }
        self.count(Fault::StrangerWatch);
        let watcher = WatcherId(self.number());
        let watch = Watch {
            node,
            slot: None,
            of: domain,
            peer,
            query: EndpointQuery::default(),
            seen: None,
            has_rest: false,
        };
        self.watch(watcher, watch)
    }

    fn watch(&mut self, watcher: WatcherId, watch: Watch) -> Step {
        let (node, peer) = (watch.node, watch.peer.clone());
        let query = Query::Endpoints(watch.query.clone());
        self.watches.insert(watcher, watch);
        self.input(
            node,
            Input::Watch {
                watcher,
                peer,
                query,
            },
        )
    }

    /// After a start: who watched opens the watch again.
    pub(super) fn watch_again(&mut self, node: usize) {
        let of = self.watches.iter().filter(|(_, watch)| watch.node == node);
        let of: Vec<_> = of.map(|(watcher, watch)| (*watcher, watch.slot)).collect();
        for (watcher, slot) in of {
            self.watches.remove(&watcher);
            if let Some(slot) = slot {
                self.later(Duration::from_millis(100), Event::Rewatch(slot));
            }
        }
    }

    pub(super) fn watch_ended(&mut self, watcher: WatcherId) {
        let watch = self.watches.remove(&watcher);
        if let Some(slot) = watch.and_then(|watch| watch.slot) {
            self.later(Duration::from_millis(500), Event::Rewatch(slot));
        }
    }

    /// A watcher took a page of its snapshot.
    pub(super) fn watch_rest(&mut self, node: usize, watcher: WatcherId) -> Step {
        if let Some(watch) = self.watches.get_mut(&watcher) {
            watch.has_rest = false;
        }
        self.input(node, Input::WatchRest { watcher })
    }

    pub(super) fn told(&mut self, watcher: WatcherId, events: Vec<WatchEvent>) -> Step {
        self.check_told(watcher, &events)?;
        let Some(watch) = self.watches.get_mut(&watcher) else {
            return Ok(());
        };
        let seen = watch.seen.get_or_insert_default();
        for event in events {
            if let WatchEvent::Endpoint { found, deleted } = event {
                if deleted {
                    seen.remove(&found.shown.endpoint().name);
                } else {
                    let endpoint = found.shown.endpoint();
                    seen.insert(endpoint.name.clone(), endpoint);
                }
            }
        }
        Ok(())
    }
}
