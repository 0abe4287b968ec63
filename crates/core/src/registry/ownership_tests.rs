//! Who may take which name, and who may change what another one holds.

use super::bench::{Bench, at, config, router, workload};
use super::*;
use crate::allocator::Lease;
use crate::document::fixture::{chain, domain, id, next};
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
        claimed: Some(by.id),
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
