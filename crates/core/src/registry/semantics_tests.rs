//! The rules of an NSM v1 registry (nsm-wire 4.1 to 4.3), one test each where no other has one.

use core::time::Duration;

use super::bench::{Bench, at, router, workload};
use super::*;
use crate::document::fixture::{domain, id};
use crate::federation::{StreamId, SyncMessage};
use crate::time::Wall;

fn endpoint(name: &str, service: &str) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        services: vec![service.to_owned()],
        url: "tcp://192.0.2.1:5001".to_owned(),
        ..Endpoint::default()
    }
}

fn register(endpoint: Endpoint) -> Command {
    Command::RegisterEndpoint {
        endpoint,
        lifetime: None,
    }
}

fn found(reply: Result<Reply, Refusal>) -> FoundEndpoint {
    match reply {
        Ok(Reply::Endpoint(found)) => found,
        other => panic!("not registered: {other:?}"),
    }
}

fn find(bench: &mut Bench, peer: &Peer, query: EndpointQuery) -> Vec<String> {
    let after = None;
    match bench.call(peer, Command::FindEndpoints { query, after }) {
        Ok(Reply::Endpoints(page)) => page
            .found
            .into_iter()
            .map(|one| one.shown.into_endpoint().name)
            .collect(),
        other => panic!("no answer: {other:?}"),
    }
}

fn find_services(bench: &mut Bench, peer: &Peer, name: &str) -> Vec<String> {
    let query = ServiceQuery {
        name: name.to_owned(),
        ..ServiceQuery::default()
    };
    match bench.call(peer, Command::FindServices { query }) {
        Ok(Reply::Services(found)) => found.into_iter().map(|one| one.name).collect(),
        other => panic!("no answer: {other:?}"),
    }
}

fn watch(bench: &mut Bench, watcher: u64, peer: &Peer, query: EndpointQuery) {
    bench.handle(Input::Watch {
        watcher: WatcherId(watcher),
        peer: peer.clone(),
        query: Query::Endpoints(query),
    });
}

fn named(service: &str) -> EndpointQuery {
    EndpointQuery {
        services: vec![service.to_owned()],
        ..EndpointQuery::default()
    }
}

/// The registry of west says that its router is there.
fn west_syncs(bench: &mut Bench) {
    let uid = bench.chain.uid();
    let stream = StreamId::Accepted(1);
    bench.handle(Input::SyncOpened {
        stream,
        peer: Peer::vouched(id("west", "vl3/registry/west"), [uid].into()),
    });
    let messages = [
        SyncMessage::Open {
            version: 1,
            domain: domain("west"),
            epoch: [2; 16],
            uids: vec![uid],
        },
        SyncMessage::Upsert {
            sequence: 1,
            uid,
            endpoint: bench.endpoint("west", 1).into(),
            lifetime: Duration::from_secs(60),
        },
        SyncMessage::EndOfSnapshot { sequence: 2 },
    ];
    for message in messages {
        bench.handle(Input::SyncReceived { stream, message });
    }
    bench.write();
}

#[test]
fn unregistering_what_is_not_there_is_fine() {
    let mut bench = Bench::new();
    for name in ["", "nobody", "x@y"] {
        let name = name.to_owned();
        let commands = [
            Command::UnregisterEndpoint { name: name.clone() },
            Command::UnregisterService { name },
        ];
        for command in commands {
            assert_eq!(bench.call(&workload("a"), command), Ok(Reply::Done));
        }
    }
    assert!(
        bench
            .disk
            .iter()
            .all(|record| matches!(record, Record::Document { .. }))
    );
}

#[test]
fn an_endpoint_is_unregistered_and_overwritten_by_its_owner_only() {
    let mut bench = Bench::new();
    bench
        .call(&workload("a"), register(endpoint("nse", "icmp")))
        .unwrap();
    let unregister = Command::UnregisterEndpoint {
        name: "nse".to_owned(),
    };
    for command in [register(endpoint("nse", "icmp")), unregister.clone()] {
        let refused = bench.call(&workload("b"), command);
        assert!(
            matches!(refused, Err(Refusal::Denied { .. })),
            "{refused:?}"
        );
    }
    let mut other = endpoint("nse", "other");
    other.url = "tcp://192.0.2.2:5001".to_owned();
    bench.call(&workload("a"), register(other)).unwrap();
    assert_eq!(find(&mut bench, &workload("b"), named("icmp")), [""; 0]);
    assert_eq!(find(&mut bench, &workload("b"), named("other")), ["nse"]);
    bench.call(&workload("a"), unregister).unwrap();
    // The name is free for whoever comes.
    bench
        .call(&workload("b"), register(endpoint("nse", "icmp")))
        .unwrap();
}

#[test]
fn the_first_registration_time_stays_until_the_name_is_unregistered() {
    let mut bench = Bench::new();
    let mut first = endpoint("nse", "icmp");
    let time = found(bench.call(&workload("a"), register(first.clone())))
        .shown
        .endpoint()
        .registered;
    assert_eq!(time, Some(at(1).wall));
    bench.now = at(30);
    first.registered = Some(Wall::from_unix_secs(7));
    first.url = "tcp://192.0.2.9:1".to_owned();
    let again = found(bench.call(&workload("a"), register(first.clone())));
    assert_eq!(again.shown.endpoint().registered, time);
    let name = first.name.clone();
    bench
        .call(&workload("a"), Command::UnregisterEndpoint { name })
        .unwrap();
    // After that what the client says counts, as it resends what it was told.
    let anew = found(bench.call(&workload("a"), register(first)));
    assert_eq!(
        anew.shown.endpoint().registered,
        Some(Wall::from_unix_secs(7))
    );
}

#[test]
fn a_lifetime_is_what_was_asked_for_and_at_most_the_usual_one() {
    let mut bench = Bench::new();
    for (asked, given) in [(None, 60), (Some(20), 20), (Some(3600), 60)] {
        let command = Command::RegisterEndpoint {
            endpoint: endpoint("nse", "icmp"),
            lifetime: asked.map(Duration::from_secs),
        };
        let expires = found(bench.call(&workload("a"), command)).expires;
        assert_eq!(expires, bench.now.wall + Duration::from_secs(given));
        // What a Find shows is the same second.
        let by_second = EndpointQuery {
            expires_unix_secs: Some(expires.unix_secs()),
            ..named("icmp")
        };
        assert_eq!(find(&mut bench, &workload("b"), by_second), ["nse"]);
    }
}

/// Expiry is told as a removal with the last known object, once, and a refresh puts it off.
#[test]
fn an_expired_endpoint_is_told_as_deleted() {
    let mut bench = Bench::new();
    watch(&mut bench, 1, &workload("b"), named("icmp"));
    bench
        .call(&workload("a"), register(endpoint("nse", "icmp")))
        .unwrap();
    bench.now = at(40);
    bench
        .call(&workload("a"), register(endpoint("nse", "icmp")))
        .unwrap();
    for secs in [61, 99] {
        bench.now = at(secs);
        bench.wake();
        bench.write();
    }
    assert_eq!(bench.delivered(1), [("nse".to_owned(), false)]);
    bench.now = at(100);
    bench.wake();
    bench.write();
    bench.wake();
    assert_eq!(bench.delivered(1), [("nse".to_owned(), true)]);
    assert_eq!(find(&mut bench, &workload("b"), named("icmp")), [""; 0]);
}

#[test]
fn an_object_that_stops_matching_makes_no_event() {
    let mut bench = Bench::new();
    watch(&mut bench, 1, &workload("b"), named("icmp"));
    bench
        .call(&workload("a"), register(endpoint("nse", "icmp")))
        .unwrap();
    bench
        .call(&workload("a"), register(endpoint("nse", "other")))
        .unwrap();
    let name = "nse".to_owned();
    bench
        .call(&workload("a"), Command::UnregisterEndpoint { name })
        .unwrap();
    assert_eq!(bench.delivered(1), [("nse".to_owned(), false)]);
}

/// A stock registry has its own domain's objects in its store; `name@domain` goes elsewhere.
#[test]
fn a_query_that_names_no_domain_shows_nothing_of_other_domains() {
    let mut bench = Bench::new();
    watch(&mut bench, 1, &workload("b"), EndpointQuery::default());
    watch(&mut bench, 2, &workload("b"), named("red@west"));
    watch(&mut bench, 3, &router(), named("red"));
    bench
        .call(&workload("a"), register(endpoint("nse", "icmp")))
        .unwrap();
    west_syncs(&mut bench);
    let west = ("red-west@west".to_owned(), false);
    assert_eq!(bench.delivered(1), [("nse".to_owned(), false)]);
    assert_eq!(bench.delivered(2), std::slice::from_ref(&west));
    assert_eq!(bench.delivered(3), [west]);
    let by_url = EndpointQuery {
        url: "192.0.2.1".to_owned(),
        ..EndpointQuery::default()
    };
    for query in [EndpointQuery::default(), by_url] {
        assert_eq!(find(&mut bench, &workload("b"), query.clone()), ["nse"]);
        assert_eq!(find(&mut bench, &router(), query), ["nse", "red-west@west"]);
    }
    let by_name = EndpointQuery {
        name: "red-west@west".to_owned(),
        ..EndpointQuery::default()
    };
    assert_eq!(find(&mut bench, &workload("b"), by_name), ["red-west@west"]);
}

/// What a stock client of `network@domain` looks for before it looks for endpoints.
#[test]
fn a_network_is_a_service_of_each_of_its_members() {
    let mut bench = Bench::new();
    assert_eq!(find_services(&mut bench, &workload("b"), ""), ["red"]);
    assert_eq!(
        find_services(&mut bench, &workload("b"), "red@west"),
        ["red@west"]
    );
    for nothing in ["red@mars", "blue@west", "@west", "red@"] {
        assert_eq!(find_services(&mut bench, &workload("b"), nothing), [""; 0]);
    }
    let west = Peer::vouched(id("west", "workload/w"), [bench.chain.uid()].into());
    assert_eq!(find_services(&mut bench, &west, "red@west"), [""; 0]);
}

/// A router counts in the networks whose documents name it, not in its neighbours'.
#[test]
fn a_router_of_another_network_sees_what_a_workload_sees() {
    let mut bench = Bench::new();
    west_syncs(&mut bench);
    let blue = Peer::own(id("east", "blue/router/1"));
    assert_eq!(find(&mut bench, &blue, named("red")), [""; 0]);
    assert_eq!(find(&mut bench, &blue, EndpointQuery::default()), [""; 0]);
}

#[test]
fn a_service_has_a_payload_is_overwritten_by_its_owner_and_never_expires() {
    let mut bench = Bench::new();
    let service = |payload: &str| Command::RegisterService {
        service: Service {
            name: "icmp".to_owned(),
            payload: payload.to_owned(),
            ..Service::default()
        },
    };
    let payload = |reply: Result<Reply, Refusal>| match reply {
        Ok(Reply::Service(service)) => service.payload,
        other => panic!("not registered: {other:?}"),
    };
    assert_eq!(payload(bench.call(&workload("a"), service(""))), "IP");
    assert_eq!(
        payload(bench.call(&workload("a"), service("ETHERNET"))),
        "ETHERNET"
    );
    // Several endpoints bring the service that they serve: the same again is no takeover.
    assert_eq!(
        payload(bench.call(&workload("b"), service("ETHERNET"))),
        "ETHERNET"
    );
    let refused = bench.call(&workload("b"), service("IP"));
    assert!(
        matches!(refused, Err(Refusal::Denied { .. })),
        "{refused:?}"
    );
    bench.now = at(1_000_000);
    bench.wake();
    bench.write();
    assert_eq!(find_services(&mut bench, &workload("b"), "icmp"), ["icmp"]);
}

#[test]
fn a_query_beyond_the_size_of_an_object_is_refused_with_or_without_watch() {
    let mut bench = Bench::new();
    let query = named(&"x".repeat(20_000));
    let refused = bench.call(
        &workload("a"),
        Command::FindEndpoints {
            query: query.clone(),
            after: None,
        },
    );
    assert!(
        matches!(
            &refused,
            Err(Refusal::Invalid {
                field: "network_service_endpoint",
                ..
            })
        ),
        "{refused:?}"
    );
    watch(&mut bench, 1, &workload("a"), query);
    let ended = |effect: &Effect| matches!(effect, Effect::EndWatch { .. });
    assert!(bench.effects.iter().any(ended));
}
