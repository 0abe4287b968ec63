//! What other domains see and what their word is worth.

use core::time::Duration;

use super::bench::{Bench, at, config, router, workload};
use super::*;
use crate::document::Chain;
use crate::document::fixture::{chain, domain, id, next};
use crate::federation::{StreamId, SyncMessage};
use crate::machine::Machine as _;

const STREAM: StreamId = StreamId::Accepted(1);

fn three() -> Bench {
    Bench::boot(config(), chain(&["east", "west", "north"]), Vec::new())
}

fn vouched(bench: &Bench, domain: &str, path: &str) -> Peer {
    Peer::vouched(id(domain, path), [bench.chain.uid()].into())
}

fn query(service: &str) -> EndpointQuery {
    EndpointQuery {
        services: vec![service.to_owned()],
        ..EndpointQuery::default()
    }
}

fn find(bench: &mut Bench, peer: &Peer, query: &EndpointQuery) -> Vec<String> {
    let (query, after) = (query.clone(), None);
    let page = match bench.call(peer, Command::FindEndpoints { query, after }) {
        Ok(Reply::Endpoints(page)) => page,
        other => panic!("no answer: {other:?}"),
    };
    let found = page.found.into_iter();
    let mut names: Vec<_> = found.map(|one| one.shown.into_endpoint().name).collect();
    names.sort();
    names
}

fn watch(bench: &mut Bench, watcher: u64, peer: &Peer, query: &EndpointQuery) {
    bench.handle(Input::Watch {
        watcher: WatcherId(watcher),
        peer: peer.clone(),
        query: Query::Endpoints(query.clone()),
    });
}

fn says(bench: &mut Bench, message: SyncMessage) {
    let stream = STREAM;
    bench.handle(Input::SyncReceived { stream, message });
    bench.write();
}

/// The registry of west opens a stream.
fn west_opens(bench: &mut Bench) {
    let peer = vouched(bench, "west", "vl3/registry/r");
    let uids = vec![bench.chain.uid()];
    bench.handle(Input::SyncOpened {
        stream: STREAM,
        peer,
    });
    says(
        bench,
        SyncMessage::Open {
            version: 1,
            domain: domain("west"),
            epoch: [2; 16],
            uids,
        },
    );
}

/// West says that its router is there, under this address.
fn west_says(bench: &mut Bench, sequence: u64, url: &str) {
    let endpoint = Endpoint {
        url: url.to_owned(),
        ..bench.endpoint("west", 1)
    };
    let message = SyncMessage::Upsert {
        sequence,
        uid: bench.chain.uid(),
        endpoint: endpoint.into(),
        lifetime: Duration::from_secs(60),
    };
    says(bench, message);
}

fn alarms(bench: &Bench) -> Vec<&Alarm> {
    let alarms = bench.effects.iter().filter_map(|effect| match effect {
        Effect::Alarm(alarm) => Some(alarm),
        _ => None,
    });
    alarms.collect()
}

#[test]
fn own_endpoints_are_shown_to_live_members_of_their_network() {
    let mut bench = three();
    let revoked = next(&bench.chain, |document| {
        document.members.get_mut(&domain("north")).unwrap().revoked = true;
    });
    let publish = Command::Publish { chain: revoked };
    bench.call(&router(), publish).unwrap();
    let seen = [
        (workload("a"), vec!["icmp-1", "red-east"]),
        (vouched(&bench, "west", "workload/w"), vec!["red-east"]),
        (Peer::own(id("west", "workload/w")), vec![]),
        (vouched(&bench, "north", "workload/w"), vec![]),
        (vouched(&bench, "mars", "workload/w"), vec![]),
    ];
    let all = EndpointQuery::default();
    for (watcher, (peer, _)) in (1..).zip(&seen) {
        watch(&mut bench, watcher, peer, &all);
    }
    let unmarked = Command::RegisterEndpoint {
        endpoint: Endpoint {
            name: "icmp-1".to_owned(),
            services: vec!["icmp".to_owned()],
            ..Endpoint::default()
        },
        lifetime: None,
    };
    bench.call(&workload("a"), unmarked).unwrap();
    bench.call(&router(), bench.register(1)).unwrap();
    for (peer, names) in &seen {
        assert_eq!(find(&mut bench, peer, &all), *names, "{peer:?}");
    }
    for (peer, name) in [(workload("a"), "icmp-1"), (router(), "red-east")] {
        let name = name.to_owned();
        bench
            .call(&peer, Command::UnregisterEndpoint { name })
            .unwrap();
    }
    for (watcher, (peer, names)) in (1..).zip(&seen) {
        let told = [false, true].map(|deleted| {
            let names = names.iter();
            names.map(move |name| ((*name).to_owned(), deleted))
        });
        let told: Vec<_> = told.into_iter().flatten().collect();
        assert_eq!(bench.delivered(watcher), told, "{peer:?}");
    }
}

#[test]
fn endpoints_of_third_domains_are_found_at_theirs_only() {
    let mut bench = three();
    let by_name = EndpointQuery {
        name: "red-west@west".to_owned(),
        ..EndpointQuery::default()
    };
    let queries = [EndpointQuery::default(), query("red@west"), by_name];
    let strangers = [
        vouched(&bench, "north", "workload/n"),
        vouched(&bench, "north", "vl3/router/r"),
    ];
    for (watcher, peer) in (1..).zip(&strangers) {
        watch(&mut bench, watcher, peer, &queries[1]);
    }
    west_opens(&mut bench);
    west_says(&mut bench, 1, "tcp://192.0.2.7:5010");
    for query in &queries {
        for peer in &strangers {
            assert_eq!(find(&mut bench, peer, query), [""; 0], "{query:?}");
        }
    }
    assert_eq!((bench.delivered(1), bench.delivered(2)), (vec![], vec![]));
    let found = find(&mut bench, &workload("a"), &queries[1]);
    assert_eq!(found, ["red-west@west"]);
}

#[test]
fn what_is_not_believed_any_more_ends() {
    let mut bench = three();
    west_opens(&mut bench);
    watch(&mut bench, 1, &router(), &query("red"));
    west_says(&mut bench, 1, "tcp://192.0.2.7:5010");
    assert_eq!(bench.delivered(1), [("red-west@west".to_owned(), false)]);
    west_says(&mut bench, 2, "tcp://127.0.0.1:5010");
    assert_eq!(bench.delivered(1), [("red-west@west".to_owned(), true)]);
    assert_eq!(find(&mut bench, &router(), &query("red")), [""; 0]);
    let alarms = alarms(&bench);
    assert!(
        matches!(alarms[..], [Alarm::NotBelieved { reason, .. }] if reason.contains("loopback")),
        "{alarms:?}"
    );
}

#[test]
fn a_forked_document_that_comes_by_sync_alarms_and_changes_nothing() {
    let first = chain(&["east", "west"]);
    let [ours, theirs] = [1, 2].map(|limit| {
        next(&first, |document| {
            document.policy.stale_limit_seconds = limit
        })
    });
    let mut bench = Bench::boot(config(), ours.clone(), Vec::new());
    west_opens(&mut bench);
    bench.effects.clear();
    says(&mut bench, SyncMessage::Document(theirs));
    let (uid, from) = (ours.uid(), "the registry of west".to_owned());
    let version = 2;
    let conflict = Alarm::DocumentConflict { uid, version, from };
    assert_eq!(alarms(&bench), [&conflict]);
    assert_eq!(bench.machine.document(uid), Some(&ours));
}

fn until(chain: &Chain, of: &str, secs: u64) -> Chain {
    next(chain, |document| {
        document.members.get_mut(&domain(of)).unwrap().not_after = Some(at(secs).wall);
    })
}

#[test]
fn a_membership_ends_at_its_time_without_a_new_version() {
    let chain = until(&chain(&["east", "west"]), "west", 100);
    let mut bench = Bench::boot(config(), chain, Vec::new());
    west_opens(&mut bench);
    west_says(&mut bench, 1, "tcp://192.0.2.7:5010");
    let mut sees = |secs| {
        bench.now = at(secs);
        bench.wake();
        bench.write();
        let due = bench.machine.next_wake().map(|(due, _)| due);
        (find(&mut bench, &router(), &query("red")), due)
    };
    let (found, due) = sees(99);
    assert_eq!(found, ["red-west@west"]);
    assert!(due.is_some_and(|due| due <= at(100).mono), "{due:?}");
    assert_eq!(sees(100).0, [""; 0]);
    assert!(bench.machine.remotes().is_empty());
}

#[test]
fn a_dialled_stream_is_of_the_domain_that_was_dialled() {
    let mut bench = three();
    for number in [1, 2] {
        let (stream, reason) = (StreamId::Dialled(number), "refused".to_owned());
        bench.handle(Input::SyncClosed { stream, reason });
    }
    bench.now = at(60);
    bench.effects.clear();
    bench.wake();
    let dials = bench.effects.iter().filter_map(|effect| match effect {
        Effect::Dial { stream, domain, .. } => Some((domain.to_string(), *stream)),
        _ => None,
    });
    let mut dials: Vec<_> = dials.collect();
    dials.sort();
    let [(_, to_north), (_, to_west)] = dials[..] else {
        panic!("two domains are dialled: {dials:?}");
    };
    bench.effects.clear();
    for (stream, who) in [(to_west, "north"), (to_north, "north")] {
        let peer = vouched(&bench, who, "vl3/registry/r");
        bench.handle(Input::SyncOpened { stream, peer });
    }
    let closed =
        |effect: &Effect, of| matches!(effect, Effect::CloseStream { stream, .. } if *stream == of);
    let is_closed = |of| bench.effects.iter().any(|effect| closed(effect, of));
    assert!(is_closed(to_west) && !is_closed(to_north));
    let told =
        |effect: &Effect| matches!(effect, Effect::Send { stream, .. } if *stream == to_west);
    assert!(!bench.effects.iter().any(told));
}
