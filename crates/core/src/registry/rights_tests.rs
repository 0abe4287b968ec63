//! Leases, names and marks are for routers, each for its own.

use super::bench::{Bench, at, router, workload};
use super::*;
use crate::allocator::{self, Lease};
use crate::document::fixture::{domain, id};
use crate::ids::{NetworkUid, RouterName};

fn other() -> Peer {
    Peer::own(id("east", "vl3/router/other"))
}

fn plain(name: &str, service: &str) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        services: vec![service.to_owned()],
        url: "tcp://192.0.2.66:5000".to_owned(),
        ..Endpoint::default()
    }
}

fn register(endpoint: Endpoint) -> Command {
    Command::RegisterEndpoint {
        endpoint,
        lifetime: None,
    }
}

/// The router's endpoint with other marks.
fn marked(bench: &Bench, edit: impl FnOnce(&mut Marks)) -> Command {
    let mut endpoint = bench.endpoint("east", 1);
    let mut marks = Marks::of(&endpoint).unwrap();
    edit(&mut marks);
    endpoint.labels = [(marks.service.clone(), marks.labels())].into();
    register(endpoint)
}

fn acquire(bench: &Bench, name: &str, held: Option<Lease>) -> Command {
    let mut command = bench.acquire(7);
    if let Command::Acquire { acquire, .. } = &mut command {
        acquire.router = RouterName::new(name).unwrap();
        acquire.held = held;
    }
    command
}

/// What a caller that is no router, or the wrong one, is denied.
fn denied(result: Result<Reply, Refusal>) -> &'static str {
    match result {
        Err(Refusal::Denied { what, .. }) => what,
        other => panic!("not denied: {other:?}"),
    }
}

fn invalid(result: Result<Reply, Refusal>) -> (&'static str, String) {
    match result {
        Err(Refusal::Invalid { field, value, .. }) => (field, value),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn marks_are_of_the_own_domain_the_network_and_the_endpoint() {
    let mut bench = Bench::new();
    let elsewhere = marked(&bench, |marks| marks.domain = domain("west"));
    let misnamed = marked(&bench, |marks| marks.name = "red-east-2".to_owned());
    let misplaced = marked(&bench, |marks| marks.service = "blue".to_owned());
    for (command, field, value) in [
        (elsewhere, "vl3/domain", "west"),
        (misnamed, "vl3/name", "red-east-2"),
        (misplaced, "network_service_labels", "blue"),
    ] {
        let refused = invalid(bench.call(&router(), command));
        assert_eq!(refused, (field, value.to_owned()));
    }
    let unknown = NetworkUid([7; 16]);
    let refused = marked(&bench, |marks| marks.uid = unknown);
    assert_eq!(
        bench.call(&router(), refused),
        Err(Refusal::UnknownNetwork { uid: unknown })
    );
    assert_eq!(bench.machine.endpoints().count(), 0);
    let right = marked(&bench, |_| {});
    bench.call(&router(), right).unwrap();
}

/// Whatever the endpoint is called and offers.
#[test]
fn only_a_router_marks_its_endpoint() {
    let mut bench = Bench::new();
    let marks = Marks {
        name: "icmp-1".to_owned(),
        ..Marks::of(&bench.endpoint("east", 1)).unwrap()
    };
    let mut endpoint = plain("icmp-1", "icmp");
    endpoint.labels = [("red".to_owned(), marks.labels())].into();
    assert_eq!(
        denied(bench.call(&workload("a"), register(endpoint.clone()))),
        "network_service_endpoint"
    );
    bench.call(&router(), register(endpoint)).unwrap();
}

#[test]
fn leases_prefixes_and_names_are_for_routers() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    let (uid, lease) = (
        bench.chain.uid(),
        bench.machine.leases().next().unwrap().clone(),
    );
    let stock = StockAcquire::default();
    for (command, what) in [
        (acquire(&bench, "gateway", None), "a lease"),
        (Command::AcquireStock { uid, stock }, "a prefix"),
        (
            Command::Renew {
                lease: lease.clone(),
            },
            "a lease",
        ),
        (Command::Release { lease }, "a lease"),
        (bench.claim("web", "a"), "a name"),
        (release(uid, "a"), "a name"),
    ] {
        assert_eq!(denied(bench.call(&workload("a"), command)), what);
    }
    assert_eq!(bench.machine.leases().count(), 1);
}

#[test]
fn a_router_presents_leases_of_its_own_name_and_network_only() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    let lease = bench.machine.leases().next().unwrap().clone();
    bench
        .call(
            &router(),
            Command::Release {
                lease: lease.clone(),
            },
        )
        .unwrap();
    let of_another = Lease {
        router: RouterName::new("red-east-2").unwrap(),
        ..lease
    };
    let elsewhere = Lease {
        uid: NetworkUid([7; 16]),
        ..lease.clone()
    };
    for held in [of_another, elsewhere] {
        let command = acquire(&bench, "red-east", Some(held));
        assert_eq!(invalid(bench.call(&router(), command)).0, "held");
    }
    assert_eq!(bench.machine.leases().count(), 0);
    let command = acquire(&bench, "red-east", Some(lease));
    bench.call(&router(), command).unwrap();
}

#[test]
fn a_name_is_claimed_under_the_callers_own_lease() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    let command = acquire(&bench, "red-east-2", None);
    bench.call(&other(), command).unwrap();
    let refused = bench.call(&other(), bench.claim("web", "a"));
    assert!(
        matches!(
            &refused,
            Err(Refusal::Lease(allocator::Refusal::AcquireAgain { .. }))
        ),
        "{refused:?}"
    );
    assert_eq!(bench.machine.names().count(), 0);
}

fn release(uid: NetworkUid, by: &str) -> Command {
    Command::ReleaseName {
        uid,
        name: "web".parse().unwrap(),
        workload: workload(by).id,
    }
}

/// A late release of a router that the workload left takes nothing away.
#[test]
fn a_name_is_released_by_the_router_that_claimed_it_and_for_its_workload() {
    let mut bench = Bench::new();
    let uid = bench.chain.uid();
    bench.call(&router(), bench.acquire(1)).unwrap();
    bench.call(&router(), bench.claim("web", "a")).unwrap();
    for (peer, by, left) in [(other(), "a", 1), (router(), "b", 1), (router(), "a", 0)] {
        assert_eq!(bench.call(&peer, release(uid, by)), Ok(Reply::Done));
        assert_eq!(bench.machine.names().count(), left, "{peer:?} for {by}");
    }
}

#[test]
fn a_service_is_unregistered_by_its_owner_only() {
    let mut bench = Bench::new();
    let service = Service {
        name: "icmp".to_owned(),
        ..Service::default()
    };
    let unregister = Command::UnregisterService {
        name: "icmp".to_owned(),
    };
    bench
        .call(&workload("a"), Command::RegisterService { service })
        .unwrap();
    assert_eq!(
        denied(bench.call(&workload("b"), unregister.clone())),
        "network_service.name"
    );
    assert_eq!(bench.machine.objects.service_count(), 1);
    bench.call(&workload("a"), unregister).unwrap();
    assert_eq!(bench.machine.objects.service_count(), 0);
}

/// The first registration is that of the name by this owner.
#[test]
fn who_takes_a_squatted_name_over_registers_it_for_the_first_time() {
    let mut bench = Bench::new();
    let registered = |reply: Result<Reply, Refusal>| match reply {
        Ok(Reply::Endpoint(found)) => found.shown.into_endpoint().registered,
        other => panic!("not registered: {other:?}"),
    };
    let squatted = bench.call(&workload("mallory"), register(plain("gateway", "icmp")));
    assert_eq!(registered(squatted), Some(at(1).wall));
    bench.now = at(30);
    let command = acquire(&bench, "gateway", None);
    bench.call(&router(), command).unwrap();
    let taken = bench.call(&router(), register(plain("gateway", "red")));
    assert_eq!(registered(taken), Some(at(30).wall));
}
