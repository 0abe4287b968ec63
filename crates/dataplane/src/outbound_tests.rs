use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use arc_swap::ArcSwapOption;
use vl3_core::forward::PortClass;
use vl3_core::ids::PublicKey;

use super::*;
use crate::engine::{DATA_TAG, Emit, Engine, Opened, Ticked};
use crate::limits::WAITING_MAX;
use crate::port::{Counters, Port};

/// Marks slots instead of sealing them.
struct Marker {
    session: AtomicBool,
}

impl Engine for Marker {
    fn seal(&self, train: Train<'_>, emit: &mut Emit<'_>) -> Sealed {
        if !self.session.load(Relaxed) {
            emit(&[1; 148]);
            return Sealed::Waiting {
                dropped: train.lengths.len().saturating_sub(WAITING_MAX),
            };
        }
        let mut at = 0;
        for len in train.lengths {
            train.bytes[at] = 4;
            at += len + DATA_OVERHEAD;
            train.bytes[at - DATA_TAG..at].fill(0xee);
        }
        Sealed::Ready
    }

    fn open(&self, _: &[u8], _: &mut [u8], _: &mut Emit<'_>) -> Opened {
        Opened::Refused
    }

    fn handshake(&self, _: &[u8], _: &mut Emit<'_>) -> bool {
        false
    }

    fn initiate(&self, _: &mut Emit<'_>) {}

    fn keepalive(&self, _: &mut Emit<'_>) {}

    fn tick(&self, _: &mut Emit<'_>) -> Ticked {
        Ticked::default()
    }
}

/// Records what is sent; fails as scripted.
#[derive(Default)]
struct Script {
    /// Answers to the next calls; without one, all is sent.
    answers: VecDeque<Result<usize, i32>>,
    /// Bytes and segment size of each message that was sent.
    sent: Vec<(Vec<u8>, Option<u16>, Endpoint)>,
    refuse_trains: bool,
    waits: usize,
}

impl Wire for Script {
    fn send(&mut self, _v6: bool, messages: &[Outgoing<'_>]) -> io::Result<usize> {
        let count = match self.answers.pop_front() {
            Some(Err(error)) => return Err(io::Error::from_raw_os_error(error)),
            Some(Ok(count)) => count.min(messages.len()),
            None => messages.len(),
        };
        for message in &messages[..count] {
            let to = Endpoint {
                remote: message.remote,
                local: message.local,
            };
            self.sent
                .push((message.bytes.to_vec(), message.segment, to));
        }
        Ok(count)
    }

    fn wait(&mut self, _v6: bool, _at_most: Duration) {
        self.waits += 1;
    }

    fn trains(&self) -> bool {
        !self.refuse_trains
    }

    fn refuse_trains(&mut self) {
        self.refuse_trains = true;
    }
}

impl Script {
    /// Datagrams as they would be on the wire.
    fn datagrams(&self) -> Vec<Vec<u8>> {
        self.sent
            .iter()
            .flat_map(|(bytes, segment, _)| {
                bytes
                    .chunks(segment.map_or(bytes.len(), usize::from))
                    .map(<[u8]>::to_vec)
            })
            .collect()
    }
}

struct World {
    ports: Ports,
    drops: Drops,
    peers: Vec<Arc<Peer>>,
}

impl World {
    fn new(peers: u32) -> Self {
        let mut world = Self {
            ports: Ports::default(),
            drops: Drops::default(),
            peers: Vec::new(),
        };
        for number in 0..peers {
            let peer = peer(number, true);
            let id = PortId(number);
            let port = Port {
                id,
                class: PortClass::Member,
                kind: Kind::Peer(Arc::clone(&peer)),
            };
            world.ports.by_id.insert(id, port);
            world.peers.push(peer);
        }
        world
    }

    fn books(&self) -> Books<'_> {
        Books {
            ports: &self.ports,
            drops: &self.drops,
            now: Mono::from_secs(1),
        }
    }

    fn put(&self, out: &mut Outbound, peer: usize, mark: u8, len: usize, wire: &mut Script) {
        out.slot(
            &self.peers[peer],
            PortId(peer as u32),
            len,
            self.books(),
            wire,
        )
        .fill(mark);
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.drops
            .read()
            .into_iter()
            .find(|(held, _)| *held == reason)
            .map_or(0, |(_, count)| count)
    }
}

fn peer(number: u32, session: bool) -> Arc<Peer> {
    let remote = format!("192.0.2.{}:51820", number + 1)
        .parse()
        .expect("a constant");
    let local = Some("192.0.2.200".parse().expect("a constant"));
    Arc::new(Peer {
        public_key: PublicKey([number as u8; 32]),
        preshared_key: None,
        index: number << 8,
        engine: Box::new(Marker {
            session: AtomicBool::new(session),
        }),
        endpoint: ArcSwapOption::from_pointee(Endpoint { remote, local }),
        keepalive: AtomicU32::new(0),
        last_datagram: AtomicU64::new(0),
        last_handshake: AtomicU64::new(0),
        established: AtomicBool::new(session),
        single: AtomicBool::new(false),
        counters: Arc::new(Counters::default()),
    })
}

/// Fifty packets of 1000 bytes and a short one to one peer.
fn burst(world: &World, wire: &mut Script) -> Vec<u8> {
    let mut out = Outbound::new();
    for mark in 0..50 {
        world.put(&mut out, 0, mark, 1000, wire);
    }
    world.put(&mut out, 0, 50, 200, wire);
    out.flush(world.books(), wire);
    wire.datagrams()
        .iter()
        .map(|datagram| datagram[DATA_HEADER])
        .collect()
}

#[test]
fn equal_packets_to_one_place_leave_as_one_train_with_a_shorter_last() {
    let (world, mut wire) = (World::new(1), Script::default());
    assert_eq!(burst(&world, &mut wire), (0..=50).collect::<Vec<u8>>());
    assert_eq!(wire.sent.len(), 1);
    assert_eq!(wire.sent[0].1, Some(1032));
    assert_eq!(world.peers[0].counters.sent_packets.load(Relaxed), 51);
}

#[test]
fn a_train_ends_at_64_datagrams_a_longer_one_or_another_place() {
    let (world, mut wire) = (World::new(2), Script::default());
    let mut out = Outbound::new();
    for _ in 0..70 {
        world.put(&mut out, 0, 1, 100, &mut wire);
    }
    world.put(&mut out, 0, 2, 900, &mut wire);
    world.put(&mut out, 1, 3, 900, &mut wire);
    world.put(&mut out, 0, 4, 900, &mut wire);
    out.flush(world.books(), &mut wire);
    let shapes: Vec<_> = wire
        .sent
        .iter()
        .map(|(bytes, segment, _)| (bytes.len(), *segment))
        .collect();
    assert_eq!(
        shapes,
        [
            (64 * 132, Some(132)),
            (6 * 132, Some(132)),
            (932, None),
            (932, None),
            (932, None)
        ]
    );
}

#[test]
fn a_train_refused_with_eio_goes_singly_and_trains_are_over() {
    let (world, mut wire) = (World::new(1), Script::default());
    wire.answers.push_back(Err(libc::EIO));
    assert_eq!(burst(&world, &mut wire), (0..=50).collect::<Vec<u8>>());
    assert!(wire.refuse_trains);
    assert_eq!(wire.sent.len(), 51);
    assert!(world.drops.read().is_empty());
}

#[test]
fn a_train_refused_with_einval_in_the_middle_resends_only_what_was_not_sent() {
    let (world, mut wire) = (World::new(2), Script::default());
    let mut out = Outbound::new();
    for (peer, mark) in [(0, 1), (0, 2), (1, 3), (1, 4), (0, 5), (0, 6)] {
        world.put(&mut out, peer, mark, 500, &mut wire);
    }
    wire.answers.extend([Ok(1), Err(libc::EINVAL)]);
    out.flush(world.books(), &mut wire);
    let marks: Vec<u8> = wire
        .datagrams()
        .iter()
        .map(|datagram| datagram[DATA_HEADER])
        .collect();
    assert_eq!(marks, [1, 2, 3, 4, 5, 6]);
    assert!(
        world.peers[1].single.load(Relaxed),
        "this path takes no trains"
    );
    assert!(!world.peers[0].single.load(Relaxed) && !wire.refuse_trains);
}

#[test]
fn a_full_socket_is_waited_for_briefly_and_then_the_rest_is_dropped() {
    let (world, mut wire) = (World::new(1), Script::default());
    wire.answers.extend([Err(libc::EAGAIN), Err(libc::EAGAIN)]);
    assert_eq!(burst(&world, &mut wire).len(), 51);
    assert_eq!(wire.waits, 2);
    wire.answers.extend([Err(libc::EAGAIN); 10]);
    burst(&world, &mut wire);
    assert_eq!(world.dropped(DropReason::QueueFull), 51);
    assert_eq!(wire.waits, 2 + SEND_WAITS_MAX as usize);
}

#[test]
fn a_local_address_that_is_gone_is_forgotten() {
    let (world, mut wire) = (World::new(1), Script::default());
    let mut out = Outbound::new();
    world.put(&mut out, 0, 1, 100, &mut wire);
    wire.answers.push_back(Err(libc::EADDRNOTAVAIL));
    out.flush(world.books(), &mut wire);
    assert_eq!(wire.sent.len(), 1);
    assert_eq!(wire.sent[0].2.local, None);
    let endpoint = world.peers[0].endpoint.load_full().expect("kept");
    assert_eq!(endpoint.local, None);
}

#[test]
fn what_the_system_never_takes_is_counted_once_per_packet() {
    let (world, mut wire) = (World::new(1), Script::default());
    let mut out = Outbound::new();
    world.put(&mut out, 0, 1, 100, &mut wire);
    wire.answers
        .extend([Err(libc::ENETUNREACH), Err(libc::ENETUNREACH)]);
    out.flush(world.books(), &mut wire);
    assert_eq!(world.dropped(DropReason::WriteFailed), 1);
}

#[test]
fn without_session_packets_wait_in_the_engine_and_the_initiation_leaves() {
    let (world, mut wire) = (World::new(1), Script::default());
    let waiting = peer(0, false);
    let mut out = Outbound::new();
    for _ in 0..WAITING_MAX + 3 {
        out.slot(&waiting, PortId(0), 100, world.books(), &mut wire)
            .fill(1);
    }
    out.flush(world.books(), &mut wire);
    assert_eq!(wire.sent.len(), 1);
    assert_eq!(wire.sent[0].0, [1; 148]);
    assert_eq!(world.dropped(DropReason::NoSession), 3);
}

#[test]
fn a_batch_larger_than_the_arena_is_flushed_on_the_way() {
    let (world, mut wire) = (World::new(1), Script::default());
    let mut out = Outbound::new();
    let count = 2 * OUTBOUND_BYTES / 1032;
    for number in 0..count {
        world.put(&mut out, 0, number as u8, 1000, &mut wire);
    }
    out.flush(world.books(), &mut wire);
    let marks: Vec<u8> = wire
        .datagrams()
        .iter()
        .map(|datagram| datagram[DATA_HEADER])
        .collect();
    assert_eq!(
        marks,
        (0..count).map(|number| number as u8).collect::<Vec<_>>()
    );
}
