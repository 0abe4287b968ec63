//! The UDP sockets that clients' questions arrive on and replies leave by.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use vl3_net::datagrams::{Outgoing, SendCall, receive_packet_info};

use super::poll::{Poll, Token};
use crate::metrics::{Drop, Metrics};
use crate::slab::Slab;
use crate::switch::Others;

#[derive(Debug, Default)]
pub(super) struct Listening {
    sockets: Slab<Listener>,
    /// Those with replies that are not sent.
    unsent: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UdpSocket,
    outgoing: Outgoing,
    /// Questions that came by it and wait.
    waiting: usize,
    /// Replaced: read empty, and closed with its last reply.
    retired: bool,
    /// The other views whose clients ask here, too.
    pub(super) others: Option<Arc<Others>>,
    /// Read by another view, which calls it by this number.
    pub(super) lent: Option<u32>,
}

impl Listener {
    fn new(socket: UdpSocket) -> Self {
        let wildcard = socket
            .local_addr()
            .ok()
            .filter(|address| address.ip().is_unspecified());
        if let Some(address) = wildcard
            && let Err(error) = receive_packet_info(&socket, address.is_ipv6())
        {
            tracing::warn!(%address, %error, "replies may leave from another address than was asked");
        }
        Self {
            socket,
            outgoing: Outgoing::default(),
            waiting: 0,
            retired: false,
            others: None,
            lent: None,
        }
    }
}

impl Listening {
    /// Listens on them from now on; their numbers.
    pub(super) fn add(&mut self, sockets: Vec<UdpSocket>, poll: &Poll) -> Vec<u32> {
        let mut added = Vec::new();
        for socket in sockets {
            let at = self.sockets.insert(Listener::new(socket));
            let Some(listener) = self.sockets.get(at) else {
                continue;
            };
            if let Err(error) = poll.add(&listener.socket, Token::Listener(at)) {
                tracing::error!(%error, "a listener cannot be waited for");
                self.sockets.remove(at);
                continue;
            }
            added.push(at);
        }
        added
    }

    /// Listens for other views, too.
    pub(super) fn share(&mut self, socket: UdpSocket, others: Arc<Others>, poll: &Poll) {
        for at in self.add(vec![socket], poll) {
            if let Some(listener) = self.sockets.get_mut(at) {
                listener.others = Some(Arc::clone(&others));
            }
        }
    }

    /// Replies by a socket that another view reads.
    pub(super) fn lend(&mut self, number: u32, socket: UdpSocket) {
        let mut listener = Listener::new(socket);
        listener.lent = Some(number);
        self.sockets.insert(listener);
    }

    /// Where the lent socket of that number lies; there are a few.
    pub(super) fn lent(&mut self, number: u32) -> Option<u32> {
        let mut all = self.sockets.iter_mut();
        all.find_map(|(at, listener)| (listener.lent == Some(number)).then_some(at))
    }

    pub(super) fn get(&self, at: u32) -> Option<&Listener> {
        self.sockets.get(at)
    }

    pub(super) fn numbers(&mut self) -> Vec<u32> {
        self.sockets.iter_mut().map(|(at, _)| at).collect()
    }

    /// A question that came by this socket waits.
    pub(super) fn hold(&mut self, at: u32) {
        if let Some(listener) = self.sockets.get_mut(at) {
            listener.waiting += 1;
        }
    }

    pub(super) fn release(&mut self, at: u32) {
        if let Some(listener) = self.sockets.get_mut(at) {
            listener.waiting = listener.waiting.saturating_sub(1);
        }
    }

    /// Reads it no more.
    pub(super) fn retire(&mut self, at: u32, poll: &Poll) {
        if let Some(listener) = self.sockets.get_mut(at) {
            listener.retired = true;
            poll.remove(&listener.socket);
        }
    }

    /// Queues a reply; how long it is.
    pub(super) fn reply(
        &mut self,
        at: u32,
        to: SocketAddr,
        from: Option<IpAddr>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> usize {
        let Some(listener) = self.sockets.get_mut(at) else {
            return 0;
        };
        let mut octets = 0;
        if listener.outgoing.is_empty() {
            self.unsent.push(at);
        }
        listener.outgoing.write(Some(to), from, |out| {
            let start = out.len();
            write(out);
            octets = out.len() - start;
        });
        octets
    }

    /// Sends what waits. A client that does not take its reply loses it.
    pub(super) fn flush(&mut self, call: &mut SendCall, metrics: &Metrics) {
        for at in self.unsent.drain(..) {
            if let Some(listener) = self.sockets.get_mut(at) {
                call.send(&listener.socket, &mut listener.outgoing, |_, error| {
                    tracing::debug!(%error, "a reply could not be sent");
                    metrics.dropped(Drop::ReplyBlocked);
                });
            }
        }
    }

    /// Closes replaced sockets with nobody waiting.
    pub(super) fn close_retired(&mut self) {
        let done: Vec<u32> = self
            .sockets
            .iter_mut()
            .filter(|(_, listener)| listener.retired && listener.waiting == 0)
            .map(|(at, _)| at)
            .collect();
        for at in done {
            self.sockets.remove(at);
        }
    }
}
