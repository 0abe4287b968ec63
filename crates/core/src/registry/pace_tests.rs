//! Another domain may say much, and delays nobody with it.

use core::time::Duration;
use std::sync::Arc;

use super::bench::{Bench, config, workload};
use super::*;
use crate::document::fixture::{chain, domain, id};
use crate::federation::{StreamId, SyncMessage};
use crate::rate::Rate;
use crate::time::Now;

impl Bench {
    fn passes(&mut self, time: Duration) {
        self.now = Now {
            mono: self.now.mono + time,
            wall: self.now.wall + time,
        };
    }

    /// Whether the stream was closed since it was asked last.
    fn closed(&mut self, stream: u64) -> bool {
        let stream = StreamId::Accepted(stream);
        let of = |effect: &Effect| matches!(effect, Effect::CloseStream { stream: of, .. } if *of == stream);
        let closed = self.effects.iter().any(of);
        self.effects.clear();
        closed
    }

    /// A whole snapshot of endpoints `red-0` and on.
    fn snapshot(&mut self, stream: u64, endpoints: u64) {
        for at in 0..endpoints {
            self.west_says(stream, at + 1, &format!("red-{at}"));
        }
        let sequence = endpoints + 1;
        let end = SyncMessage::EndOfSnapshot { sequence };
        self.says(StreamId::Accepted(stream), end);
    }

    fn too_fast(&self) -> u64 {
        self.machine.counts().streams_too_fast
    }
}

#[test]
fn a_domain_that_changes_too_much_too_fast_loses_its_stream_for_a_while() {
    let mut limits = config();
    limits.federation.changes = Rate {
        per_second: 10,
        burst: 200,
    };
    let chain = chain(&["east", "west", "north"]);
    let mut bench = Bench::boot(limits, chain, Vec::new());
    // A stream costs as much as a hundred changes.
    bench.west(1);
    for sequence in 1..=100 {
        bench.west_says(1, sequence, &format!("red-{sequence}"));
    }
    assert!(!bench.closed(1));
    bench.west_says(1, 101, "red-101");
    let told = Effect::Alarm(Alarm::DomainTooFast {
        domain: domain("west"),
        limit: 10,
    });
    assert!(bench.effects.contains(&told));
    assert!(bench.closed(1));
    let entries = |bench: &Bench| bench.machine.remote_size(&domain("west")).endpoints;
    assert_eq!((entries(&bench), bench.too_fast()), (100, 1));
    // It gets no other one at once, and nothing is told to it; others do.
    bench.west(2);
    assert!(
        !bench
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Send { .. }))
    );
    assert!(bench.closed(2));
    assert_eq!(bench.too_fast(), 2);
    let peer = Peer::vouched(id("north", "vl3/registry/r"), [bench.chain.uid()].into());
    let stream = StreamId::Accepted(3);
    bench.handle(Input::SyncOpened { stream, peer });
    assert!(!bench.closed(3));
    bench.passes(Duration::from_secs(10));
    bench.west(4);
    assert!(!bench.closed(4));
    // What is not believed costs as much, what is known already nearly nothing.
    bench.passes(Duration::from_secs(10));
    for sequence in 1..=100 {
        bench.west_says(4, sequence, "red-1");
    }
    assert!(!bench.closed(4));
    for sequence in 101..=200 {
        bench.west_says(4, sequence, "no router name");
    }
    assert!(bench.closed(4));
}

#[test]
fn the_usual_limits_are_not_met_by_a_large_domain_that_flaps() {
    let mut bench = Bench::new();
    for stream in 1..=100 {
        bench.west(stream);
        bench.snapshot(stream, 1000);
        assert!(!bench.closed(stream));
        let (stream, reason) = (StreamId::Accepted(stream), "lost".to_owned());
        bench.handle(Input::SyncClosed { stream, reason });
        bench.passes(Duration::from_secs(1));
    }
    bench.west(101);
    bench.snapshot(101, 1000);
    for second in 0..600 {
        bench.passes(Duration::from_secs(1));
        let message = SyncMessage::Upsert {
            sequence: 1002 + second,
            uid: bench.chain.uid(),
            endpoint: Arc::new(bench.endpoint("west", second)),
            lifetime: Duration::from_secs(60),
        };
        bench.says(StreamId::Accepted(101), message);
    }
    assert!(!bench.closed(101));
    assert_eq!(bench.too_fast(), 0);
}

/// Nothing is on disk for a while: memory is bounded, and the own domain comes first.
#[test]
fn while_the_disk_stands_still_streams_end_and_the_own_domain_goes_on() {
    let limits = Config {
        pending_bytes_max: 100_000,
        ..config()
    };
    let mut bench = Bench::boot(limits, chain(&["east", "west"]), Vec::new());
    bench.west(1);
    let mut said = 0;
    while !bench.closed(1) {
        said += 1;
        assert!(said < 1000, "no end");
        let mut endpoint = bench.endpoint("west", said);
        endpoint.url = format!("tcp://192.0.2.1:{}", 5000 + said);
        let message = SyncMessage::Upsert {
            sequence: said,
            uid: bench.chain.uid(),
            endpoint: Arc::new(endpoint),
            lifetime: Duration::from_secs(60),
        };
        let stream = StreamId::Accepted(1);
        bench.handle(Input::SyncReceived { stream, message });
    }
    assert!(said > 20, "{said}");
    let peer = Peer::vouched(id("west", "vl3/registry/r"), [bench.chain.uid()].into());
    let stream = StreamId::Accepted(2);
    bench.handle(Input::SyncOpened { stream, peer });
    assert!(bench.closed(2));
    assert_eq!(bench.machine.counts().streams_congested, 2);
    let plain = Endpoint {
        name: "own".to_owned(),
        services: vec!["icmp".to_owned()],
        ..Endpoint::default()
    };
    let command = Command::RegisterEndpoint {
        endpoint: plain,
        lifetime: None,
    };
    let call = bench.send(&workload("a"), command);
    assert_eq!(bench.reply(call), None, "it waits for the disk");
    bench.write();
    assert!(matches!(bench.reply(call), Some(Ok(_))));
    bench.west(3);
    assert!(!bench.closed(3));
}
