//! A WireGuard end without data plane: the protocol library on one socket.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use vl3_net::Namespace;

use super::world::{eventually, private_key, public_key};

pub(crate) struct Bare {
    tunnel: Tunn,
    pub(crate) socket: Arc<UdpSocket>,
    router: SocketAddr,
}

impl Bare {
    /// The end `key` towards the router `router_key`.
    pub(crate) fn new(
        socket: &Arc<UdpSocket>,
        key: u8,
        router_key: u8,
        router: SocketAddr,
        preshared: Option<[u8; 32]>,
    ) -> Self {
        let tunnel = Tunn::new(
            StaticSecret::from(private_key(key)),
            PublicKey::from(public_key(router_key).0),
            preshared,
            None,
            u32::from(key),
            None,
        );
        Self {
            tunnel,
            socket: Arc::clone(socket),
            router,
        }
    }

    pub(crate) fn socket(underlay: &Namespace, address: &str) -> Arc<UdpSocket> {
        let socket = underlay.run(|| UdpSocket::bind(address).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        Arc::new(socket)
    }

    /// Seals a packet without sending it; a handshake message when there is no session.
    pub(crate) fn seal(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; packet.len() + 148];
        match self.tunnel.encapsulate(packet, &mut out) {
            TunnResult::WriteToNetwork(message) => Some(message.to_vec()),
            _ => None,
        }
    }

    pub(crate) fn send(&mut self, packet: &[u8]) {
        if let Some(message) = self.seal(packet) {
            self.socket.send_to(&message, self.router).unwrap();
        }
    }

    /// Takes one datagram, answers what the protocol answers. A packet, when it was one.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        let mut datagram = [0; 2048];
        let (len, from) = self.socket.recv_from(&mut datagram).ok()?;
        assert_eq!(
            from, self.router,
            "replies leave from the address that was dialled"
        );
        self.take(&datagram[..len])
    }

    pub(crate) fn take(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; 2048];
        match self.tunnel.decapsulate(None, datagram, &mut out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                return Some(packet.to_vec());
            }
            TunnResult::WriteToNetwork(message) => {
                self.socket.send_to(message, self.router).unwrap();
            }
            TunnResult::Done | TunnResult::Err(_) => return None,
        }
        while let TunnResult::WriteToNetwork(message) = self.tunnel.decapsulate(None, &[], &mut out)
        {
            self.socket.send_to(message, self.router).unwrap();
        }
        None
    }

    pub(crate) fn has_session(&self) -> bool {
        self.tunnel.time_since_last_handshake().is_some()
    }

    /// Waits for a packet that `pick` takes.
    pub(crate) fn packet(&mut self, what: &str, pick: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut found = None;
        eventually(what, || {
            found = self.receive().filter(|packet| pick(packet));
            found.is_some()
        });
        found.unwrap()
    }
}

/// An IPv4 or IPv6 UDP packet without checksum offload tricks.
pub(crate) fn udp_packet(from: SocketAddr, to: SocketAddr, payload: &[u8], ttl: u8) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let (mut packet, addresses) = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, ttl, 17, 0, 0];
            header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            let addresses = [source.octets(), destination.octets()].concat();
            header.extend(&addresses);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (header, addresses)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 17, ttl];
            header[4..6].copy_from_slice(&length.to_be_bytes());
            let addresses = [source.octets(), destination.octets()].concat();
            header.extend(&addresses);
            (header, addresses)
        }
        _ => panic!("one family"),
    };
    let mut udp = [from.port(), to.port(), length, 0]
        .map(u16::to_be_bytes)
        .concat();
    udp.extend_from_slice(payload);
    let pseudo = [
        addresses,
        vec![0, 17],
        length.to_be_bytes().to_vec(),
        udp.clone(),
    ]
    .concat();
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    packet.extend(udp);
    packet
}

pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
