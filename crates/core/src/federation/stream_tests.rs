//! What ends a stream, and what does not.

use std::collections::BTreeMap;

use super::{Config, Event, Federation, Membership, Scope, StreamId, SyncMessage};
use crate::document::fixture::domain;
use crate::ids::NetworkUid;
use crate::machine::Outbox;
use crate::rng::Rng;
use crate::time::Mono;

const ACCEPTED: StreamId = StreamId::Accepted(1);

fn uid(number: u8) -> NetworkUid {
    NetworkUid([number; 16])
}

/// East, which has these networks in common with west.
struct East {
    federation: Federation,
    now: Mono,
    events: Vec<Event>,
}

impl East {
    fn new() -> Self {
        let (name, config) = (domain("east"), Config::default());
        let mut east = Self {
            federation: Federation::new(name, [1; 16], config, Rng::new(7)),
            now: Mono::from_secs(1),
            events: Vec::new(),
        };
        east.reconcile(&[1]);
        east
    }

    fn call(&mut self, call: impl FnOnce(&mut Federation, Mono, &mut Outbox<Event>)) {
        let mut out = Outbox::default();
        call(&mut self.federation, self.now, &mut out);
        self.events.extend(out.take());
    }

    fn reconcile(&mut self, uids: &[u8]) {
        let membership = Membership {
            contacts: vec!["registry.west.test:5002".to_owned()],
            dials_only: false,
            uids: uids.iter().map(|number| uid(*number)).collect(),
        };
        let members = BTreeMap::from([(domain("west"), membership)]);
        self.call(|federation, now, out| federation.reconcile(false, members, now, out));
    }

    /// A stream of the registry of west, which speaks in the first network.
    fn accept(&mut self) {
        let mut scope = Scope::default();
        scope.push(0, uid(1));
        self.call(|federation, now, out| {
            federation.opened(ACCEPTED, &domain("west"), scope, now, out)
        });
        self.events.clear();
    }

    fn receive(&mut self, message: SyncMessage) {
        self.call(|federation, now, out| federation.received(ACCEPTED, message, now, out));
    }

    fn closed(&mut self, stream: StreamId) {
        self.call(|federation, now, out| federation.closed(stream, "refused", now, out));
    }

    /// Lets time pass until somebody is dialled.
    fn dial(&mut self) -> StreamId {
        self.events.clear();
        self.now = self.federation.next_wake().expect("a dial is due").0;
        self.call(Federation::wake);
        let mut dials = self.events.iter().filter_map(|event| match event {
            Event::Dial { stream, .. } => Some(*stream),
            _ => None,
        });
        dials.next_back().expect("a dial")
    }

    /// Why the stream was ended.
    fn reasons(&self) -> Vec<&str> {
        let closes = self.events.iter().filter_map(|event| match event {
            Event::Close { stream, reason } if *stream == ACCEPTED => Some(reason.as_str()),
            _ => None,
        });
        closes.collect()
    }

    fn lost(&self) -> usize {
        let lost = |event: &&Event| matches!(event, Event::Lost { .. });
        self.events.iter().filter(lost).count()
    }
}

fn open(version: u32, name: &str) -> SyncMessage {
    SyncMessage::Open {
        version,
        domain: domain(name),
        epoch: [2; 16],
        uids: vec![uid(1)],
    }
}

fn remove(sequence: u64) -> SyncMessage {
    SyncMessage::Remove {
        sequence,
        uid: uid(1),
        name: "red-west".into(),
    }
}

fn end(sequence: u64) -> SyncMessage {
    SyncMessage::EndOfSnapshot { sequence }
}

fn keep_alive(sequence: u64) -> SyncMessage {
    SyncMessage::KeepAlive { sequence }
}

#[test]
fn a_message_that_breaks_the_protocol_ends_the_stream() {
    let west = || open(1, "west");
    let cases = [
        (vec![], open(2, "west"), "sync version 2"),
        (vec![], open(0, "west"), "sync version 0"),
        (vec![], open(1, "north"), "says it is north"),
        (vec![west()], west(), "opens twice"),
        (vec![west()], remove(2), "sequence 2 after 0"),
        (vec![west(), remove(1)], remove(1), "sequence 1 after 1"),
        (vec![west(), remove(1)], remove(3), "sequence 3 after 1"),
        (vec![], end(1), "was not opened"),
        (vec![west(), end(1)], end(2), "was not opened"),
        (vec![west(), end(1)], keep_alive(0), "sequence 0, 1 was"),
        (vec![west(), end(1)], keep_alive(2), "sequence 2, 1 was"),
    ];
    for (before, message, why) in cases {
        let mut east = East::new();
        east.accept();
        before.into_iter().for_each(|message| east.receive(message));
        assert_eq!(east.reasons(), [""; 0], "{why}");
        east.receive(message);
        let reasons = east.reasons();
        assert!(
            matches!(reasons[..], [reason] if reason.contains(why)),
            "{why}: {reasons:?}"
        );
        assert_eq!((east.lost(), east.federation.connected_count()), (1, 0));
    }
}

#[test]
fn numbered_messages_and_keep_alives_of_the_last_number_go_on() {
    let mut east = East::new();
    east.accept();
    for message in [
        open(1, "west"),
        keep_alive(0),
        remove(1),
        keep_alive(1),
        end(2),
        keep_alive(2),
        remove(3),
    ] {
        east.receive(message);
    }
    assert_eq!(east.reasons(), [""; 0]);
    assert!(east.federation.status()[0].synced);
}

#[test]
fn other_common_networks_open_the_stream_anew() {
    let mut east = East::new();
    east.accept();
    east.reconcile(&[1]);
    assert_eq!(east.reasons(), [""; 0]);
    east.reconcile(&[1, 2]);
    assert_eq!(east.reasons(), ["the common networks changed"]);
    assert_eq!((east.lost(), east.federation.connected_count()), (1, 0));
}

#[test]
fn a_dial_that_fails_leaves_the_stream_that_stands() {
    let mut east = East::new();
    let dialled = east.dial();
    east.accept();
    east.closed(dialled);
    assert_eq!((east.lost(), east.federation.connected_count()), (0, 1));
    east.closed(ACCEPTED);
    assert_eq!((east.lost(), east.federation.connected_count()), (1, 0));
}

#[test]
fn after_a_whole_snapshot_back_off_starts_anew() {
    let waits = |synced: bool| {
        let mut east = East::new();
        for _ in 0..20 {
            let stream = east.dial();
            east.closed(stream);
        }
        east.accept();
        east.receive(open(1, "west"));
        if synced {
            east.receive(end(1));
        }
        east.closed(ACCEPTED);
        let (at, _) = east.federation.next_wake().expect("a dial is due");
        at.saturating_since(east.now)
    };
    let (first, last) = (
        Config::default().backoff_first,
        Config::default().backoff_max,
    );
    assert!(waits(true) <= first, "{:?}", waits(true));
    assert!(waits(false) > last / 4, "{:?}", waits(false));
}
