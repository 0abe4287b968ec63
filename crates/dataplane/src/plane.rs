//! The handle that the control plane holds.

use std::time::Duration;

use vl3_core::forward::{DropReason, PortId, Route};
use vl3_core::ids::PublicKey;
use vl3_core::time::Mono;

use crate::api::{Config, Error, PeerSpec, PortStatus, TunSpec};

/// The running data plane. Dropping it stops the workers and closes every descriptor.
#[derive(Debug)]
pub struct DataPlane {
    public_key: PublicKey,
}

impl DataPlane {
    /// Starts one worker per element of `config.sockets`.
    pub fn start(config: Config) -> Result<Self, Error> {
        let _ = config;
        Ok(Self {
            public_key: PublicKey([0; 32]),
        })
    }

    /// Adds a peer, or changes endpoint, preshared key, keepalive or class of the same port.
    pub fn set_peer(&self, spec: PeerSpec) -> Result<(), Error> {
        let _ = spec;
        Ok(())
    }

    /// Adds a TUN, or replaces the descriptor of the same port.
    pub fn set_tun(&self, spec: TunSpec) -> Result<(), Error> {
        let _ = spec;
        Ok(())
    }

    /// Removes a peer or TUN with all its state. Whether there was one.
    pub fn remove_port(&self, port: PortId) -> bool {
        let _ = port;
        false
    }

    /// Replaces the whole table at once.
    pub fn set_routes(&self, routes: Vec<Route>) {
        let _ = routes;
    }

    /// Sends one inner packet out by this port (probes, echo). Whether it was handed over.
    pub fn send(&self, port: PortId, packet: &[u8]) -> bool {
        let _ = (port, packet);
        false
    }

    pub fn status(&self) -> Vec<PortStatus> {
        Vec::new()
    }

    pub fn port_status(&self, port: PortId) -> Option<PortStatus> {
        let _ = port;
        None
    }

    /// Drops since start, by reason; ports that are gone included.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        Vec::new()
    }

    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }
}

/// Monotonic time, the same for all users of the data plane (CLOCK_MONOTONIC).
pub fn clock() -> Mono {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default();
    Mono(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
