//! A router's process: the machine, its disk, and a shell that is as thin as the real one.

use core::time::Duration;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use vl3_core::allocator::{Acquire, Lease};
use vl3_core::document::DocumentStore;
use vl3_core::ids::{InstanceId, PublicKey};
use vl3_core::registry::{Claim, Command};
use vl3_core::router::{
    Config, ConnectionId, DialId, Effect, Input, Record, Registration, ResolverView, RouterId,
    RouterMachine, State, Times,
};
use vl3_core::{Machine as _, Outbox, Ticket};

use crate::broken::Broken;
use crate::cast::{Cast, domain_name};
use crate::disk::Disk;
use crate::dns::Dns;
use crate::event::{Awaits, CallBody, Chore, Event, Node, PipeKind, ReplyBody};
use crate::plane::Plane;
use crate::world::World;

/// How long a router's own tokens live; its NSM connections are refreshed within that.
pub const TOKEN_LIFE: Duration = Duration::from_secs(60);

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
    pub monitors: BTreeMap<DialId, u64>,
    /// Open watches of the registry, and whether each has shown its snapshot.
    pub watches: BTreeMap<u64, bool>,
    pub registration: Option<Registration>,
    pub documents: DocumentStore,
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

    /// Since when it holds its name, running or not. One that remembers nothing takes the name
    /// over, whoever has it.
    pub fn round(&self) -> u64 {
        self.lease
            .as_ref()
            .map_or(u64::MAX, |lease| lease.generation.0)
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
        if router.machine.is_some() || router.retired {
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

    pub fn local(&mut self, index: usize, micros: u64, input: Input) {
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
                let set = self.routers[index].plane.set_peer(&peer);
                if set == Ok(true) {
                    self.handshake(index, peer.port);
                }
                let result = set.map(drop);
                self.local(index, 100, Input::Installed { ticket, result });
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
            Effect::SetOwnAddresses {
                ticket, addresses, ..
            } => {
                self.routers[index].plane.own = addresses.iter().map(IpNet::addr).collect();
                let result = Ok(());
                self.local(index, 50, Input::Installed { ticket, result });
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
            Effect::CedeRegistration => self.routers[index].registration = None,
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
