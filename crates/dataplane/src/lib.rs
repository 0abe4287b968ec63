//! The data plane: WireGuard sessions, packet order, segment and merge, TUN and UDP.
//!
//! Plain OS threads, no async runtime. The control plane holds a [`DataPlane`]; workers see
//! what it sets as snapshots that are swapped atomically.

mod api;
mod checksum;
mod engine;
mod fragment;
mod icmp;
mod limits;
mod merge;
mod outbound;
mod packet;
mod plane;
mod port;
mod segment;
mod socket;
mod sys;
#[cfg(test)]
mod testing;
mod tun;
mod vnet;
mod worker;

pub use api::{Config, Endpoint, Error, Event, PeerSpec, PortStatus, TunSpec};
pub use plane::{DataPlane, clock};
pub use socket::{UdpSockets, bind_udp};
