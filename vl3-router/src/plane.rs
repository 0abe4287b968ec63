//! The data plane in the machine's words.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use std::collections::BTreeMap;

use anyhow::Context as _;
use vl3_core::Mono;
use vl3_core::forward::{PortClass, PortId};
use vl3_core::router::{Endpoint, Input, PeerSpec, PortSample};
use vl3_dataplane as dataplane;

use crate::config::Config;

/// The data plane and a copy of every workload's descriptor (for `Reattach`).
#[derive(Debug)]
pub(crate) struct Plane {
    plane: Arc<dataplane::DataPlane>,
    tuns: BTreeMap<PortId, OwnedFd>,
    probes: u16,
}

impl Plane {
    /// Opens the UDP sockets in this namespace. `tell` must not block.
    pub(crate) fn start(
        config: &Config,
        private_key: [u8; 32],
        tell: impl Fn(Input) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let sockets = dataplane::bind_udp(config.udp_listen, config.workers)
            .with_context(|| format!("bind udp_listen {}", config.udp_listen))?;
        let events = Box::new(move |event| match event {
            dataplane::Event::EndpointLearned { port, endpoint } => {
                let endpoint = Endpoint {
                    remote: endpoint.remote,
                    local: endpoint.local,
                };
                tell(Input::EndpointLearned { port, endpoint });
            }
            dataplane::Event::TunFailed { port, error } => {
                tracing::info!(port = port.0, error, "a workload's descriptor ended");
                tell(Input::PortFailed { port });
            }
            dataplane::Event::Established { port } => {
                tracing::debug!(port = port.0, "session established")
            }
            dataplane::Event::WorkerDied { worker } => {
                tracing::error!(
                    worker,
                    "a data-plane worker died; the process ends to be started again"
                );
                std::process::abort();
            }
        });
        let plane = dataplane::DataPlane::start(dataplane::Config {
            private_key,
            sockets,
            own_addresses: Vec::new(),
            events,
        })
        .context("start the data plane")?;
        Ok(Self {
            plane: Arc::new(plane),
            tuns: BTreeMap::new(),
            probes: 0,
        })
    }

    pub(crate) fn handle(&self) -> Arc<dataplane::DataPlane> {
        Arc::clone(&self.plane)
    }

    pub(crate) fn set_peer(&self, peer: PeerSpec) -> Result<(), String> {
        let endpoint = peer.endpoint.map(|at| dataplane::Endpoint {
            remote: at.remote,
            local: at.local,
        });
        self.plane
            .set_peer(dataplane::PeerSpec {
                port: peer.port,
                class: peer.class,
                public_key: peer.public_key,
                preshared_key: None,
                endpoint,
                persistent_keepalive: peer.persistent_keepalive,
                initiate: peer.initiate,
            })
            .map_err(|error| error.to_string())
    }

    pub(crate) fn set_tun(
        &mut self,
        port: PortId,
        class: PortClass,
        mtu: u16,
        descriptor: OwnedFd,
    ) -> Result<(), String> {
        let copy = descriptor.try_clone().map_err(|error| error.to_string())?;
        self.plane
            .set_tun(dataplane::TunSpec {
                port,
                class,
                descriptor,
                mtu,
            })
            .map_err(|error| error.to_string())?;
        self.tuns.insert(port, copy);
        Ok(())
    }

    pub(crate) fn remove(&mut self, port: PortId) {
        self.plane.remove_port(port);
        self.tuns.remove(&port);
    }

    /// A copy of the descriptor behind a port.
    pub(crate) fn descriptor(&self, port: PortId) -> Option<OwnedFd> {
        self.tuns
            .get(&port)
            .and_then(|tun| tun.as_fd().try_clone_to_owned().ok())
    }

    /// One echo request inside the tunnel; the answer counts as receipt.
    pub(crate) fn probe(&mut self, port: PortId, source: IpAddr, destination: IpAddr) {
        self.probes = self.probes.wrapping_add(1);
        if let Some(packet) = echo_request(source, destination, self.probes) {
            self.plane.send(port, &packet);
        }
    }

    pub(crate) fn samples(&self) -> Vec<PortSample> {
        self.plane
            .status()
            .into_iter()
            .map(|port| PortSample {
                port: port.port,
                last_receive: port.last_receive,
                last_send: port.last_send,
                endpoint: port.endpoint.map(|at| Endpoint {
                    remote: at.remote,
                    local: at.local,
                }),
                failed: port.failed,
            })
            .collect()
    }
}

/// How long ago, for people.
pub(crate) fn ago(then: Option<Mono>, now: Mono) -> Option<Duration> {
    then.map(|then| now.saturating_since(then))
}

const IDENTIFIER: u16 = 0x7633;

/// ICMP (RFC 792) or ICMPv6 (RFC 4443) echo request; unset when the families differ.
fn echo_request(source: IpAddr, destination: IpAddr, sequence: u16) -> Option<Vec<u8>> {
    let mut icmp = [0; 8];
    icmp[4..6].copy_from_slice(&IDENTIFIER.to_be_bytes());
    icmp[6..8].copy_from_slice(&sequence.to_be_bytes());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            icmp[0] = 8;
            let sum = checksum(&icmp);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet.extend(icmp);
            Some(packet)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            icmp[0] = 128;
            // The pseudo-header: addresses, length, next header (RFC 8200 section 8.1).
            let mut summed = Vec::with_capacity(48);
            summed.extend(source.octets());
            summed.extend(destination.octets());
            summed.extend([0, 0, 0, 8, 0, 0, 0, 58]);
            summed.extend(icmp);
            let sum = checksum(&summed);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut packet = vec![0x60, 0, 0, 0, 0, 8, 58, 64];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(icmp);
            Some(packet)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded into 16 bits just above.
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_requests_have_right_checksums() {
        let v4 = echo_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 7).unwrap();
        assert_eq!(
            (v4.len(), checksum(&v4[..20]), checksum(&v4[20..])),
            (28, 0, 0)
        );
        let (a, b): (IpAddr, IpAddr) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let v6 = echo_request(a, b, 7).unwrap();
        let mut summed = v6[8..40].to_vec();
        summed.extend([0, 0, 0, 8, 0, 0, 0, 58]);
        summed.extend(&v6[40..]);
        assert_eq!((v6.len(), checksum(&summed)), (48, 0));
        assert_eq!(echo_request(a, [10, 0, 0, 1].into(), 1), None);
    }
}
