//! Listening sockets: questions in, replies out.

mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use vl3_runtime::{CancellationToken, Tasks};

use crate::engine::Command;
use crate::metrics::{Drop, Metrics};
use crate::sockets::Listeners;

pub(crate) use tcp::Connections;

/// Where a reply goes.
#[derive(Debug)]
pub(crate) enum Responder {
    Udp {
        socket: Arc<UdpSocket>,
        client: SocketAddr,
    },
    /// The connection's writer; the permit bounds its questions in flight.
    Tcp {
        writer: mpsc::Sender<Vec<u8>>,
        permit: OwnedSemaphorePermit,
    },
}

impl Responder {
    pub(crate) const fn is_udp(&self) -> bool {
        matches!(self, Self::Udp { .. })
    }

    /// Never waits: a client that does not take its reply loses it.
    pub(crate) fn send(self, octets: Vec<u8>) -> Result<(), Drop> {
        match self {
            Self::Udp { socket, client } => socket
                .try_send_to(&octets, client)
                .map(drop)
                .map_err(|_| Drop::ReplyBlocked),
            Self::Tcp { writer, permit } => {
                // Room for every question in flight; closed when the client left.
                let sent = writer.try_send(octets).map_err(|_| Drop::ReplyBlocked);
                drop(permit);
                sent
            }
        }
    }
}

/// Everything that a listener needs.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) engine: mpsc::Sender<Command>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Arc<Tasks>,
}

impl Front {
    /// Serves a set of sockets until the token is cancelled, then what waits in them;
    /// connections end on their own.
    pub(crate) fn serve(&self, listeners: Listeners, stop: &CancellationToken) {
        for socket in listeners.udp {
            let serving = udp::serve(Arc::new(socket), self.clone(), stop.clone());
            self.tasks.spawn_detached("dns udp", serving);
        }
        for listener in listeners.tcp {
            let serving = tcp::serve(listener, self.clone(), stop.clone());
            self.tasks.spawn_detached("dns tcp", serving);
        }
    }
}
