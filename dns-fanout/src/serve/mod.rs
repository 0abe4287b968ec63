//! Clients over TCP: questions in, replies out. UDP is the engine's own.

mod connections;
mod tcp;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use vl3_runtime::{CancellationToken, Tasks};

use crate::metrics::{Drop, Metrics};
use crate::switch::Switch;

pub(crate) use connections::Connections;

/// Where a reply over TCP goes: the connection's writer. The permit bounds its questions in
/// flight.
#[derive(Debug)]
pub(crate) struct Responder {
    pub(crate) writer: mpsc::Sender<Vec<u8>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Responder {
    /// Never waits: a client that does not take its reply loses it.
    pub(crate) fn send(self, octets: Vec<u8>) -> Result<(), Drop> {
        // Room for every question in flight; closed when the client left.
        let sent = self.writer.try_send(octets).map_err(|_| Drop::ReplyBlocked);
        drop(self.permit);
        sent
    }
}

/// Everything that a listener needs.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) switch: Switch,
    pub(crate) connections: Arc<Connections>,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Arc<Tasks>,
}

impl Front {
    /// Accepts until the token is cancelled, then what waits; connections end on their own.
    pub(crate) fn serve(&self, listeners: Vec<TcpListener>, stop: &CancellationToken) {
        for listener in listeners {
            let serving = tcp::serve(listener, self.clone(), stop.clone());
            self.tasks.spawn_detached("dns tcp", serving);
        }
    }
}
