//! What one worker sends by UDP: packets are laid out back to back, sealed in place by runs,
//! and leave as trains.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use vl3_core::forward::{DropReason, PortId};
use vl3_core::time::Mono;

use crate::api::Endpoint;
use crate::engine::{DATA_HEADER, DATA_OVERHEAD, Sealed, Train};
use crate::limits::{
    OUTBOUND_BYTES, SEND_BATCH, SEND_WAIT, SEND_WAITS_MAX, TRAIN_BYTES_MAX, TRAIN_DATAGRAMS_MAX,
};
use crate::port::{Drops, Kind, Peer, Ports};
use crate::sys::Outgoing;

/// Where datagrams go. The real one is a pair of sockets.
pub(crate) trait Wire {
    /// Sends in order, never waits. Returns how many; an error is about the first. All are
    /// of one family.
    fn send(&mut self, v6: bool, messages: &[Outgoing<'_>]) -> io::Result<usize>;

    /// Waits for room.
    fn wait(&mut self, v6: bool, at_most: Duration);

    /// Whether trains may be sent; `false` for good once refused.
    fn trains(&self) -> bool;

    fn refuse_trains(&mut self);
}

/// What sending must know and tell.
#[derive(Clone, Copy)]
pub(crate) struct Books<'a> {
    pub(crate) ports: &'a Ports,
    pub(crate) drops: &'a Drops,
    pub(crate) now: Mono,
}

impl Books<'_> {
    pub(crate) fn drop(&self, port: PortId, reason: DropReason, packets: u64) {
        self.drops.count(reason, packets);
        if let Some(port) = self.ports.by_id.get(&port) {
            port.counters().drops.count(reason, packets);
        }
    }

    fn peer(&self, port: PortId) -> Option<&Arc<Peer>> {
        match &self.ports.by_id.get(&port)?.kind {
            Kind::Peer(peer) => Some(peer),
            Kind::Tun(_) => None,
        }
    }
}

pub(crate) struct Outbound {
    bytes: Box<[u8]>,
    used: usize,
    /// Sealed, in order.
    datagrams: Vec<Datagram>,
    /// The unsealed tail: packets for one peer.
    run: Option<Run>,
    /// Of each packet of the run.
    lengths: Vec<usize>,
    emitted: Emitted,
}

#[derive(Clone, Copy, Debug)]
struct Datagram {
    start: usize,
    len: usize,
    to: Endpoint,
    port: PortId,
    /// Never part of a train.
    single: bool,
}

struct Run {
    peer: Arc<Peer>,
    port: PortId,
    start: usize,
}

/// Messages that an engine emitted during one call.
#[derive(Default)]
pub(crate) struct Emitted {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Emitted {
    pub(crate) fn push(&mut self, message: &[u8]) {
        self.bytes.extend_from_slice(message);
        self.ends.push(self.bytes.len());
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.bytes[start..*end])
    }
}

impl Outbound {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; OUTBOUND_BYTES].into_boxed_slice(),
            used: 0,
            datagrams: Vec::new(),
            run: None,
            lengths: Vec::new(),
            emitted: Emitted::default(),
        }
    }

    /// Room for one inner packet of `len` bytes (padding included) to this peer, to be filled
    /// by the caller. Flushes first when there is none.
    pub(crate) fn slot(
        &mut self,
        peer: &Arc<Peer>,
        port: PortId,
        len: usize,
        books: Books<'_>,
        wire: &mut impl Wire,
    ) -> &mut [u8] {
        let needed = len + DATA_OVERHEAD;
        if self.used + needed > self.bytes.len() {
            self.flush(books, wire);
        }
        if self
            .run
            .as_ref()
            .is_some_and(|run| !Arc::ptr_eq(&run.peer, peer))
        {
            self.seal(books, wire);
        }
        if self.run.is_none() {
            self.run = Some(Run {
                peer: Arc::clone(peer),
                port,
                start: self.used,
            });
        }
        let start = self.used + DATA_HEADER;
        self.used += needed;
        self.lengths.push(len);
        &mut self.bytes[start..start + len]
    }

    /// Takes what `call` lets the engine emit, for `to`.
    pub(crate) fn collect<T>(
        &mut self,
        port: PortId,
        to: Option<Endpoint>,
        books: Books<'_>,
        wire: &mut impl Wire,
        call: impl FnOnce(&mut dyn FnMut(&[u8])) -> T,
    ) -> T {
        let mut emitted = std::mem::take(&mut self.emitted);
        let result = call(&mut |message| emitted.push(message));
        if !emitted.ends.is_empty() {
            self.seal(books, wire);
            self.take(&emitted, port, to, books, wire);
            emitted.clear();
        }
        self.emitted = emitted;
        result
    }

    fn take(
        &mut self,
        emitted: &Emitted,
        port: PortId,
        to: Option<Endpoint>,
        books: Books<'_>,
        wire: &mut impl Wire,
    ) {
        let peer = books.peer(port);
        for message in emitted.iter() {
            let Some(to) = to else {
                books.drop(port, DropReason::NoSession, 1);
                continue;
            };
            self.message(message, port, to, books, wire);
            if let Some(peer) = peer {
                peer.last_datagram.store(books.now.0, Relaxed);
                // Packets that waited for the session.
                if message[0] == 4 && message.len() > DATA_OVERHEAD {
                    peer.counters
                        .sent(1, (message.len() - DATA_OVERHEAD) as u64, books.now);
                }
            }
        }
    }

    /// Appends a message that is ready to be sent.
    pub(crate) fn message(
        &mut self,
        message: &[u8],
        port: PortId,
        to: Endpoint,
        books: Books<'_>,
        wire: &mut impl Wire,
    ) {
        self.seal(books, wire);
        if self.used + message.len() > self.bytes.len() {
            self.flush(books, wire);
        }
        let start = self.used;
        self.used += message.len();
        self.bytes[start..self.used].copy_from_slice(message);
        self.datagrams.push(Datagram {
            start,
            len: message.len(),
            to,
            port,
            single: true,
        });
    }

    /// Seals the open run.
    fn seal(&mut self, books: Books<'_>, wire: &mut impl Wire) {
        let Some(run) = self.run.take() else { return };
        let packets = self.lengths.len() as u64;
        let endpoint = run.peer.endpoint.load().as_deref().copied();
        let Some(to) = endpoint else {
            books.drop(run.port, DropReason::NoSession, packets);
            self.used = run.start;
            self.lengths.clear();
            return;
        };
        let mut emitted = std::mem::take(&mut self.emitted);
        let train = Train {
            bytes: &mut self.bytes[run.start..self.used],
            lengths: &self.lengths,
        };
        match run
            .peer
            .engine
            .seal(train, &mut |message| emitted.push(message))
        {
            Sealed::Ready => {
                let single = run.peer.single.load(Relaxed);
                let mut start = run.start;
                for len in &self.lengths {
                    let len = len + DATA_OVERHEAD;
                    self.datagrams.push(Datagram {
                        start,
                        len,
                        to,
                        port: run.port,
                        single,
                    });
                    start += len;
                }
                let bytes = self.lengths.iter().sum::<usize>() as u64;
                run.peer.counters.sent(packets, bytes, books.now);
                run.peer.last_datagram.store(books.now.0, Relaxed);
            }
            Sealed::Waiting { dropped } => {
                if dropped > 0 {
                    books.drop(run.port, DropReason::NoSession, dropped as u64);
                }
                self.used = run.start;
            }
        }
        self.lengths.clear();
        if !emitted.ends.is_empty() {
            self.take(&emitted, run.port, Some(to), books, wire);
            emitted.clear();
        }
        self.emitted = emitted;
    }

    /// Seals and sends everything.
    pub(crate) fn flush(&mut self, books: Books<'_>, wire: &mut impl Wire) {
        self.seal(books, wire);
        if self.datagrams.is_empty() {
            self.used = 0;
            return;
        }
        for v6 in [false, true] {
            let mut rest = self.datagrams.as_slice();
            let mut trains: Vec<&[Datagram]> = Vec::new();
            while let Some(train) = next_train(&mut rest, wire.trains()) {
                if train[0].to.remote.is_ipv6() == v6 {
                    trains.push(train);
                }
            }
            Sender {
                bytes: &self.bytes,
                books,
                v6,
                waits: 0,
            }
            .send(&trains, wire);
        }
        self.datagrams.clear();
        self.used = 0;
    }
}

/// Splits the next train off: equal lengths to one place, only the last shorter, within what
/// the kernel takes.
fn next_train<'a>(rest: &mut &'a [Datagram], allowed: bool) -> Option<&'a [Datagram]> {
    let first = rest.first()?;
    let mut count = 1;
    let mut bytes = first.len;
    if allowed && !first.single {
        for next in &rest[1..] {
            let joins = count < TRAIN_DATAGRAMS_MAX
                && !next.single
                && next.port == first.port
                && next.to == first.to
                && next.len <= first.len
                && bytes + next.len <= TRAIN_BYTES_MAX;
            if !joins {
                break;
            }
            count += 1;
            bytes += next.len;
            if next.len < first.len {
                break;
            }
        }
    }
    let (train, after) = rest.split_at(count);
    *rest = after;
    Some(train)
}

/// One flush to one family.
struct Sender<'a> {
    bytes: &'a [u8],
    books: Books<'a>,
    v6: bool,
    /// Waits of this flush.
    waits: u32,
}

impl Sender<'_> {
    fn send(&mut self, trains: &[&[Datagram]], wire: &mut impl Wire) {
        let mut rest = trains;
        let bytes = self.bytes;
        let mut messages: Vec<Outgoing<'_>> = Vec::with_capacity(SEND_BATCH);
        while !rest.is_empty() {
            messages.clear();
            messages.extend(
                rest.iter()
                    .take(SEND_BATCH)
                    .map(|train| outgoing(bytes, train)),
            );
            match wire.send(self.v6, &messages) {
                Ok(sent) => rest = &rest[sent.clamp(1, rest.len())..],
                Err(error) => match errno(&error) {
                    libc::EINTR => {}
                    libc::EAGAIN if self.waits < SEND_WAITS_MAX => {
                        self.waits += 1;
                        wire.wait(self.v6, SEND_WAIT);
                    }
                    libc::EAGAIN => {
                        self.lost(rest, DropReason::QueueFull);
                        return;
                    }
                    refused => {
                        self.refused(rest[0], refused, wire);
                        rest = &rest[1..];
                    }
                },
            }
        }
    }

    /// The system refused one message: try what is left to try, then count it.
    fn refused(&mut self, train: &[Datagram], error: i32, wire: &mut impl Wire) {
        let peer = self.books.peer(train[0].port);
        if error == libc::ENOBUFS {
            self.lost(&[train], DropReason::QueueFull);
        } else if train.len() > 1 {
            // EIO: the way out has no checksum offload, so no train will ever leave by it.
            // Otherwise (EINVAL, EMSGSIZE) the path is narrower than the segments.
            if error == libc::EIO {
                wire.refuse_trains();
            } else if let Some(peer) = peer {
                peer.single.store(true, Relaxed);
            }
            let singles: Vec<&[Datagram]> = train.chunks(1).collect();
            self.send(&singles, wire);
        } else if let Some(local) = train[0].to.local {
            // The address that was dialled may be gone from this host: let the system choose.
            let anywhere = [Datagram {
                to: Endpoint {
                    local: None,
                    ..train[0].to
                },
                ..train[0]
            }];
            if is_about_address(error)
                && let Some(peer) = peer
            {
                forget(peer, local);
            }
            self.send(&[&anywhere], wire);
        } else {
            self.lost(&[train], DropReason::WriteFailed);
        }
    }

    fn lost(&self, trains: &[&[Datagram]], reason: DropReason) {
        for train in trains {
            self.books.drop(train[0].port, reason, train.len() as u64);
        }
    }
}

fn outgoing<'a>(bytes: &'a [u8], train: &[Datagram]) -> Outgoing<'a> {
    let start = train[0].start;
    let len = train.iter().map(|datagram| datagram.len).sum::<usize>();
    Outgoing {
        bytes: &bytes[start..start + len],
        segment: (train.len() > 1).then_some(train[0].len as u16),
        remote: train[0].to.remote,
        local: train[0].to.local,
    }
}

fn forget(peer: &Peer, local: IpAddr) {
    peer.forget_local(local);
}

fn is_about_address(error: i32) -> bool {
    matches!(
        error,
        libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV
    )
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EINVAL)
}

#[cfg(test)]
#[path = "outbound_tests.rs"]
mod tests;
