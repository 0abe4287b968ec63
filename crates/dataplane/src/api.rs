//! What a router, a client and `vl3 wg` tell the data plane, and what it tells them.
//!
//! Commands come from the control plane's threads and never block on packets; workers see
//! them as swapped snapshots.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use vl3_core::forward::{DropReason, PortClass, PortId};
use vl3_core::ids::PublicKey;
use vl3_core::time::Mono;

/// How the data plane starts; all of it is fixed for its life. One worker thread runs per
/// element of `sockets`.
pub struct Config {
    /// X25519 private key. Redacted in `Debug`.
    pub private_key: [u8; 32],
    /// UDP sockets, opened by the caller in the underlay's namespace: per worker one IPv4 and
    /// one IPv6 (or one dual-stack) socket of a SO_REUSEPORT group; see [`crate::bind_udp`].
    pub sockets: Vec<crate::UdpSockets>,
    /// Where ICMP errors come from.
    pub own_addresses: Vec<IpAddr>,
    /// Called on a thread of the data plane; must not block.
    pub events: Box<dyn Fn(Event) + Send + Sync>,
}

/// A WireGuard peer's other end, with the local address that it was reached at (replies leave
/// from the address that was dialled).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub remote: SocketAddr,
    pub local: Option<IpAddr>,
}

#[derive(Clone)]
pub struct PeerSpec {
    pub port: PortId,
    pub class: PortClass,
    pub public_key: PublicKey,
    pub preshared_key: Option<[u8; 32]>,
    /// Unset: learnt from the first authentic handshake.
    pub endpoint: Option<Endpoint>,
    /// Seconds, unset = none.
    pub persistent_keepalive: Option<u16>,
    /// Start a handshake at once (needs `endpoint`).
    pub initiate: bool,
}

/// A TUN descriptor with vnet headers (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR), single or one
/// queue of a multi-queue device. Non-blocking is set by the data plane.
#[derive(Debug)]
pub struct TunSpec {
    pub port: PortId,
    pub class: PortClass,
    pub descriptor: OwnedFd,
    pub mtu: u16,
}

/// One port as seen now. Times are [`crate::clock`]'s.
#[derive(Clone, Debug)]
pub struct PortStatus {
    pub port: PortId,
    pub class: PortClass,
    /// Peers only.
    pub public_key: Option<PublicKey>,
    pub endpoint: Option<Endpoint>,
    /// A session exists that both sides have confirmed.
    pub established: bool,
    /// TUNs only: the descriptor reported an error or end, and carries nothing any more.
    pub failed: bool,
    pub last_handshake: Option<Mono>,
    /// Last authentic packet of any kind (data or keepalive); for TUN the last read.
    pub last_receive: Option<Mono>,
    /// Last data packet handed to the socket or descriptor (keepalives not counted).
    pub last_send: Option<Mono>,
    pub received_packets: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    pub drops: Vec<(DropReason, u64)>,
}

/// What the control plane must react to or store.
#[derive(Clone, Debug)]
pub enum Event {
    /// An authentic packet came from a new place: store it.
    EndpointLearned { port: PortId, endpoint: Endpoint },
    /// First session since the peer was set, or after an expiry.
    Established { port: PortId },
    /// The descriptor reported an error or end.
    TunFailed { port: PortId, error: String },
    /// A worker ended by a panic; the process should stop and be restarted.
    WorkerDied { worker: usize },
}

/// Why a command was refused. Nothing of it has taken effect.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration makes no data plane.
    #[error("{field} is {value}, allowed is {allowed}")]
    Config {
        field: &'static str,
        value: String,
        allowed: &'static str,
    },
    /// A port has one key for its life: remove it and add another.
    #[error("port {} is already a peer with another key", .0.0)]
    OtherKey(PortId),
    /// One key is one peer.
    #[error("key is already held by port {}", .0.0)]
    KeyTaken(PortId),
    /// A peer cannot become a descriptor, nor the reverse: remove the port first.
    #[error("port {} is of the other kind", .0.0)]
    OtherKind(PortId),
    /// Refused at a named limit; retry after something was removed.
    #[error("{what} are limited to {limit}")]
    Full { what: &'static str, limit: usize },
    /// The descriptor is no TUN with vnet headers.
    #[error("descriptor of port {} is no TUN with IFF_NO_PI and IFF_VNET_HDR", .0.0)]
    NotATun(PortId),
    /// The system refused.
    #[error("{action}")]
    System {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("sockets", &self.sockets)
            .field("own_addresses", &self.own_addresses)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PeerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerSpec")
            .field("port", &self.port)
            .field("class", &self.class)
            .field("public_key", &self.public_key)
            .field("preshared_key", &self.preshared_key.map(|_| "redacted"))
            .field("endpoint", &self.endpoint)
            .field("persistent_keepalive", &self.persistent_keepalive)
            .field("initiate", &self.initiate)
            .finish()
    }
}
