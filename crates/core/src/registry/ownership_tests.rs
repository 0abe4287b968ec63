//! Who may take which name, and who may change what another one holds.

use super::bench::{Bench, at, config, router, workload};
use super::*;
use crate::allocator::Lease;
use crate::document::fixture::{chain, domain, id, next, other_chain};
use crate::ids::{Generation, RouterName};

fn endpoint(name: &str, service: &str) -> Command {
    let endpoint = Endpoint {
        name: name.to_owned(),
        services: vec![service.to_owned()],
        url: "tcp://192.0.2.66:5000".to_owned(),
        ..Endpoint::default()
    };
    Command::RegisterEndpoint {
        endpoint,
        lifetime: None,
    }
}

fn service(name: &str, payload: &str) -> Command {
    let service = Service {
        name: name.to_owned(),
        payload: payload.to_owned(),
        ..Service::default()
    };
    Command::RegisterService { service }
}

/// The field that a refusal of the caller names.
fn denied(result: Result<Reply, Refusal>) -> &'static str {
    match result {
        Err(Refusal::Denied { what, .. }) => what,
        other => panic!("not denied: {other:?}"),
    }
}

fn acquire_as(bench: &mut Bench, peer: &Peer, name: &str) -> Result<Reply, Refusal> {
    let mut command = bench.acquire(7);
    if let Command::Acquire { acquire, .. } = &mut command {
        acquire.router = RouterName::new(name).unwrap();
    }
    bench.call(peer, command)
}

#[test]
fn names_of_routers_and_networks_are_kept_for_routers() {
    let mut bench = Bench::new();
    let mallory = workload("mallory");
    for name in ["red", "red-east", "red-east-2", "red-east-x"] {
        assert_eq!(
            denied(bench.call(&mallory, endpoint(name, "icmp"))),
            "network_service_endpoint.name",
            "{name}"
        );
    }
    assert_eq!(
        denied(bench.call(&mallory, endpoint("mine", "red"))),
        "network_service_endpoint.network_service_names"
    );
    assert_eq!(
        denied(bench.call(&mallory, service("red", "ETHERNET"))),
        "network_service.name"
    );
    // Close to them is free.
    for name in ["reds", "red-eastern", "red-west", "icmp-red-east"] {
        bench.call(&mallory, endpoint(name, "icmp")).unwrap();
    }
    bench.call(&mallory, service("redder", "IP")).unwrap();
    bench.call(&router(), service("red", "IP")).unwrap();
    bench.call(&router(), bench.register(1)).unwrap();
    // Behind an intermediary it is whom the path names that counts.
    let manager = id("east", "ns/nsm/nsmgr");
    let listed = next(&bench.chain, |document| {
        let east = document.members.get_mut(&domain("east")).unwrap();
        east.roles.intermediary = vec![manager.to_string()];
    });
    bench
        .call(&workload("a"), Command::Publish { chain: listed })
        .unwrap();
    let carried = |by: Peer| Peer {
        claimed: vec![by.id],
        ..Peer::own(manager.clone())
    };
    assert_eq!(
        denied(bench.call(&carried(mallory), endpoint("red-east-3", "icmp"))),
        "network_service_endpoint.name"
    );
    bench
        .call(&carried(router()), endpoint("red-east-3", "red"))
        .unwrap();
}

#[test]
fn a_leased_router_name_is_its_holders() {
    let mut bench = Bench::new();
    let mallory = workload("mallory");
    let other = Peer::own(id("east", "vl3/router/other"));
    acquire_as(&mut bench, &router(), "gateway").unwrap();
    for stranger in [&mallory, &other] {
        assert_eq!(
            denied(bench.call(stranger, endpoint("gateway", "icmp"))),
            "network_service_endpoint.name"
        );
    }
    bench.call(&router(), endpoint("gateway", "red")).unwrap();
}

#[test]
fn who_squats_a_name_gives_way_to_the_router_that_may_have_it() {
    let mut bench = Bench::new();
    let mallory = workload("mallory");
    // Taken while it was nobody's.
    bench.call(&mallory, endpoint("gateway", "icmp")).unwrap();
    acquire_as(&mut bench, &router(), "gateway").unwrap();
    bench.call(&router(), endpoint("gateway", "red")).unwrap();
    let unregister = Command::UnregisterEndpoint {
        name: "gateway".to_owned(),
    };
    assert_eq!(
        denied(bench.call(&mallory, unregister)),
        "network_service_endpoint.name"
    );
    // A journal of before the network was served here.
    let squatted = |name: &str| Record::Service {
        service: Service {
            name: name.to_owned(),
            payload: "ETHERNET".to_owned(),
            ..Service::default()
        },
        owner: mallory.id.clone(),
    };
    let disk = vec![squatted("red"), squatted("icmp")];
    let mut bench = Bench::boot(config(), chain(&["east", "west"]), disk);
    bench.call(&router(), service("red", "IP")).unwrap();
    assert_eq!(
        denied(bench.call(&router(), service("icmp", "IP"))),
        "network_service.name"
    );
    assert_eq!(
        denied(bench.call(&mallory, service("red", "ETHERNET"))),
        "network_service.name"
    );
}

#[test]
fn a_name_has_addresses_of_its_routers_lease_only() {
    let mut bench = Bench::new();
    let other = Peer::own(id("east", "vl3/router/other"));
    bench.call(&router(), bench.acquire(1)).unwrap();
    acquire_as(&mut bench, &other, "red-east-2").unwrap();
    let lease = |bench: &Bench, name: &str| {
        let name = RouterName::new(name).unwrap();
        let uid = bench.chain.uid();
        bench.machine.lease(uid, &name).unwrap().clone()
    };
    let (own, others) = (lease(&bench, "red-east"), lease(&bench, "red-east-2"));
    let claim = |bench: &Bench, addresses: Vec<std::net::IpAddr>| {
        let mut command = bench.claim("web", "a");
        if let Command::ClaimName { claim, .. } = &mut command {
            claim.addresses = addresses;
        }
        command
    };
    let host4 = |lease: &Lease| lease.prefix4.unwrap().hosts().nth(3).unwrap().into();
    let host6 = |lease: &Lease| lease.prefix6.hosts().nth(3).unwrap().into();
    for foreign in [host4(&others), host6(&others)] {
        let refused = bench.call(&router(), claim(&bench, vec![host4(&own), foreign]));
        assert!(
            matches!(
                &refused,
                Err(Refusal::Invalid { field: "addresses", value, .. }) if *value == foreign.to_string()
            ),
            "{refused:?}"
        );
    }
    let both = claim(&bench, vec![host4(&own), host6(&own)]);
    let granted = Ok(Reply::Name { held_by: None });
    assert_eq!(bench.call(&router(), both), granted);
}

#[test]
fn a_lease_is_ended_by_its_holder_or_by_the_operator_and_exclusions_are_the_operators() {
    let mut bench = Bench::new();
    let operator = Peer::own(config().identity);
    let uid = bench.chain.uid();
    let end = Command::EndLease {
        uid,
        router: RouterName::new("red-east").unwrap(),
    };
    let exclude = |excluded| Command::Exclude {
        uid,
        range: "10.80.7.0/24".parse().unwrap(),
        excluded,
    };
    let sibling = Peer::own(id("east", "vl3/router/other"));
    bench.call(&router(), bench.acquire(1)).unwrap();
    for stranger in [&sibling, &workload("mallory")] {
        assert_eq!(denied(bench.call(stranger, end.clone())), "a lease's end");
    }
    for stranger in [&router(), &workload("mallory")] {
        for excluded in [true, false] {
            assert_eq!(
                denied(bench.call(stranger, exclude(excluded))),
                "an exclusion"
            );
        }
    }
    assert_eq!(bench.machine.leases().count(), 1);
    bench.call(&operator, exclude(true)).unwrap();
    bench.call(&operator, exclude(false)).unwrap();
    bench.call(&operator, end.clone()).unwrap();
    assert_eq!(bench.machine.leases().count(), 0);
    bench.call(&router(), bench.acquire(1)).unwrap();
    bench.call(&router(), end).unwrap();
    assert_eq!(bench.machine.leases().count(), 0);
}

/// A registry whose disk is gone hears of rounds from those that live on.
#[test]
fn a_registry_without_memory_counts_on_from_what_routers_registered() {
    let generation = |reply: Result<Reply, Refusal>| match reply {
        Ok(Reply::Lease(granted)) => granted.lease.generation,
        other => panic!("no lease: {other:?}"),
    };
    let mut bench = Bench::new();
    bench.call(&router(), bench.register(5)).unwrap();
    // Another network's round, or an unmarked registration, says nothing.
    assert_eq!(
        generation(acquire_as(&mut bench, &router(), "red-east-2")),
        Generation(1)
    );
    // A new life of the name, which remembers nothing, stands after the old one.
    assert_eq!(
        generation(bench.call(&router(), bench.acquire(2))),
        Generation(6)
    );
    assert!(matches!(
        bench.call(&router(), bench.register(5)),
        Err(Refusal::Lease(_))
    ));
    bench.call(&router(), bench.register(6)).unwrap();
    // Once: with a lease at hand its own round counts, and a refresh writes nothing.
    let written = bench.disk.len();
    assert_eq!(
        generation(bench.call(&router(), bench.acquire(2))),
        Generation(6)
    );
    assert_eq!(bench.disk.len(), written);
    // The floor is durable, whatever happens to the registration.
    bench.restart();
    bench.now = at(100);
    bench.wake();
    bench.write();
    assert_eq!(bench.machine.endpoints().count(), 0);
    assert_eq!(
        generation(bench.call(&router(), bench.acquire(3))),
        Generation(7)
    );
}

/// The floor would follow it on the next acquire, for ever.
#[test]
fn a_registration_does_not_use_generations_up() {
    let mut bench = Bench::new();
    for high in [u64::MAX, (1 << 32) + 1] {
        let refused = bench.call(&router(), bench.register(high));
        assert!(
            matches!(
                refused,
                Err(Refusal::Lease(
                    crate::allocator::Refusal::GenerationTooHigh { .. }
                ))
            ),
            "{refused:?}"
        );
    }
    // One that a journal of an earlier version holds counts for nothing.
    let record = Record::Endpoint {
        endpoint: bench.endpoint("east", u64::MAX).into(),
        owner: router().id,
    };
    let disk = vec![
        Record::Document {
            chain: bench.chain.clone(),
        },
        record,
    ];
    let mut bench = Bench::boot(super::bench::config(), bench.chain.clone(), disk);
    let granted = bench.call(&router(), bench.acquire(1));
    assert!(
        matches!(&granted, Ok(Reply::Lease(granted)) if granted.lease.generation == Generation(1)),
        "{granted:?}"
    );
}

/// Others' services are shown as `name@domain`: nobody here may speak under such a name.
#[test]
fn what_is_registered_has_names_of_the_own_domain_only() {
    let mut bench = Bench::new();
    let field = |result: Result<Reply, Refusal>| match result {
        Err(Refusal::Invalid { field, .. }) => field,
        other => panic!("not refused: {other:?}"),
    };
    for wrong in ["", "red@west", "line\nbreak"] {
        let peer = workload("a");
        assert_eq!(
            field(bench.call(&peer, endpoint(wrong, "icmp"))),
            "network_service_endpoint.name"
        );
        assert_eq!(
            field(bench.call(&peer, endpoint("icmp-1", wrong))),
            "network_service_endpoint.network_service_names"
        );
        assert_eq!(
            field(bench.call(&peer, service(wrong, "IP"))),
            "network_service.name"
        );
        let mut labelled = endpoint("icmp-1", "icmp");
        if let Command::RegisterEndpoint { endpoint, .. } = &mut labelled {
            endpoint.labels.insert(wrong.to_owned(), Labels::new());
        }
        assert_eq!(
            field(bench.call(&peer, labelled)),
            "network_service_endpoint.network_service_labels"
        );
    }
}

#[test]
fn objects_and_queries_are_bounded_in_all_their_parts() {
    let mut bench = Bench::new();
    let field = |result: Result<Reply, Refusal>| match result {
        Err(Refusal::Invalid { field, value, .. }) => {
            assert!(value.ends_with(" bytes"), "{value}");
            field
        }
        other => panic!("not refused: {other:?}"),
    };
    let pairs = |count: u32| (0..count).map(|at| (at.to_string(), String::new()));
    // Many small things are as large as few big ones.
    let mut many = endpoint("icmp-1", "icmp");
    if let Command::RegisterEndpoint { endpoint, .. } = &mut many {
        endpoint.labels.insert("icmp".into(), pairs(1000).collect());
    }
    assert_eq!(
        field(bench.call(&workload("a"), many)),
        "network_service_endpoint"
    );
    let route = Destination::default();
    let rule = Match {
        routes: vec![route; 2000],
        ..Match::default()
    };
    let big = Service {
        name: "icmp".to_owned(),
        matches: vec![rule],
        ..Service::default()
    };
    let register = Command::RegisterService {
        service: big.clone(),
    };
    assert_eq!(
        field(bench.call(&workload("a"), register)),
        "network_service"
    );
    // A watch keeps its query.
    let queries = [
        Query::Services(ServiceQuery {
            matches: big.matches,
            ..ServiceQuery::default()
        }),
        Query::Endpoints(EndpointQuery {
            services: vec![String::new(); 2000],
            ..EndpointQuery::default()
        }),
    ];
    for (number, query) in (1..).zip(queries) {
        bench.handle(Input::Watch {
            watcher: WatcherId(number),
            peer: workload("a"),
            query,
        });
    }
    let ended = |effect: &&Effect| matches!(effect, Effect::EndWatch { .. });
    assert_eq!(bench.effects.iter().filter(ended).count(), 2);
    assert_eq!(bench.machine.counts().watchers, 0);
}

#[test]
fn one_owner_does_not_take_all_the_room() {
    let small = Config {
        per_owner_max: 2,
        ..config()
    };
    let mut bench = Bench::boot(small, chain(&["east", "west"]), Vec::new());
    let mallory = workload("mallory");
    for name in ["a", "b"] {
        bench.call(&mallory, endpoint(name, "icmp")).unwrap();
        bench.call(&mallory, service(name, "IP")).unwrap();
    }
    for command in [endpoint("c", "icmp"), service("c", "IP")] {
        assert!(matches!(
            bench.call(&mallory, command),
            Err(Refusal::Limit { limit: 2, .. })
        ));
    }
    // What is there may be refreshed, and others have room.
    bench.call(&mallory, endpoint("a", "icmp")).unwrap();
    bench.call(&workload("b"), endpoint("c", "icmp")).unwrap();
    bench.call(&router(), bench.register(1)).unwrap();
}

/// NSM: `deleted` carries the last known object, which is what a watcher's query matches.
#[test]
fn a_removed_service_is_told_as_it_was() {
    let mut bench = Bench::new();
    let query = ServiceQuery {
        payload: "ETHERNET".to_owned(),
        ..ServiceQuery::default()
    };
    bench.handle(Input::Watch {
        watcher: WatcherId(1),
        peer: workload("b"),
        query: Query::Services(query),
    });
    bench
        .call(&workload("a"), service("icmp", "ETHERNET"))
        .unwrap();
    let unregister = Command::UnregisterService {
        name: "icmp".to_owned(),
    };
    bench.call(&workload("a"), unregister).unwrap();
    assert_eq!(
        bench.delivered(1),
        [("icmp".to_owned(), false), ("icmp".to_owned(), true)]
    );
}

fn unregister(name: &str) -> Command {
    Command::UnregisterEndpoint {
        name: name.to_owned(),
    }
}

/// Of a path only what an intermediary verified counts: the caller of the TLS peer, of that
/// one's caller when it is an intermediary as well, and no further.
#[test]
fn an_owner_is_whom_the_last_intermediary_before_it_names() {
    let (nsmgr, proxy) = ("ns/nsm/nsmgr", "ns/nsm/proxy");
    let (a, m, r) = ("workload/a", "workload/m", "vl3/router/red-east");
    for (peer, claimed, owner) in [
        (a, vec![], a),
        // Nobody speaks for others who is not listed.
        (m, vec![r], m),
        (m, vec![nsmgr, r], m),
        (nsmgr, vec![], nsmgr),
        (nsmgr, vec![a], a),
        (nsmgr, vec![r], r),
        // What the caller of the manager wrote before itself is its own invention.
        (nsmgr, vec![m, r], m),
        (nsmgr, vec![m, nsmgr, r], m),
        (nsmgr, vec![proxy, a], a),
        (nsmgr, vec![proxy, m, r], m),
        (proxy, vec![nsmgr, a, r], a),
        (nsmgr, vec![proxy], proxy),
    ] {
        let mut bench = Bench::new();
        let listed = next(&bench.chain, |document| {
            let east = document.members.get_mut(&domain("east")).unwrap();
            east.roles.intermediary = [nsmgr, proxy]
                .map(|path| id("east", path).to_string())
                .into();
        });
        let published = Command::Publish { chain: listed };
        bench.call(&workload("a"), published).unwrap();
        let claimed = claimed.into_iter().map(|path| id("east", path)).collect();
        let caller = Peer {
            claimed,
            ..Peer::own(id("east", peer))
        };
        bench.call(&caller, endpoint("gateway", "icmp")).unwrap();
        let held = &bench.machine.objects.own("gateway").unwrap().owner;
        assert_eq!(*held, id("east", owner), "{caller:?}");
        // It takes a router to offer the network.
        let offered = bench.call(&caller, bench.register(1));
        assert_eq!(offered.is_ok(), owner == r, "{caller:?}");
    }
}

/// East serves red and blue; blue's admin lists every workload as an intermediary.
#[test]
fn a_networks_intermediaries_count_in_that_network_only() {
    let everybody = |document: &mut crate::document::Document| {
        let east = document.members.get_mut(&domain("east")).unwrap();
        east.roles.intermediary = vec!["spiffe://east.test/workload/*".to_owned()];
    };
    let red = chain(&["east", "west"]);
    let blue = other_chain("blue", &["east", "west"], everybody);
    let manager = Peer {
        claimed: vec![router().id],
        ..Peer::own(id("east", "ns/nsm/nsmgr"))
    };
    let liar = Peer {
        claimed: vec![router().id],
        ..workload("m")
    };
    let mut bench = Bench::boot_in(config(), vec![red.clone(), blue], Vec::new());
    assert!(bench.call(&liar, bench.register(1)).is_err());
    assert!(bench.call(&liar, endpoint("red-east", "icmp")).is_err());
    assert!(bench.call(&liar, service("red", "IP")).is_err());
    bench.call(&router(), bench.register(1)).unwrap();
    for command in [
        unregister("red-east"),
        endpoint("red-east", "icmp"),
        bench.register(2),
    ] {
        assert!(bench.call(&liar, command.clone()).is_err(), "{command:?}");
    }
    // In blue they are what its document makes of them.
    bench.call(&liar, endpoint("blue-east", "blue")).unwrap();
    // What is of no network is guarded by each that lists any.
    bench.call(&router(), endpoint("plain", "icmp")).unwrap();
    bench.call(&liar, unregister("plain")).unwrap();
    bench.call(&router(), endpoint("plain", "icmp")).unwrap();
    let listed = next(&red, |document| {
        let east = document.members.get_mut(&domain("east")).unwrap();
        east.roles.intermediary = vec![manager.id.to_string()];
    });
    bench
        .call(&workload("a"), Command::Publish { chain: listed })
        .unwrap();
    assert!(bench.call(&liar, unregister("plain")).is_err());
    bench.call(&manager, bench.register(1)).unwrap();
}
