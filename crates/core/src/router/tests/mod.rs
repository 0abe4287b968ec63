//! Several routers in virtual time: every effect is carried out at once by a small world.

mod attach;
mod believed;
mod carried;
mod fenced;
mod fixture;
mod leaving;
mod links;
mod names;
mod own;
mod samples;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::allocator::Lease;
use crate::forward::PortId;
use crate::ids::*;
use crate::machine::{Machine, Outbox};
use crate::router::*;
use crate::time::{Mono, Now, Wall};

use fixture::*;

/// One router and what its shell would hold.
pub(super) struct Node {
    pub(super) machine: RouterMachine,
    pub(super) disk: State,
    pub(super) peers: BTreeMap<PortId, PeerSpec>,
    pub(super) answers: BTreeMap<u64, Result<Answer, Refusal>>,
    pub(super) fd: Vec<(FdSession, Result<FdGrant, String>)>,
    pub(super) closed: Vec<(ConnectionId, &'static str)>,
    pub(super) routes: Vec<crate::forward::Route>,
    pub(super) dials: usize,
    pub(super) released: Vec<Lease>,
    pub(super) own: Vec<ipnet::IpNet>,
    pub(super) own_tries: usize,
    /// Where peers are seen by now; no event has said so.
    pub(super) moved: BTreeMap<PortId, Endpoint>,
    /// Descriptors that have ended; no event has said so.
    pub(super) dead: BTreeSet<PortId>,
    streams: BTreeMap<StreamId, (String, StreamId)>,
    waiting: BTreeMap<u64, (String, crate::machine::Ticket, DialId)>,
}

pub(super) struct World {
    pub(super) now: Now,
    pub(super) nodes: BTreeMap<String, Node>,
    /// Pairs that cannot talk, both directions.
    pub(super) cut: BTreeSet<(String, String)>,
    pub(super) generation: BTreeMap<String, u64>,
    queue: VecDeque<(String, Input)>,
    calls: u64,
    pub(super) store_fails: bool,
    /// The own addresses cannot be set.
    pub(super) own_fails: bool,
}

impl World {
    pub(super) fn new(domains: &[&str]) -> Self {
        let now = Now {
            mono: Mono::from_secs(100),
            wall: Wall::from_unix_secs(1_800_000_000),
        };
        let mut world = Self {
            now,
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            generation: BTreeMap::new(),
            queue: VecDeque::new(),
            calls: 0,
            store_fails: false,
            own_fails: false,
        };
        for domain in domains {
            world.generation.insert((*domain).to_owned(), 1);
            world.boot(domain, State::default());
        }
        world
    }

    pub(super) fn boot(&mut self, domain: &str, disk: State) {
        let machine = RouterMachine::new(config(domain), disk.clone(), document());
        let node = Node {
            machine,
            disk,
            peers: BTreeMap::new(),
            answers: BTreeMap::new(),
            fd: Vec::new(),
            closed: Vec::new(),
            routes: Vec::new(),
            dials: 0,
            released: Vec::new(),
            own: Vec::new(),
            own_tries: 0,
            moved: BTreeMap::new(),
            dead: BTreeSet::new(),
            streams: BTreeMap::new(),
            waiting: BTreeMap::new(),
        };
        self.nodes.insert(domain.to_owned(), node);
        self.queue.retain(|(to, _)| to != domain);
        self.input(domain, Input::Start);
        self.input(domain, Input::Watch(WatchEvent::Opened));
        let all: Vec<_> = self.nodes.keys().cloned().collect();
        for other in all.iter().filter(|other| *other != domain) {
            self.show(domain, other);
            self.show(other, domain);
        }
        self.input(domain, Input::Watch(WatchEvent::Complete));
        self.run();
    }

    pub(super) fn show(&mut self, to: &str, whom: &str) {
        let discovered = Discovered {
            router: router_id(whom),
            uid: UID,
            generation: Generation(self.generation[whom]),
            dials_only: false,
            address: "192.0.2.1:5010".parse().unwrap(),
        };
        self.input(to, Input::Watch(WatchEvent::Found(discovered)));
    }

    pub(super) fn node(&self, domain: &str) -> &Node {
        &self.nodes[domain]
    }

    pub(super) fn input(&mut self, to: &str, input: Input) {
        self.queue.push_back((to.to_owned(), input));
    }

    /// Delivers everything that is under way.
    pub(super) fn run(&mut self) {
        for _ in 0..100_000 {
            let Some((to, input)) = self.queue.pop_front() else {
                return;
            };
            let mut out = Outbox::default();
            let now = self.now;
            if let Some(node) = self.nodes.get_mut(&to) {
                node.machine.handle(input, now, &mut out);
            }
            for effect in out.take() {
                self.carry_out(&to, effect);
            }
        }
        panic!("the machines do not come to rest");
    }

    pub(super) fn advance(&mut self, by: Duration) {
        let end = self.now.mono + by;
        for _ in 0..1_000_000 {
            let next = self
                .nodes
                .iter()
                .filter_map(|(d, n)| Some((n.machine.next_wake()?.0, d.clone())))
                .min();
            let Some((at, domain)) = next.filter(|(at, _)| *at <= end) else {
                break;
            };
            self.set_time(at.max(self.now.mono));
            let mut out = Outbox::default();
            let now = self.now;
            let node = self.nodes.get_mut(&domain).unwrap();
            node.machine.wake(now, &mut out);
            assert!(
                node.machine
                    .next_wake()
                    .is_none_or(|(next, _)| next > now.mono),
                "{:?}",
                node.machine.next_wake()
            );
            for effect in out.take() {
                self.carry_out(&domain, effect);
            }
            self.run();
        }
        self.set_time(end);
    }

    fn set_time(&mut self, to: Mono) {
        let by = to.saturating_since(self.now.mono);
        self.now = Now {
            mono: to,
            wall: self.now.wall + by,
        };
    }

    pub(super) fn call(
        &mut self,
        to: &str,
        make: impl FnOnce(CallId) -> Input,
    ) -> Result<Answer, Refusal> {
        self.calls += 1;
        let id = self.calls;
        self.input(to, make(CallId(id)));
        self.run();
        self.nodes
            .get_mut(to)
            .unwrap()
            .answers
            .remove(&id)
            .expect("answered at once")
    }

    fn is_cut(&self, a: &str, b: &str) -> bool {
        self.cut.contains(&(a.to_owned(), b.to_owned()))
            || self.cut.contains(&(b.to_owned(), a.to_owned()))
    }

    fn carry_out(&mut self, at: &str, effect: Effect) {
        let now = self.now;
        match effect {
            Effect::Append { ticket, records } => {
                let result = if self.store_fails {
                    Err("disk full".to_owned())
                } else {
                    Ok(())
                };
                if result.is_ok() {
                    let disk = &mut self.nodes.get_mut(at).unwrap().disk;
                    records.iter().for_each(|record| disk.apply(record));
                }
                self.input(at, Input::Appended { ticket, result });
            }
            Effect::SetPeer { ticket, peer } => {
                let node = self.nodes.get_mut(at).unwrap();
                let clash = node
                    .peers
                    .values()
                    .any(|p| p.public_key == peer.public_key && p.port != peer.port);
                assert!(!clash, "one key on two ports");
                node.peers.insert(peer.port, peer);
                self.input(
                    at,
                    Input::Installed {
                        ticket,
                        result: Ok(()),
                    },
                );
            }
            Effect::SetTun { ticket, .. } => self.input(
                at,
                Input::Installed {
                    ticket,
                    result: Ok(()),
                },
            ),
            Effect::RemovePort { port } => {
                let node = self.nodes.get_mut(at).unwrap();
                node.peers.remove(&port);
                node.dead.remove(&port);
            }
            Effect::SetRoutes { routes } => self.nodes.get_mut(at).unwrap().routes = routes,
            Effect::Answer { call, result } => {
                let node = self.nodes.get_mut(at).unwrap();
                match node.waiting.remove(&call.0) {
                    None => {
                        node.answers.insert(call.0, result);
                    }
                    Some((from, ticket, _)) => self.answer_dial(at, &from, ticket, result),
                }
            }
            Effect::ConnectionClosed { connection, reason } => {
                self.nodes
                    .get_mut(at)
                    .unwrap()
                    .closed
                    .push((connection, reason));
            }
            Effect::AnswerFd { session, result } => {
                self.nodes.get_mut(at).unwrap().fd.push((session, result))
            }
            Effect::AcquireLease { ticket, .. } | Effect::RenewLease { ticket, .. } => {
                let lease = lease(&config(at), self.generation[at]);
                let answer = LeaseAnswer {
                    lease,
                    renew_after: Duration::from_secs(600),
                };
                self.input(
                    at,
                    Input::Lease {
                        ticket,
                        result: Ok(answer),
                    },
                );
            }
            Effect::ClaimName { ticket, .. } => self.input(
                at,
                Input::Name {
                    ticket,
                    answer: NameAnswer::Granted,
                },
            ),
            Effect::Dial { ticket, dial } => self.dial(at, ticket, &dial),
            Effect::CloseDial { dial } => {
                let connection = connection_of(at, dial);
                for other in DOMAINS {
                    if other != at && self.nodes.contains_key(other) && !self.is_cut(at, other) {
                        self.calls += 1;
                        let (call, peer) = (CallId(self.calls), spiffe(at));
                        self.input(
                            other,
                            Input::Close {
                                call,
                                connection: connection.clone(),
                                peer,
                            },
                        );
                    }
                }
            }
            Effect::OpenRoutes { dial, open } => self.open_routes(at, dial, open),
            Effect::SendRoutes { stream, messages } => {
                if let Some((other, theirs)) = self.nodes[at].streams.get(&stream).cloned()
                    && !self.is_cut(at, &other)
                {
                    for message in messages {
                        let event = RoutesEvent::Message(message);
                        self.input(
                            &other,
                            Input::Routes {
                                stream: theirs,
                                event,
                            },
                        );
                    }
                }
            }
            Effect::CloseRoutes { stream, .. } => self.end_stream(at, stream),
            Effect::ReadPorts => {
                let node = &self.nodes[at];
                let samples = node.peers.values().map(|peer| {
                    let heard = self
                        .peer_of(at, peer.public_key)
                        .is_some_and(|other| !self.is_cut(at, &other));
                    PortSample {
                        port: peer.port,
                        last_receive: heard.then_some(now.mono),
                        last_send: Some(now.mono),
                        endpoint: node.moved.get(&peer.port).copied().or(peer.endpoint),
                        failed: false,
                    }
                });
                let dead = node.dead.iter().map(|port| PortSample {
                    port: *port,
                    last_receive: None,
                    last_send: None,
                    endpoint: None,
                    failed: true,
                });
                let samples = samples.chain(dead).collect();
                self.input(at, Input::Ports(samples));
            }
            Effect::ReleaseLease { lease } => self.nodes.get_mut(at).unwrap().released.push(lease),
            Effect::SetOwnAddresses {
                ticket, addresses, ..
            } => {
                self.nodes.get_mut(at).unwrap().own_tries += 1;
                let result = if self.own_fails {
                    Err("netlink: no buffer".to_owned())
                } else {
                    self.nodes.get_mut(at).unwrap().own = addresses;
                    Ok(())
                };
                self.input(at, Input::Installed { ticket, result });
            }
            Effect::ReleaseName { .. }
            | Effect::Register { .. }
            | Effect::Unregister
            | Effect::CedeRegistration
            | Effect::Probe { .. }
            | Effect::Publish { .. } => {}
        }
    }

    /// Whose key it is, if that router lives and has us as a peer.
    fn peer_of(&self, at: &str, key: PublicKey) -> Option<String> {
        let own = config(at).public_key;
        self.nodes
            .iter()
            .find(|(d, node)| {
                config(d).public_key == key && node.peers.values().any(|p| p.public_key == own)
            })
            .map(|(d, _)| d.clone())
    }

    fn dial(&mut self, at: &str, ticket: crate::machine::Ticket, dial: &Dial) {
        let other = dial.router.domain.to_string();
        self.nodes.get_mut(at).unwrap().dials += 1;
        if self.is_cut(at, &other) || !self.nodes.contains_key(&other) {
            let result = Err(DialFailure::Unreachable("cut".to_owned()));
            return self.input(at, Input::Dialled { ticket, result });
        }
        self.calls += 1;
        let call = self.calls;
        let request = Request {
            connection: connection_of(at, dial.dial),
            peer: spiffe(at),
            claimed: None,
            hello: Some(dial.hello.clone()),
            name: None,
            mechanism: MechanismWish::WireGuard {
                public_key: dial.public_key,
            },
            addresses: Vec::new(),
            excluded: Vec::new(),
            mtu: dial.mtu,
            expires_in: Duration::from_secs(600),
            local: None,
        };
        self.nodes
            .get_mut(&other)
            .unwrap()
            .waiting
            .insert(call, (at.to_owned(), ticket, dial.dial));
        self.input(
            &other,
            Input::Request {
                call: CallId(call),
                request: Box::new(request),
            },
        );
    }

    fn answer_dial(
        &mut self,
        by: &str,
        to: &str,
        ticket: crate::machine::Ticket,
        result: Result<Answer, Refusal>,
    ) {
        let result = match result {
            Ok(Answer::Link(answer)) => Ok(Box::new(DialAnswer {
                peer: spiffe(by),
                hello: answer.hello,
                public_key: answer.public_key,
                endpoint: Endpoint {
                    remote: (answer.address, answer.port).into(),
                    local: None,
                },
                mtu: answer.mtu,
                expires_in: Duration::from_secs(600),
            })),
            Ok(other) => panic!("a router was answered {other:?}"),
            Err(refusal) => Err(DialFailure::Refused(refusal.to_string())),
        };
        self.input(to, Input::Dialled { ticket, result });
    }

    fn open_routes(&mut self, at: &str, dial: DialId, open: RoutesOpen) {
        let connection = connection_of(at, dial);
        let other = self
            .nodes
            .iter()
            .find(|(d, n)| *d != at && n.machine.links.serves(&connection))
            .map(|(d, _)| d.clone());
        let Some(other) = other.filter(|other| !self.is_cut(at, other)) else {
            return self.input(
                at,
                Input::RoutesFailed {
                    dial,
                    reason: "cut".to_owned(),
                },
            );
        };
        self.calls += 2;
        let (mine, theirs) = (StreamId(self.calls), StreamId(self.calls + 1));
        self.nodes
            .get_mut(at)
            .unwrap()
            .streams
            .insert(mine, (other.clone(), theirs));
        self.nodes
            .get_mut(&other)
            .unwrap()
            .streams
            .insert(theirs, (at.to_owned(), mine));
        let hello = |d: &str| RoutesOpen {
            uid: UID,
            router: router_id(d),
            instance: config(d).instance,
            generation: Generation(self.generation[d]),
        };
        let answer = hello(&other);
        let started = |peer: &str, open, dialled| RoutesEvent::Started {
            peer: spiffe(peer),
            open,
            dialled,
        };
        self.input(
            &other,
            Input::Routes {
                stream: theirs,
                event: started(at, open, false),
            },
        );
        self.input(
            at,
            Input::Routes {
                stream: mine,
                event: started(&other, answer, true),
            },
        );
    }

    fn end_stream(&mut self, at: &str, stream: StreamId) {
        let Some((other, theirs)) = self.nodes.get_mut(at).unwrap().streams.remove(&stream) else {
            return;
        };
        self.input(
            at,
            Input::Routes {
                stream,
                event: RoutesEvent::Ended,
            },
        );
        if let Some(node) = self.nodes.get_mut(&other) {
            node.streams.remove(&theirs);
            self.input(
                &other,
                Input::Routes {
                    stream: theirs,
                    event: RoutesEvent::Ended,
                },
            );
        }
    }
}

pub(super) fn spiffe(domain: &str) -> SpiffeId {
    SpiffeId::new(&format!("spiffe://{domain}.test/vl3/router/red-{domain}")).unwrap()
}

fn connection_of(domain: &str, dial: DialId) -> ConnectionId {
    ConnectionId::new(&format!("{domain}-dial-{}", dial.0)).unwrap()
}
