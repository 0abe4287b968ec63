//! A router's data plane: ports, the compiled table, when each port last heard and spoke.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vl3_core::Mono;
use vl3_core::fib::Fib;
use vl3_core::forward::{PortClass, PortId, Route};
use vl3_core::ids::PublicKey;
use vl3_core::router::{Endpoint, FdSession, PeerSpec, PortSample};

#[derive(Clone, Debug, Default)]
pub struct Plane {
    pub ports: BTreeMap<PortId, Port>,
    pub routes: Vec<Route>,
    pub fib: Fib,
    pub own: BTreeSet<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct Port {
    pub class: PortClass,
    pub end: PortEnd,
    pub received: Option<Mono>,
    pub sent: Option<Mono>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortEnd {
    Peer {
        key: PublicKey,
        endpoint: Option<Endpoint>,
    },
    Tun {
        session: FdSession,
    },
}

impl Plane {
    /// Whether a handshake is to be started. Like the real one it knows a key once.
    pub fn set_peer(&mut self, spec: &PeerSpec) -> Result<bool, String> {
        if let Some(holder) = self.by_key(spec.public_key)
            && holder != spec.port
        {
            return Err(format!("port {} has this public key", holder.0));
        }
        let known = self.ports.get(&spec.port);
        let learnt = known.and_then(|port| match &port.end {
            PortEnd::Peer { endpoint, .. } => *endpoint,
            PortEnd::Tun { .. } => None,
        });
        let (received, sent) = known.map_or((None, None), |port| (port.received, port.sent));
        let endpoint = spec.endpoint.or(learnt);
        let end = PortEnd::Peer {
            key: spec.public_key,
            endpoint,
        };
        self.ports.insert(
            spec.port,
            Port {
                class: spec.class,
                end,
                received,
                sent,
            },
        );
        Ok(spec.initiate && endpoint.is_some())
    }

    pub fn set_tun(&mut self, port: PortId, class: PortClass, session: FdSession) {
        self.ports.insert(
            port,
            Port {
                class,
                end: PortEnd::Tun { session },
                received: None,
                sent: None,
            },
        );
    }

    pub fn remove(&mut self, port: PortId) {
        self.ports.remove(&port);
    }

    pub fn set_routes(&mut self, routes: Vec<Route>) {
        self.fib = Fib::compile(routes.clone());
        self.routes = routes;
    }

    pub fn by_key(&self, wanted: PublicKey) -> Option<PortId> {
        self.ports
            .iter()
            .find(|(_, port)| matches!(port.end, PortEnd::Peer { key, .. } if key == wanted))
            .map(|(id, _)| *id)
    }

    pub fn by_session(&self, wanted: FdSession) -> Option<PortId> {
        self.ports
            .iter()
            .find(|(_, port)| matches!(port.end, PortEnd::Tun { session } if session == wanted))
            .map(|(id, _)| *id)
    }

    pub fn samples(&self) -> Vec<PortSample> {
        self.ports
            .iter()
            .map(|(port, seen)| PortSample {
                port: *port,
                last_receive: seen.received,
                last_send: seen.sent,
                endpoint: match &seen.end {
                    PortEnd::Peer { endpoint, .. } => *endpoint,
                    PortEnd::Tun { .. } => None,
                },
                failed: false,
            })
            .collect()
    }
}
