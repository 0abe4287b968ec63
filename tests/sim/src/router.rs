//! A router's process: the machine, its disk, and a shell that is as thin as the real one.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use vl3_core::allocator::{Acquire, Lease, Refusal as LeaseRefusal};
use vl3_core::document::{Chain, DocumentStore, Offer};
use vl3_core::ids::{InstanceId, PublicKey, SpiffeId};
use vl3_core::registry::{
    Claim, Command, Endpoint as Listed, Marks, Query, Refusal as RegistryRefusal, Reply,
    WatchEvent as RegistryEvent,
};
use vl3_core::router::{
    Answer, CallId, Config, ConnectionId, Dial, DialAnswer, DialEvent, DialFailure, DialId,
    Discovered, Effect, Endpoint, Input, LeaseAnswer, LeaseFailure, MechanismWish, NameAnswer,
    Record, Registration, Request, ResolverView, RouterId, RouterMachine, RoutesEvent,
    RoutesMessage, RoutesOpen, State, StreamId, Times, WatchEvent,
};
use vl3_core::{Machine as _, Outbox, Ticket};

use crate::broken::Broken;
use crate::cast::{Cast, domain_name};
use crate::disk::Disk;
use crate::dns::Dns;
use crate::event::{Awaits, CallBody, Chore, Event, Node, PipeBody, PipeKind, ReplyBody};
use crate::faults::Fault;
use crate::plane::Plane;
use crate::world::World;

/// How long a router's own tokens live; its NSM connections are refreshed within that.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const REGISTRATION_EVERY: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Router {
    pub role: usize,
    pub lives: u32,
    pub machine: Option<RouterMachine>,
    pub disk: Disk<Record>,
    pub plane: Plane,
    pub address: SocketAddr,
    pub clock_offset: i64,
    /// It says things that are not so.
    pub lies: bool,
    pub instance: InstanceId,
    pub key: PublicKey,
    pub lease: Option<Lease>,
    pub view: ResolverView,
    pub dns: Dns,
    /// It will not be started again.
    pub retired: bool,
    /// Where each dialled connection goes to.
    pub dials: BTreeMap<DialId, (Node, ConnectionId)>,
    monitors: BTreeMap<DialId, u64>,
    watches: BTreeMap<u64, bool>,
    registration: Option<Registration>,
    documents: DocumentStore,
    seed: u64,
}

impl Router {
    pub fn new(role: usize, instance: u8, seed: u64, cast: &Cast) -> Self {
        let part = &cast.routers[role];
        let mut address = part.address;
        if let (IpAddr::V4(v4), true) = (address.ip(), instance > 0) {
            let mut octets = v4.octets();
            octets[3] += 50 + instance;
            address.set_ip(IpAddr::V4(octets.into()));
        }
        let mut bytes = [instance; 16];
        bytes[0] = u8::try_from(role).unwrap_or(u8::MAX);
        bytes[1] = 1;
        let mut key = [instance + 1; 32];
        key[0] = bytes[0];
        let first = &cast.networks[part.network].versions
            [usize::from(cast.late == Some(part.domain) && part.network == 0)];
        Self {
            role,
            lives: 0,
            machine: None,
            disk: Disk::default(),
            plane: Plane::default(),
            address,
            clock_offset: 0,
            lies: false,
            instance: InstanceId(bytes),
            key: PublicKey(key),
            lease: None,
            view: ResolverView::default(),
            dns: Dns::new(seed),
            retired: false,
            dials: BTreeMap::new(),
            monitors: BTreeMap::new(),
            watches: BTreeMap::new(),
            registration: None,
            documents: DocumentStore::new(first.clone()),
            seed,
        }
    }

    fn config(&self, cast: &Cast) -> Config {
        let part = &cast.routers[self.role];
        Config {
            router: self.router_id(cast),
            uid: cast.networks[part.network].uid,
            instance: self.instance,
            public_key: self.key,
            dials_only: part.dials_only,
            udp_port: 51820,
            advertise: None,
            exclusions: Vec::new(),
            // Different sizes, so that a first fit has gaps to respect.
            prefix_len4: [28, 26, 0, 27][self.role % 4],
            mtu: 1420,
            limits: vl3_core::router::Limits::default(),
            // As long as the tokens live; names are claimed again within their life.
            times: Times {
                restored_life: TOKEN_LIFE,
                name_refresh: Duration::from_secs(5),
                ..Times::default()
            },
            seed: self.seed,
        }
    }

    pub fn router_id(&self, cast: &Cast) -> RouterId {
        let part = &cast.routers[self.role];
        RouterId {
            name: part.name.clone(),
            domain: domain_name(part.domain),
        }
    }

    pub fn document(&self) -> &vl3_core::document::Document {
        self.documents.document()
    }

    /// It knows that somebody newer has its name.
    pub fn is_fenced(&self) -> bool {
        self.machine.as_ref().is_some_and(RouterMachine::is_fenced)
    }

    /// Another state directory in place of this one.
    pub fn forget_everything(&mut self) {
        self.disk.lose();
        self.lease = None;
        self.instance.0[15] += 1;
        self.key.0[31] = self.key.0[31].wrapping_add(1);
    }
}

impl World {
    /// From its disk, as after a crash.
    pub fn start_router(&mut self, index: usize) -> Result<(), Broken> {
        let now = self.now_at(Node::Router(index));
        let cast = &self.cast;
        let router = &mut self.routers[index];
        if router.machine.is_some() {
            return Ok(());
        }
        let mut state = State::default();
        for record in router.disk.records() {
            state.apply(record);
        }
        let network = &cast.networks[cast.routers[router.role].network];
        if let Some(chain) = state
            .document
            .as_ref()
            .and_then(|bytes| network.chain_of(bytes))
        {
            router.documents.apply(chain.clone());
        }
        router.lives += 1;
        router.lease.clone_from(&state.lease);
        router.plane = Plane::default();
        router.view = ResolverView::default();
        router.dns = Dns::new(router.seed);
        router.dials.clear();
        router.monitors.clear();
        router.watches.clear();
        router.registration = None;
        let document = vl3_core::document::Document::clone(router.documents.document());
        let config = router.config(cast);
        router.seed = router.seed.wrapping_add(1);
        router.machine = Some(RouterMachine::new(config, state, document));
        self.note(&Node::Router(index), format_args!("starts"));
        let _ = now;
        self.router_input(index, Input::Start)?;
        let life = self.life(Node::Router(index));
        for document in [true, false] {
            self.later(
                Duration::from_millis(5),
                Event::Chore {
                    to: life,
                    chore: Chore::OpenWatch { document },
                },
            );
        }
        Ok(())
    }

    pub fn crash_router(&mut self, index: usize) {
        let life = self.life(Node::Router(index));
        let router = &mut self.routers[index];
        if router.machine.take().is_none() {
            return;
        }
        router.disk.crash(&mut self.rng);
        self.note(&Node::Router(index), format_args!("crashes"));
        self.break_pipes_of(life);
        self.descriptors_end(index);
    }

    pub fn router_input(&mut self, index: usize, input: Input) -> Result<(), Broken> {
        let now = self.now_at(Node::Router(index));
        self.note(&Node::Router(index), format_args!("<- {input:?}"));
        let Some(machine) = self.routers[index].machine.as_mut() else {
            return Ok(());
        };
        let mut out = Outbox::default();
        machine.handle(input, now, &mut out);
        self.router_effects(index, out)
    }

    pub fn wake_router(&mut self, index: usize) -> Result<(), Broken> {
        let now = self.now_at(Node::Router(index));
        let Some(machine) = self.routers[index].machine.as_mut() else {
            return Ok(());
        };
        let mut out = Outbox::default();
        machine.wake(now, &mut out);
        self.router_effects(index, out)
    }

    fn router_effects(&mut self, index: usize, mut out: Outbox<Effect>) -> Result<(), Broken> {
        for effect in out.take() {
            self.note(&Node::Router(index), format_args!("-> {effect:?}"));
            self.router_effect(index, effect)?;
        }
        self.check_router(index)
    }

    fn local(&mut self, index: usize, micros: u64, input: Input) {
        let to = self.life(Node::Router(index));
        self.later(
            Duration::from_micros(micros),
            Event::Local {
                to,
                input: Box::new(input),
            },
        );
    }

    fn router_effect(&mut self, index: usize, effect: Effect) -> Result<(), Broken> {
        let node = Node::Router(index);
        let life = self.life(node);
        match effect {
            Effect::Append { ticket, records } => {
                self.routers[index].disk.start_append(records);
                let took = 300 + self.rng.below(3_000);
                self.later(
                    Duration::from_micros(took),
                    Event::Synced { to: life, ticket },
                );
            }
            Effect::SetPeer { ticket, peer } => {
                let handshake = self.routers[index].plane.set_peer(&peer);
                if handshake {
                    self.handshake(index, peer.port);
                }
                self.local(
                    index,
                    100,
                    Input::Installed {
                        ticket,
                        result: Ok(()),
                    },
                );
            }
            Effect::SetTun {
                ticket,
                session,
                port,
                class,
                mtu: _,
            } => {
                self.routers[index].plane.set_tun(port, class, session);
                self.local(
                    index,
                    100,
                    Input::Installed {
                        ticket,
                        result: Ok(()),
                    },
                );
            }
            Effect::RemovePort { port } => self.routers[index].plane.remove(port),
            Effect::SetRoutes { routes } => {
                self.routers[index].plane.set_routes(routes);
                self.check_table(index)?;
            }
            Effect::SetOwnAddresses { addresses, .. } => {
                self.routers[index].plane.own = addresses.iter().map(IpNet::addr).collect();
            }
            Effect::Answer { call, result } => {
                self.answer(node, call.0, ReplyBody::Router(Box::new(result)))
            }
            Effect::ConnectionClosed { connection, .. } => {
                self.connection_closed(index, &connection)
            }
            Effect::Dial { ticket, dial } => self.dial(index, ticket, &dial),
            Effect::CloseDial { dial } => {
                if let Some((to, connection)) = self.routers[index].dials.remove(&dial) {
                    if let Some(pipe) = self.routers[index].monitors.remove(&dial) {
                        self.close_pipe(pipe, 0);
                    }
                    self.call(node, to, CallBody::Close { connection }, Awaits::Nothing);
                }
            }
            Effect::OpenRoutes { dial, open } => match self.routers[index].dials.get(&dial) {
                Some((to, _)) => {
                    let to = *to;
                    self.open_pipe(node, to, PipeKind::Routes { dial, open });
                }
                None => {
                    let reason = "no such connection".to_owned();
                    self.local(index, 100, Input::RoutesFailed { dial, reason });
                }
            },
            Effect::SendRoutes { stream, messages } => self.send_routes(index, stream, messages),
            Effect::CloseRoutes { stream, .. } => {
                self.close_pipe(stream.0 / 2, usize::from(stream.0 % 2 == 1))
            }
            Effect::AnswerFd { session, result } => {
                self.fd_answered(index, session, result.is_ok())
            }
            Effect::AcquireLease {
                ticket,
                held,
                prefix_len4,
                exclusions,
            } => {
                let uid = self.routers[index].documents.uid();
                let acquire = Acquire {
                    router: self.cast.routers[self.routers[index].role].name.clone(),
                    instance: self.routers[index].instance,
                    held,
                    prefix_len4: (prefix_len4 > 0).then_some(prefix_len4),
                    exclusions,
                };
                self.ask_registry(
                    index,
                    Command::Acquire { uid, acquire },
                    Awaits::Lease(ticket),
                );
            }
            Effect::RenewLease { ticket, lease } => {
                self.ask_registry(index, Command::Renew { lease }, Awaits::Lease(ticket));
            }
            Effect::ReleaseLease { lease } => {
                self.ask_registry(index, Command::Release { lease }, Awaits::Nothing);
            }
            Effect::ClaimName {
                ticket,
                name,
                workload,
                addresses,
            } => {
                let uid = self.routers[index].documents.uid();
                let router = self.cast.routers[self.routers[index].role].name.clone();
                let claim = Claim {
                    name,
                    workload,
                    addresses,
                    router,
                };
                self.ask_registry(
                    index,
                    Command::ClaimName { uid, claim },
                    Awaits::Name(ticket),
                );
            }
            Effect::ReleaseName { name, workload } => {
                let uid = self.routers[index].documents.uid();
                self.ask_registry(
                    index,
                    Command::ReleaseName {
                        uid,
                        name,
                        workload,
                    },
                    Awaits::Nothing,
                );
            }
            Effect::Register { registration } => {
                self.routers[index].registration = Some(registration);
                self.register(index);
            }
            Effect::Unregister => {
                if self.routers[index].registration.take().is_some() {
                    let name = self.cast.routers[self.routers[index].role].name.to_string();
                    self.ask_registry(index, Command::UnregisterEndpoint { name }, Awaits::Nothing);
                }
            }
            Effect::Probe {
                port,
                source,
                destination,
            } => self.probe(index, port, source, destination),
            Effect::ReadPorts => {
                let samples = self.routers[index].plane.samples();
                self.local(index, 50, Input::Ports(samples));
            }
            Effect::Publish { view } => {
                self.routers[index].view = *view;
                self.dns_view(index)?;
            }
        }
        Ok(())
    }

    fn ask_registry(&mut self, index: usize, command: Command, awaits: Awaits) {
        let domain = self.site(Node::Router(index));
        let body = CallBody::Registry(Box::new(command));
        self.call(Node::Router(index), Node::Registry(domain), body, awaits);
    }

    fn register(&mut self, index: usize) {
        let Some(registration) = self.routers[index].registration.clone() else {
            return;
        };
        let role = &self.cast.routers[self.routers[index].role];
        let service = self.cast.networks[role.network].name.to_string();
        let marks = Marks {
            service: service.clone(),
            proto: "1-1".to_owned(),
            role: "router".to_owned(),
            uid: registration.uid,
            domain: registration.router.domain.clone(),
            name: registration.router.name.to_string(),
            generation: registration.generation,
            dials_only: registration.dials_only,
            udp: None,
        };
        let endpoint = Listed {
            name: role.name.to_string(),
            services: vec![service.clone()],
            labels: BTreeMap::from([(service, marks.labels())]),
            url: format!("tcp://{}", self.routers[index].address),
            registered: None,
            path_ids: vec![role.id.to_string()],
        };
        let command = Command::RegisterEndpoint {
            endpoint,
            lifetime: Some(Duration::from_secs(60)),
        };
        self.ask_registry(index, command, Awaits::Registered);
        let to = self.life(Node::Router(index));
        self.later(
            REGISTRATION_EVERY,
            Event::Chore {
                to,
                chore: Chore::Register,
            },
        );
    }

    pub fn router_chore(&mut self, index: usize, chore: Chore) {
        let node = Node::Router(index);
        match chore {
            Chore::OpenWatch { document } => {
                let uid = self.routers[index].documents.uid();
                let role = &self.cast.routers[self.routers[index].role];
                let service = self.cast.networks[role.network].name.to_string();
                let query = if document {
                    Query::Document(uid)
                } else {
                    endpoints_of(&service)
                };
                let to = Node::Registry(role.domain);
                self.open_pipe(node, to, PipeKind::Watch { query });
            }
            Chore::Register => self.register(index),
            Chore::OpenMonitor { dial } => {
                if let Some((to, connection)) = self.routers[index].dials.get(&dial).cloned() {
                    let pipe = self.open_pipe(node, to, PipeKind::Monitor { dial, connection });
                    self.routers[index].monitors.insert(dial, pipe);
                }
            }
            Chore::Live | Chore::KeepAlive => {}
        }
    }

    fn dial(&mut self, index: usize, ticket: Ticket, dial: &Dial) {
        let node = Node::Router(index);
        let life = self.life(node);
        let Some(to) = self.at_address(dial.address.ip()) else {
            let failure = DialFailure::Unreachable("nobody there".to_owned());
            self.local(
                index,
                1000,
                Input::Dialled {
                    ticket,
                    result: Err(failure),
                },
            );
            return;
        };
        // The dial expects the trust domain that the document states.
        if self.id(to).trust_domain() != dial.trust_domain {
            let failure = DialFailure::Unreachable("another trust domain answers".to_owned());
            self.local(
                index,
                1000,
                Input::Dialled {
                    ticket,
                    result: Err(failure),
                },
            );
            return;
        }
        let name = format!("{node}.{}-{}", life.count, dial.dial.0);
        let connection = ConnectionId::new(&name).expect("printable");
        self.routers[index]
            .dials
            .insert(dial.dial, (to, connection.clone()));
        let request = Request {
            connection,
            peer: self.id(node),
            claimed: None,
            hello: Some(dial.hello.clone()),
            name: None,
            mechanism: MechanismWish::WireGuard {
                public_key: dial.public_key,
            },
            addresses: dial.addresses.iter().map(IpNet::addr).collect(),
            excluded: Vec::new(),
            mtu: dial.mtu,
            expires_in: TOKEN_LIFE,
            local: self.place_of(to),
        };
        let awaits = Awaits::Dialled {
            ticket,
            dial: dial.dial,
            to,
        };
        self.call(node, to, CallBody::Request(Box::new(request)), awaits);
    }

    fn place_of(&self, node: Node) -> Option<IpAddr> {
        match node {
            Node::Router(index) => Some(self.routers[index].address.ip()),
            Node::Registry(_) | Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => None,
        }
    }

    pub fn serve_router(
        &mut self,
        index: usize,
        call: u64,
        peer: SpiffeId,
        body: CallBody,
    ) -> Result<(), Broken> {
        match body {
            CallBody::Request(request) => self.router_input(
                index,
                Input::Request {
                    call: CallId(call),
                    request,
                },
            ),
            CallBody::Close { connection } => self.router_input(
                index,
                Input::Close {
                    call: CallId(call),
                    connection,
                    peer,
                },
            ),
            CallBody::Registry(_) => Ok(()),
        }
    }

    pub fn router_answered(
        &mut self,
        index: usize,
        awaits: Awaits,
        body: ReplyBody,
    ) -> Result<(), Broken> {
        let input = match (awaits, body) {
            (Awaits::Lease(ticket), body) => {
                let result = lease_answer(body);
                if let Ok(answer) = &result {
                    self.routers[index].lease = Some(answer.lease.clone());
                    self.lease_granted(index, &answer.lease.clone())?;
                }
                Input::Lease { ticket, result }
            }
            (Awaits::Name(ticket), body) => {
                let answer = match body {
                    ReplyBody::Registry(Ok(Reply::Name { held_by: None })) => NameAnswer::Granted,
                    ReplyBody::Registry(Ok(Reply::Name { held_by: Some(by) })) => {
                        NameAnswer::Held { by: by.to_string() }
                    }
                    _ => NameAnswer::Unreachable,
                };
                Input::Name { ticket, answer }
            }
            (Awaits::Registered, ReplyBody::Registry(Ok(_))) => return Ok(()),
            (Awaits::Registered, _) => {
                let to = self.life(Node::Router(index));
                self.later(
                    Duration::from_millis(1500),
                    Event::Chore {
                        to,
                        chore: Chore::Register,
                    },
                );
                return Ok(());
            }
            (Awaits::Dialled { ticket, dial, to }, body) => {
                let result = self.dial_answer(to, body);
                if result.is_ok() && !self.routers[index].monitors.contains_key(&dial) {
                    self.router_chore(index, Chore::OpenMonitor { dial });
                }
                Input::Dialled { ticket, result }
            }
            (Awaits::Attached | Awaits::Nothing, _) => return Ok(()),
        };
        self.router_input(index, input)
    }

    fn dial_answer(&self, to: Node, body: ReplyBody) -> Result<Box<DialAnswer>, DialFailure> {
        match body {
            ReplyBody::Router(answer) => match *answer {
                Ok(Answer::Link(link)) => Ok(Box::new(DialAnswer {
                    peer: self.id(to),
                    hello: link.hello,
                    public_key: link.public_key,
                    endpoint: Endpoint {
                        remote: SocketAddr::new(link.address, link.port),
                        local: None,
                    },
                    mtu: link.mtu,
                    expires_in: TOKEN_LIFE,
                })),
                Ok(other) => Err(DialFailure::Refused(format!("{other:?}"))),
                Err(refusal) => Err(DialFailure::Refused(refusal.to_string())),
            },
            ReplyBody::Registry(_) | ReplyBody::Nothing => {
                Err(DialFailure::Unreachable("no answer".to_owned()))
            }
        }
    }

    // --- streams

    pub fn router_accepts(
        &mut self,
        index: usize,
        pipe: u64,
        peer: SpiffeId,
        kind: PipeKind,
    ) -> Result<(), Broken> {
        match kind {
            PipeKind::Routes { open, .. } => {
                let words = self.routers[index]
                    .machine
                    .as_ref()
                    .map(RouterMachine::routes_open);
                self.accept_pipe(pipe, words);
                let stream = StreamId(pipe * 2 + 1);
                self.router_input(
                    index,
                    Input::Routes {
                        stream,
                        event: RoutesEvent::Started {
                            peer,
                            open,
                            dialled: false,
                        },
                    },
                )
            }
            PipeKind::Monitor { connection, .. } => {
                self.accept_pipe(pipe, None);
                let machine = self.routers[index].machine.as_ref();
                let known = machine.is_some_and(|machine| machine.knows(&connection));
                let event = if known {
                    DialEvent::Up
                } else {
                    DialEvent::Deleted
                };
                self.send(pipe, 1, PipeBody::Monitor(event));
                Ok(())
            }
            PipeKind::Watch { .. } | PipeKind::Sync { .. } => Ok(()),
        }
    }

    pub fn router_pipe_ready(
        &mut self,
        index: usize,
        pipe: u64,
        peer: SpiffeId,
        kind: PipeKind,
        answer: Option<RoutesOpen>,
    ) -> Result<(), Broken> {
        match (kind, answer) {
            (PipeKind::Watch { query }, _) => {
                let document = matches!(query, Query::Document(_));
                self.routers[index].watches.insert(pipe, document);
                if document {
                    Ok(())
                } else {
                    self.router_input(index, Input::Watch(WatchEvent::Opened))
                }
            }
            (PipeKind::Routes { .. }, Some(open)) => {
                let event = RoutesEvent::Started {
                    peer,
                    open,
                    dialled: true,
                };
                self.router_input(
                    index,
                    Input::Routes {
                        stream: StreamId(pipe * 2),
                        event,
                    },
                )
            }
            (PipeKind::Routes { .. } | PipeKind::Monitor { .. } | PipeKind::Sync { .. }, _) => {
                Ok(())
            }
        }
    }

    pub fn router_pipe_failed(&mut self, index: usize, kind: &PipeKind) -> Result<(), Broken> {
        let to = self.life(Node::Router(index));
        match kind {
            PipeKind::Watch { query } => {
                let document = matches!(query, Query::Document(_));
                let after = Duration::from_millis(500 + self.rng.below(500));
                self.later(
                    after,
                    Event::Chore {
                        to,
                        chore: Chore::OpenWatch { document },
                    },
                );
                Ok(())
            }
            PipeKind::Routes { dial, .. } => self.router_input(
                index,
                Input::RoutesFailed {
                    dial: *dial,
                    reason: "no answer".to_owned(),
                },
            ),
            PipeKind::Monitor { dial, .. } => self.monitor_lost(index, *dial),
            PipeKind::Sync { .. } => Ok(()),
        }
    }

    fn monitor_lost(&mut self, index: usize, dial: DialId) -> Result<(), Broken> {
        self.routers[index].monitors.remove(&dial);
        if !self.routers[index].dials.contains_key(&dial) {
            return Ok(());
        }
        let to = self.life(Node::Router(index));
        self.later(
            Duration::from_secs(1),
            Event::Chore {
                to,
                chore: Chore::OpenMonitor { dial },
            },
        );
        self.router_input(
            index,
            Input::Dial {
                dial,
                event: DialEvent::Down,
            },
        )
    }

    pub fn router_pipe_ended(
        &mut self,
        index: usize,
        pipe: u64,
        side: usize,
        kind: &PipeKind,
    ) -> Result<(), Broken> {
        match kind {
            PipeKind::Watch { .. } => {
                self.routers[index].watches.remove(&pipe);
                self.router_pipe_failed(index, kind)
            }
            PipeKind::Routes { .. } => {
                let stream = StreamId(pipe * 2 + u64::from(side == 1));
                self.router_input(
                    index,
                    Input::Routes {
                        stream,
                        event: RoutesEvent::Ended,
                    },
                )
            }
            PipeKind::Monitor { dial, .. } if side == 0 => {
                if self.routers[index].monitors.get(dial) == Some(&pipe) {
                    self.monitor_lost(index, *dial)
                } else {
                    Ok(())
                }
            }
            PipeKind::Monitor { .. } | PipeKind::Sync { .. } => Ok(()),
        }
    }

    pub fn router_pipe_data(
        &mut self,
        index: usize,
        pipe: u64,
        side: usize,
        kind: &PipeKind,
        body: PipeBody,
    ) -> Result<(), Broken> {
        match (body, kind) {
            (PipeBody::Watch(events), _) => {
                for event in events {
                    match event {
                        RegistryEvent::Document(chain) => self.document_offered(index, chain)?,
                        RegistryEvent::Endpoint { found, deleted } => {
                            if let Some(event) = watch_event(&found.endpoint, deleted) {
                                self.router_input(index, Input::Watch(event))?;
                            }
                        }
                        RegistryEvent::Service { .. } => {}
                    }
                }
                Ok(())
            }
            (PipeBody::Routes(message), _) => {
                let stream = StreamId(pipe * 2 + u64::from(side == 1));
                self.router_input(
                    index,
                    Input::Routes {
                        stream,
                        event: RoutesEvent::Message(message),
                    },
                )
            }
            (PipeBody::Monitor(event), PipeKind::Monitor { dial, .. }) => {
                let dial = *dial;
                if event == DialEvent::Deleted {
                    self.close_pipe(pipe, 0);
                    self.routers[index].monitors.remove(&dial);
                }
                self.router_input(index, Input::Dial { dial, event })
            }
            (PipeBody::Monitor(_) | PipeBody::Sync(_), _) => Ok(()),
        }
    }

    fn document_offered(&mut self, index: usize, chain: Chain) -> Result<(), Broken> {
        if let Offer::Newer(chain) = self.routers[index].documents.decide(&chain) {
            let bytes = chain.newest().bytes.clone();
            let document = Box::new(vl3_core::document::Document::clone(chain.document()));
            self.routers[index].documents.apply(chain);
            self.router_input(index, Input::Document { document, bytes })?;
        }
        Ok(())
    }

    fn send_routes(&mut self, index: usize, stream: StreamId, messages: Vec<RoutesMessage>) {
        let (pipe, side) = (stream.0 / 2, usize::from(stream.0 % 2 == 1));
        for message in messages {
            let message = if self.routers[index].lies {
                self.lie(index, message)
            } else {
                message
            };
            self.send(pipe, side, PipeBody::Routes(message));
        }
    }

    /// Announces a prefix of another domain in place of its own.
    fn lie(&mut self, index: usize, message: RoutesMessage) -> RoutesMessage {
        let RoutesMessage::Announce {
            sequence,
            preference,
            mtu,
            ..
        } = message
        else {
            return message;
        };
        let site = self.site(Node::Router(index));
        let victim = (site + 1) % self.cast.domains;
        let members = &self.routers[index].document().members;
        let Some(member) = members.get(&domain_name(victim)) else {
            return message;
        };
        let blocks: BTreeSet<IpNet> = member.blocks().collect();
        let pick = usize::try_from(self.rng.below(blocks.len() as u64)).unwrap_or(0);
        let Some(prefix) = blocks.into_iter().nth(pick) else {
            return message;
        };
        self.tally.count(Fault::ForeignPrefix);
        RoutesMessage::Announce {
            sequence,
            prefix,
            preference,
            mtu,
        }
    }

    fn connection_closed(&mut self, index: usize, connection: &ConnectionId) {
        let life = self.life(Node::Router(index));
        for pipe in self.pipes_to(
            life,
            |kind| matches!(kind, PipeKind::Monitor { connection: c, .. } if c == connection),
        ) {
            self.send(pipe, 1, PipeBody::Monitor(DialEvent::Deleted));
        }
    }

    pub fn router_synced(&mut self, index: usize, ticket: Ticket) -> Result<(), Broken> {
        self.routers[index].disk.sync_first();
        self.router_input(
            index,
            Input::Appended {
                ticket,
                result: Ok(()),
            },
        )?;
        self.check_router_replay(index)
    }
}

fn endpoints_of(service: &str) -> Query {
    Query::Endpoints(vl3_core::registry::EndpointQuery {
        services: vec![service.to_owned()],
        ..vl3_core::registry::EndpointQuery::default()
    })
}

/// What a registry's object says about a router, as the real shell reads it.
fn watch_event(listed: &Listed, deleted: bool) -> Option<WatchEvent> {
    let marks = Marks::of(listed)?;
    let router = RouterId {
        name: marks.name.parse().ok()?,
        domain: marks.domain,
    };
    if deleted {
        return Some(WatchEvent::Gone(router));
    }
    let address = listed.url.strip_prefix("tcp://")?.parse().ok()?;
    Some(WatchEvent::Found(Discovered {
        router,
        uid: marks.uid,
        generation: marks.generation,
        dials_only: marks.dials_only,
        address,
    }))
}

fn lease_answer(body: ReplyBody) -> Result<LeaseAnswer, LeaseFailure> {
    match body {
        ReplyBody::Registry(Ok(Reply::Lease(granted))) => Ok(LeaseAnswer {
            lease: granted.lease,
            renew_after: granted.renew_after,
        }),
        ReplyBody::Registry(Err(RegistryRefusal::Lease(LeaseRefusal::Fenced {
            router,
            generation,
        }))) => Err(LeaseFailure::Fenced(format!(
            "{router} has generation {generation}"
        ))),
        ReplyBody::Registry(Err(refusal)) => Err(LeaseFailure::Refused(refusal.to_string())),
        ReplyBody::Registry(Ok(other)) => Err(LeaseFailure::Refused(format!("{other:?}"))),
        ReplyBody::Router(_) | ReplyBody::Nothing => {
            Err(LeaseFailure::Unreachable("no answer".to_owned()))
        }
    }
}
