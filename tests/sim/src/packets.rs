//! Packets: from workload to router, through the table of each, and to a workload again.

use core::time::Duration;
use std::net::{IpAddr, SocketAddr};

use vl3_core::forward::{PortClass, Verdict, forward};
use vl3_core::router::{Endpoint, Input, MechanismAnswer, OWN_PORT};

use crate::broken::Broken;
use crate::event::{Data, Event, Node, Packet, Payload, Wire};
use crate::faults::Fault;
use crate::internet::Travel;
use crate::plane::PortEnd;
use crate::world::World;

impl World {
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
