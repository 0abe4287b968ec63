//! A workload: attaches, refreshes, sends and answers echo requests.

use core::time::Duration;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use vl3_core::forward::{PortClass, Verdict, forward};
use vl3_core::ids::{Generation, InstanceId, PublicKey};
use vl3_core::router::{
    Answer, ConnectionId, Endpoint, FdEvent, FdSession, Hello, HelloRole, Input, MechanismAnswer,
    MechanismWish, OWN_PORT, Request, WorkloadAnswer,
};

use crate::broken::Broken;
use crate::cast::{Cast, domain_name};
use crate::event::{Awaits, CallBody, Chore, Data, Event, Node, Packet, Payload, ReplyBody, Wire};
use crate::faults::Fault;
use crate::internet::Travel;
use crate::plane::PortEnd;
use crate::world::World;

/// How long a workload's token lives.
pub const TOKEN_LIFE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Workload {
    pub alive: bool,
    pub lives: u32,
    pub key: PublicKey,
    pub connection: Option<ConnectionId>,
    /// The router process it talks to.
    pub router: Option<usize>,
    pub answer: Option<WorkloadAnswer>,
    pub session: Option<FdSession>,
    /// With which its descriptor was handed over.
    pub ticket: Option<[u8; 16]>,
    pub refused: Option<String>,
    /// A chain of Live chores is under way; only the newest counts.
    pub step: u64,
}

impl Workload {
    pub fn new(index: usize, _cast: &Cast) -> Self {
        let mut key = [0x77; 32];
        key[0] = u8::try_from(index).unwrap_or(u8::MAX);
        Self {
            alive: false,
            lives: 0,
            key: PublicKey(key),
            connection: None,
            router: None,
            answer: None,
            session: None,
            ticket: None,
            refused: None,
            step: 0,
        }
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.answer
            .iter()
            .flat_map(|answer| answer.addresses.iter().map(IpNet::addr))
    }

    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses().find(|address| address.is_ipv6() == v6)
    }
}

impl World {
    pub fn start_workload(&mut self, index: usize) {
        let workload = &mut self.workloads[index];
        if workload.alive {
            return;
        }
        workload.alive = true;
        workload.lives += 1;
        workload.connection = None;
        workload.answer = None;
        workload.session = None;
        workload.ticket = None;
        self.live_again(index, 1);
        let to = self.life(Node::Workload(index));
        self.later(
            Duration::from_secs(2),
            Event::Chore {
                to,
                chore: Chore::KeepAlive,
            },
        );
    }

    /// Goes without a word.
    pub fn kill_workload(&mut self, index: usize) {
        let Some((router, session)) = self.workloads[index]
            .router
            .zip(self.workloads[index].session)
        else {
            self.workloads[index].alive = false;
            self.workloads[index].answer = None;
            return;
        };
        self.workloads[index].alive = false;
        self.workloads[index].answer = None;
        self.workloads[index].session = None;
        let to = self.life(Node::Router(router));
        let input = Box::new(Input::Fd {
            session,
            event: FdEvent::Closed,
        });
        self.later(Duration::from_millis(1), Event::Local { to, input });
    }

    /// Leaves as it should.
    pub fn close_workload(&mut self, index: usize) {
        let (router, connection) = (
            self.workloads[index].router,
            self.workloads[index].connection.clone(),
        );
        if let (Some(router), Some(connection)) = (router, connection) {
            self.call(
                Node::Workload(index),
                Node::Router(router),
                CallBody::Close { connection },
                Awaits::Nothing,
            );
        }
        self.kill_workload(index);
    }

    pub fn live_again(&mut self, index: usize, millis: u64) {
        self.workloads[index].step += 1;
        let to = self.life(Node::Workload(index));
        self.later(
            Duration::from_millis(millis),
            Event::Chore {
                to,
                chore: Chore::Live,
            },
        );
    }

    pub fn workload_chore(&mut self, index: usize, chore: &Chore) {
        match chore {
            Chore::Live => self.ask_router(index),
            Chore::KeepAlive => {
                self.send_from_workload(index, Packet::KeepAlive);
                let to = self.life(Node::Workload(index));
                self.later(
                    Duration::from_secs(5),
                    Event::Chore {
                        to,
                        chore: Chore::KeepAlive,
                    },
                );
            }
            Chore::OpenWatch { .. } | Chore::Register | Chore::OpenMonitor { .. } => {}
        }
    }

    fn ask_router(&mut self, index: usize) {
        let role = self.cast.workloads[index].clone();
        // Whoever runs under the router's name: a restarted process is the same place.
        let Some(router) = self.process_of(role.router) else {
            self.live_again(index, 700);
            return;
        };
        let lives = self.workloads[index].lives;
        let workload = &mut self.workloads[index];
        if workload.router != Some(router) {
            workload.router = Some(router);
            workload.answer = None;
            workload.session = None;
        }
        let name = format!("w{index}-{lives}");
        let connection = workload
            .connection
            .get_or_insert_with(|| ConnectionId::new(&name).expect("printable"))
            .clone();
        let mechanism = if role.tun {
            MechanismWish::Tun { secret: [0; 16] }
        } else {
            MechanismWish::WireGuard {
                public_key: workload.key,
            }
        };
        let addresses: Vec<IpAddr> = workload.addresses().collect();
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&self.number().to_be_bytes());
        secret[8..].copy_from_slice(&self.rng.next_u64().to_be_bytes());
        let mechanism = match mechanism {
            MechanismWish::Tun { .. } => MechanismWish::Tun { secret },
            other @ MechanismWish::WireGuard { .. } => other,
        };
        let mut instance = [9; 16];
        instance[0] = u8::try_from(index).unwrap_or(u8::MAX);
        let request = Request {
            connection,
            peer: role.id.clone(),
            claimed: None,
            hello: Some(Hello {
                version_min: 1,
                version_max: 1,
                uid: self.cast.networks[role.network].uid,
                domain: domain_name(role.domain),
                name: role.name.to_string(),
                instance: InstanceId(instance),
                generation: Generation(0),
                dials_only: false,
                role: HelloRole::Workload,
            }),
            name: Some(role.name),
            mechanism,
            addresses,
            excluded: Vec::new(),
            mtu: 0,
            expires_in: TOKEN_LIFE,
            local: (!role.tun).then(|| self.routers[router].address.ip()),
        };
        self.call(
            Node::Workload(index),
            Node::Router(router),
            CallBody::Request(Box::new(request)),
            Awaits::Attached,
        );
    }

    /// The process that runs under a router's name; of two the newer one.
    pub fn process_of(&self, role: usize) -> Option<usize> {
        (0..self.routers.len()).rev().find(|index| {
            self.routers[*index].role == role && self.routers[*index].machine.is_some()
        })
    }

    pub fn workload_answered(&mut self, index: usize, body: ReplyBody) -> Result<(), Broken> {
        match body {
            ReplyBody::Router(answer) => match *answer {
                Ok(Answer::Workload(answer)) => {
                    self.workloads[index].refused = None;
                    let retry = self.attached(index, answer)?;
                    self.live_again(index, if retry { 100 } else { 10_000 });
                }
                Ok(_) => {}
                Err(refusal) => {
                    self.workloads[index].refused = Some(refusal.to_string());
                    self.live_again(index, 1_000);
                }
            },
            ReplyBody::Nothing => self.live_again(index, 500),
            ReplyBody::Registry(_) => {}
        }
        Ok(())
    }

    /// Whether another Request is needed soon (the descriptor is on its way).
    fn attached(&mut self, index: usize, answer: WorkloadAnswer) -> Result<bool, Broken> {
        self.check_answer(index, &answer)?;
        let Some(router) = self.workloads[index].router else {
            return Ok(true);
        };
        let secret = match answer.mechanism {
            // The ticket that is known already says that the descriptor is in place.
            MechanismAnswer::Tun { secret } => {
                let workload = &self.workloads[index];
                (workload.session.is_none() || workload.ticket != Some(secret)).then_some(secret)
            }
            MechanismAnswer::WireGuard { .. } => None,
        };
        let first = self.workloads[index].answer.is_none();
        self.workloads[index].answer = Some(answer);
        if let Some(secret) = secret {
            let session = FdSession(self.number());
            self.workloads[index].session = Some(session);
            self.workloads[index].ticket = Some(secret);
            let to = self.life(Node::Router(router));
            let input = Box::new(Input::Fd {
                session,
                event: FdEvent::Attach { secret },
            });
            self.later(Duration::from_micros(300), Event::Local { to, input });
        } else if first {
            self.send_from_workload(index, Packet::Handshake);
        }
        Ok(false)
    }

    pub fn fd_answered(&mut self, _router: usize, session: FdSession, ok: bool) {
        let Some(index) = self
            .workloads
            .iter()
            .position(|workload| workload.session == Some(session))
        else {
            return;
        };
        if !ok {
            self.workloads[index].session = None;
            self.live_again(index, 300);
        }
    }

    /// A router is gone: whoever was attached by descriptor sees its socket end.
    pub fn descriptors_end(&mut self, router: usize) {
        for index in 0..self.workloads.len() {
            if self.workloads[index].router == Some(router)
                && self.workloads[index].session.take().is_some()
            {
                self.live_again(index, 100);
            }
        }
    }

    // --- packets

    pub fn send_from_workload(&mut self, index: usize, packet: Packet) {
        let workload = &self.workloads[index];
        let (Some(answer), Some(router)) = (&workload.answer, workload.router) else {
            return;
        };
        match &answer.mechanism {
            MechanismAnswer::Tun { .. } => {
                if let (Some(session), Packet::Data(_)) = (workload.session, &packet) {
                    let event = Event::Packet {
                        to: Node::Router(router),
                        wire: Wire::Tun { session },
                        packet,
                    };
                    self.later(Duration::from_micros(20), event);
                }
            }
            MechanismAnswer::WireGuard {
                public_key,
                address,
                ..
            } => {
                let source = self.cast.workloads[index].address;
                let wire = Wire::Peer {
                    from_key: workload.key,
                    to_key: *public_key,
                    source,
                };
                if let Some(to) = self.at_address(*address) {
                    self.transmit(Node::Workload(index), to, wire, packet);
                }
            }
        }
    }

    fn transmit(&mut self, from: Node, to: Node, wire: Wire, packet: Packet) {
        let (a, b) = (self.site(from), self.site(to));
        for delay in self.internet.fate(a, b, Travel::Datagram, &mut self.tally) {
            self.later(
                delay,
                Event::Packet {
                    to,
                    wire,
                    packet: packet.clone(),
                },
            );
        }
    }

    pub fn packet_arrives(&mut self, to: Node, wire: Wire, packet: Packet) -> Result<(), Broken> {
        if !self.is_up(to) {
            return Ok(());
        }
        match to {
            Node::Workload(index) => self.workload_receives(index, packet),
            Node::Router(index) => self.router_receives(index, wire, packet),
            Node::Registry(_) | Node::Dns(_) | Node::Operator(_) => Ok(()),
        }
    }

    fn workload_receives(&mut self, index: usize, packet: Packet) -> Result<(), Broken> {
        let Packet::Data(data) = packet else {
            return Ok(());
        };
        self.check_delivery(index, &data)?;
        match data.payload {
            Payload::EchoAnswer => {
                self.truth.answered += 1;
                if let Some((from, to)) = self.truth.tried.remove(&data.id) {
                    self.truth.reached.insert((from, to, data.source.is_ipv6()));
                }
                return Ok(());
            }
            Payload::Answer(reply) => {
                return match self.truth.asked.remove(&data.id) {
                    Some(asked) => self.check_name(&asked, &reply),
                    None => Ok(()),
                };
            }
            Payload::Question(_) => return Ok(()),
            Payload::Echo => {}
        }
        let answer = Data {
            source: data.destination,
            destination: data.source,
            payload: Payload::EchoAnswer,
            crossed: Vec::new(),
            ..data
        };
        self.send_from_workload(index, Packet::Data(answer));
        Ok(())
    }

    fn router_receives(&mut self, index: usize, wire: Wire, packet: Packet) -> Result<(), Broken> {
        let now = self.now;
        let own_key = self.routers[index].key;
        let plane = &mut self.routers[index].plane;
        let (port, learnt) = match wire {
            Wire::Tun { session } => (plane.by_session(session), None),
            // Not sealed for us, or by nobody we know: it does not decrypt.
            Wire::Peer { to_key, .. } if to_key != own_key => (None, None),
            Wire::Peer {
                from_key, source, ..
            } => (plane.by_key(from_key), Some(source)),
        };
        let Some(port) = port else { return Ok(()) };
        let Some(seen) = plane.ports.get_mut(&port) else {
            return Ok(());
        };
        seen.received = Some(now);
        let class = seen.class;
        let mut event = None;
        if let (Some(remote), PortEnd::Peer { endpoint, .. }) = (learnt, &mut seen.end) {
            let found = Endpoint {
                remote,
                local: None,
            };
            if endpoint.is_none_or(|known| known.remote != remote) {
                *endpoint = Some(found);
                event = Some(Input::EndpointLearned {
                    port,
                    endpoint: found,
                });
            }
        }
        if let Some(input) = event {
            self.router_input(index, input)?;
        }
        match packet {
            Packet::Handshake => {
                self.out_by(index, port, Packet::HandshakeAnswer);
                Ok(())
            }
            Packet::HandshakeAnswer | Packet::KeepAlive => Ok(()),
            Packet::Data(data) => {
                // What WireGuard does when it has nothing to say for a while.
                let silent = self.routers[index]
                    .plane
                    .ports
                    .get(&port)
                    .is_none_or(|seen| {
                        seen.sent
                            .is_none_or(|at| now.saturating_since(at) > Duration::from_secs(3))
                    });
                if silent {
                    self.out_by(index, port, Packet::KeepAlive);
                }
                self.forward(index, port, class, data)
            }
        }
    }

    pub fn forward(
        &mut self,
        index: usize,
        ingress: vl3_core::forward::PortId,
        class: PortClass,
        mut data: Data,
    ) -> Result<(), Broken> {
        let plane = &self.routers[index].plane;
        let Verdict::Forward(hop) =
            forward(&plane.fib, ingress, class, data.source, data.destination)
        else {
            return Ok(());
        };
        data.crossed.push(index);
        if hop.port == OWN_PORT || hop.class == PortClass::Own {
            match data.payload {
                Payload::EchoAnswer => return Ok(()),
                Payload::Question(_) | Payload::Answer(_) => return self.dns_receives(index, data),
                Payload::Echo => {}
            }
            let answer = Data {
                source: data.destination,
                destination: data.source,
                payload: Payload::EchoAnswer,
                crossed: Vec::new(),
                ..data
            };
            return self.forward(index, OWN_PORT, PortClass::Own, answer);
        }
        self.check_crossing(index, &data, ingress, hop.port)?;
        self.out_by(index, hop.port, Packet::Data(data));
        Ok(())
    }

    pub fn out_by(&mut self, index: usize, port: vl3_core::forward::PortId, packet: Packet) {
        let now = self.now;
        let (own_key, own_address) = (self.routers[index].key, self.routers[index].address.ip());
        let Some(seen) = self.routers[index].plane.ports.get_mut(&port) else {
            return;
        };
        if matches!(packet, Packet::Data(_)) {
            seen.sent = Some(now);
        }
        match seen.end.clone() {
            PortEnd::Tun { session } => {
                let found = self
                    .workloads
                    .iter()
                    .position(|workload| workload.session == Some(session));
                if let Some(workload) = found {
                    let wire = Wire::Tun { session };
                    let event = Event::Packet {
                        to: Node::Workload(workload),
                        wire,
                        packet,
                    };
                    self.later(Duration::from_micros(20), event);
                }
            }
            PortEnd::Peer {
                key,
                endpoint: Some(endpoint),
            } => {
                let source = SocketAddr::new(own_address, 51820);
                let wire = Wire::Peer {
                    from_key: own_key,
                    to_key: key,
                    source,
                };
                if let Some(to) = self.at_address(endpoint.remote.ip()) {
                    self.transmit(Node::Router(index), to, wire, packet);
                }
            }
            PortEnd::Peer { endpoint: None, .. } => {}
        }
    }

    pub fn handshake(&mut self, index: usize, port: vl3_core::forward::PortId) {
        self.out_by(index, port, Packet::Handshake);
    }

    pub fn probe(
        &mut self,
        index: usize,
        port: vl3_core::forward::PortId,
        source: IpAddr,
        destination: IpAddr,
    ) {
        let id = self.number();
        let network = self.cast.routers[self.routers[index].role].network;
        let data = Data {
            id,
            source,
            destination,
            payload: Payload::Echo,
            network,
            forged: false,
            crossed: Vec::new(),
        };
        self.out_by(index, port, Packet::Data(data));
    }

    /// One echo request between two workloads; whether it could be sent at all.
    pub fn echo(&mut self, from: usize, to: usize, v6: bool) -> bool {
        let (Some(source), Some(destination)) = (
            self.workloads[from].address(v6),
            self.workloads[to].address(v6),
        ) else {
            return false;
        };
        let id = self.number();
        self.truth.tried.insert(id, (from, to));
        let network = self.cast.workloads[from].network;
        let data = Data {
            id,
            source,
            destination,
            payload: Payload::Echo,
            network,
            forged: false,
            crossed: Vec::new(),
        };
        self.send_from_workload(from, Packet::Data(data));
        true
    }

    /// A packet with somebody else's source.
    pub fn forge(&mut self, from: usize, to: usize, victim: usize) {
        let (Some(source), Some(destination)) = (
            self.workloads[victim].address(true),
            self.workloads[to].address(true),
        ) else {
            return;
        };
        let id = self.number();
        let network = self.cast.workloads[from].network;
        let data = Data {
            id,
            source,
            destination,
            payload: Payload::Echo,
            network,
            forged: true,
            crossed: Vec::new(),
        };
        self.tally.count(Fault::ForgedPacket);
        self.send_from_workload(from, Packet::Data(data));
    }
}
