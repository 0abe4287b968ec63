//! Workloads of one router.

use core::time::Duration;

use super::*;

pub(super) fn workload(name: &str) -> SpiffeId {
    SpiffeId::new(&format!("spiffe://east.test/workload/{name}")).unwrap()
}

pub(super) fn request(connection: &str, name: &str, key: Option<u8>) -> Request {
    Request {
        connection: ConnectionId::new(connection).unwrap(),
        peer: workload(name),
        claimed: None,
        hello: None,
        name: Some(name.parse().unwrap()),
        mechanism: key.map_or(MechanismWish::Tun { secret: [42; 16] }, |key| {
            MechanismWish::WireGuard {
                public_key: PublicKey([key; 32]),
            }
        }),
        addresses: Vec::new(),
        excluded: Vec::new(),
        mtu: 0,
        expires_in: Duration::from_secs(60),
        local: None,
    }
}

pub(super) fn attach(world: &mut World, request: Request) -> Result<WorkloadAnswer, Refusal> {
    match world.call("east", |call| Input::Request {
        call,
        request: Box::new(request),
    })? {
        Answer::Workload(answer) => Ok(answer),
        other => panic!("{other:?}"),
    }
}

pub(super) fn close(
    world: &mut World,
    connection: &str,
    peer: SpiffeId,
) -> Result<Answer, Refusal> {
    let connection = ConnectionId::new(connection).unwrap();
    world.call("east", |call| Input::Close {
        call,
        connection,
        peer,
    })
}

fn addresses(answer: &WorkloadAnswer) -> Vec<String> {
    answer.addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn a_workload_gets_the_lowest_addresses_and_keeps_them_over_refresh_and_restart() {
    let mut world = World::new(&["east"]);
    let first = attach(&mut world, request("c1", "a", Some(100))).unwrap();
    assert_eq!(addresses(&first), ["10.0.0.1/32", "fd00:7::1/128"]);
    assert_eq!(
        attach(&mut world, request("c1", "a", Some(100)))
            .unwrap()
            .addresses,
        first.addresses
    );
    assert_eq!(world.node("east").peers.len(), 1);
    let disk = world.node("east").disk.clone();
    world.boot("east", disk);
    assert_eq!(world.node("east").peers.len(), 1);
    assert_eq!(
        world
            .node("east")
            .routes
            .iter()
            .filter(|r| r.class == crate::forward::PortClass::Member)
            .count(),
        2
    );
    assert_eq!(
        attach(&mut world, request("c1", "a", Some(100)))
            .unwrap()
            .addresses,
        first.addresses
    );
    assert_eq!(world.node("east").machine.view.names.len(), 1);
}

#[test]
fn nobody_gets_an_address_in_use_the_routers_or_an_excluded_one() {
    let mut world = World::new(&["east"]);
    attach(&mut world, request("c1", "a", Some(100))).unwrap();
    let mut wishes = request("c2", "b", Some(101));
    wishes.addresses = ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.7", "fd00:7::"]
        .map(|a| a.parse().unwrap())
        .into();
    wishes.excluded = vec![
        "10.0.0.2/31".parse().unwrap(),
        "fd00:7::/120".parse().unwrap(),
    ];
    assert_eq!(
        addresses(&attach(&mut world, wishes).unwrap()),
        ["10.0.0.4/32", "fd00:7::100/128"]
    );
    let mut wishes = request("c3", "c", Some(102));
    wishes.addresses = vec!["10.0.0.77".parse().unwrap()];
    assert_eq!(
        addresses(&attach(&mut world, wishes).unwrap())[0],
        "10.0.0.77/32"
    );
    let mut now_excluded = request("c3", "c", Some(102));
    now_excluded.excluded = vec!["10.0.0.77/32".parse().unwrap()];
    assert_eq!(
        addresses(&attach(&mut world, now_excluded).unwrap())[0],
        "10.0.0.2/32"
    );
}

#[test]
fn close_leaves_nothing_but_a_reservation() {
    let mut world = World::new(&["east"]);
    let first = attach(&mut world, request("c1", "a", Some(100))).unwrap();
    assert!(matches!(
        close(&mut world, "c1", workload("stranger")),
        Err(Refusal::Denied { .. })
    ));
    assert_eq!(close(&mut world, "c1", workload("a")), Ok(Answer::Closed));
    assert_eq!(close(&mut world, "c1", workload("a")), Ok(Answer::Closed));
    let node = world.node("east");
    assert!(node.peers.is_empty() && node.disk.workloads.is_empty());
    assert!(node.machine.view.names.is_empty());
    assert_eq!(
        node.routes.len(),
        2,
        "the own addresses only: {:?}",
        node.routes
    );
    let other = attach(&mut world, request("c2", "b", Some(101))).unwrap();
    assert_ne!(other.addresses, first.addresses);
    assert_eq!(
        attach(&mut world, request("c3", "a", Some(100)))
            .unwrap()
            .addresses,
        first.addresses
    );
    close(&mut world, "c3", workload("a")).unwrap();
    world.advance(Duration::from_secs(3601));
    assert_eq!(
        attach(&mut world, request("c4", "d", Some(103)))
            .unwrap()
            .addresses,
        first.addresses
    );
}

#[test]
fn strangers_and_other_networks_are_refused() {
    let mut world = World::new(&["east"]);
    attach(&mut world, request("c1", "a", Some(100))).unwrap();
    let refused = attach(
        &mut world,
        Request {
            peer: workload("b"),
            ..request("c1", "a", Some(100))
        },
    );
    assert!(
        matches!(refused, Err(Refusal::Denied { .. })),
        "{refused:?}"
    );
    let west = SpiffeId::new("spiffe://west.test/workload/x").unwrap();
    let refused = attach(
        &mut world,
        Request {
            peer: west,
            ..request("c2", "x", Some(101))
        },
    );
    assert!(
        matches!(refused, Err(Refusal::Denied { .. })),
        "{refused:?}"
    );
    let refused = attach(&mut world, request("c3", "c", Some(100)));
    assert!(
        matches!(
            refused,
            Err(Refusal::Invalid {
                field: "src_public_key",
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn a_silent_workload_ends_soon_after_its_token_and_a_live_one_does_not() {
    let mut world = World::new(&["east"]);
    let mut short = request("c1", "a", Some(100));
    short.expires_in = Duration::from_secs(5);
    attach(&mut world, short).unwrap();
    let mut tun = request("c2", "b", None);
    tun.expires_in = Duration::from_secs(5);
    attach(&mut world, tun).unwrap();
    let session = FdSession(1);
    world.input(
        "east",
        Input::Fd {
            session,
            event: FdEvent::Attach { secret: [42; 16] },
        },
    );
    world.run();
    assert_eq!(world.node("east").fd, [(session, Ok(FdGrant::Attached))]);
    world.advance(Duration::from_secs(19));
    assert_eq!(world.node("east").disk.workloads.len(), 2);
    world.advance(Duration::from_secs(2));
    let left: Vec<_> = world
        .node("east")
        .disk
        .workloads
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(left, ["c2"]);
    world.input(
        "east",
        Input::Fd {
            session,
            event: FdEvent::Closed,
        },
    );
    world.run();
    world.advance(Duration::from_secs(21));
    assert!(world.node("east").disk.workloads.is_empty());
    assert_eq!(world.node("east").closed.len(), 2);
}

#[test]
fn a_ticket_works_once_and_for_its_life() {
    let mut world = World::new(&["east"]);
    attach(&mut world, request("c1", "a", None)).unwrap();
    let send = |world: &mut World, session, event| {
        world.input(
            "east",
            Input::Fd {
                session: FdSession(session),
                event,
            },
        );
        world.run();
        world.nodes.get_mut("east").unwrap().fd.pop().unwrap().1
    };
    assert!(send(&mut world, 1, FdEvent::Attach { secret: [1; 16] }).is_err());
    assert_eq!(
        send(&mut world, 2, FdEvent::Attach { secret: [42; 16] }),
        Ok(FdGrant::Attached)
    );
    assert!(send(&mut world, 3, FdEvent::Attach { secret: [42; 16] }).is_err());
    let fresh = MechanismWish::Tun { secret: [43; 16] };
    let connected = attach(
        &mut world,
        Request {
            mechanism: fresh,
            ..request("c1", "a", None)
        },
    )
    .unwrap();
    assert_eq!(
        connected.mechanism,
        MechanismAnswer::Tun { secret: [42; 16] },
        "nothing to do for the client"
    );
    world.input(
        "east",
        Input::Fd {
            session: FdSession(2),
            event: FdEvent::Closed,
        },
    );
    world.run();
    let again = attach(&mut world, request("c9", "a", None)).unwrap();
    assert_eq!(
        again.addresses, connected.addresses,
        "the same identity under a new connection"
    );
    assert!(matches!(
        send(&mut world, 4, FdEvent::Reattach { secret: [42; 16] }),
        Ok(FdGrant::Reattached { .. })
    ));
    attach(&mut world, request("c2", "b", None)).unwrap();
    world.advance(Duration::from_secs(11));
    assert!(send(&mut world, 5, FdEvent::Attach { secret: [42; 16] }).is_err());
}

#[test]
fn a_store_that_fails_refuses_promises_and_recovers() {
    let mut world = World::new(&["east"]);
    world.store_fails = true;
    let refused = attach(&mut world, request("c1", "a", Some(100)));
    assert!(
        matches!(refused, Err(Refusal::Unavailable { .. })),
        "{refused:?}"
    );
    world.store_fails = false;
    world.advance(Duration::from_secs(1));
    attach(&mut world, request("c1", "a", Some(100))).unwrap();
    assert_eq!(world.node("east").disk, *world.node("east").machine.state());
}

#[test]
fn records_replay_to_the_state() {
    let mut world = World::new(&["east", "west"]);
    for index in 0..20_u8 {
        attach(
            &mut world,
            request(
                &format!("c{index}"),
                &format!("w{index}"),
                Some(100 + index),
            ),
        )
        .unwrap();
    }
    for index in 0..10_u8 {
        close(
            &mut world,
            &format!("c{index}"),
            workload(&format!("w{index}")),
        )
        .unwrap();
    }
    let state = world.node("east").machine.state();
    let mut replayed = State::default();
    state
        .records()
        .iter()
        .for_each(|record| replayed.apply(record));
    assert_eq!(replayed, *state);
    assert_eq!(world.node("east").disk, *state);
}

/// The data plane knows a key once: what stays must not be installed beside itself.
#[test]
fn a_connection_that_changes_its_name_keeps_its_peer() {
    let mut world = World::new(&["east"]);
    attach(&mut world, request("c1", "a", Some(100))).unwrap();
    let ports = |world: &World| {
        let peers = world.node("east").peers.keys().copied();
        peers.collect::<Vec<_>>()
    };
    let before = ports(&world);
    let mut renamed = request("c1", "b", Some(100));
    renamed.peer = workload("a");
    let answer = attach(&mut world, renamed).unwrap();
    assert_eq!(addresses(&answer)[0], "10.0.0.2/32");
    assert_eq!(ports(&world), before);
    let node = world.node("east");
    assert_eq!(node.disk.workloads.len(), 1);
    let to_peer: Vec<_> = node
        .routes
        .iter()
        .filter(|route| route.port == before[0])
        .map(|route| route.prefix.to_string())
        .collect();
    assert_eq!(to_peer, addresses(&answer));
}

/// A client that gave up on its first try and asks again with the same key, as a new connection
/// or under another name.
#[test]
fn what_replaces_a_connection_still_under_way_has_its_key_to_itself() {
    for (connection, name) in [("c2", "a"), ("c1", "b")] {
        replace_while_under_way(Request {
            peer: workload("a"),
            ..request(connection, name, Some(100))
        });
    }
}

fn replace_while_under_way(again: Request) {
    let mut world = World::new(&["east"]);
    let (now, node) = (world.now, world.nodes.get_mut("east").unwrap());
    let mut out = Outbox::default();
    let mut inputs = VecDeque::new();
    for (call, request) in [(1_000, request("c1", "a", Some(100))), (1_001, again)] {
        inputs.push_back(Input::Request {
            call: CallId(call),
            request: Box::new(request),
        });
    }
    let (mut peers, mut late, mut answers) = (BTreeMap::new(), Vec::new(), Vec::new());
    while let Some(input) = inputs.pop_front() {
        node.machine.handle(input, now, &mut out);
        for effect in out.take() {
            let result = Ok(());
            match effect {
                Effect::Append { ticket, .. } => {
                    inputs.push_back(Input::Appended { ticket, result });
                }
                Effect::SetPeer { ticket, peer } => {
                    let taken = peers.values().any(|key| *key == peer.public_key);
                    assert!(!taken, "the data plane holds this key for another port");
                    peers.insert(peer.port, peer.public_key);
                    // The first answer of the data plane is slow.
                    late.push(Input::Installed { ticket, result });
                }
                Effect::RemovePort { port } => {
                    peers.remove(&port);
                }
                Effect::Answer { call, result } => answers.push((call.0, result.is_ok())),
                _ => {}
            }
        }
        if inputs.is_empty() {
            inputs.extend(late.drain(..));
        }
    }
    let served: Vec<_> = node
        .machine
        .table()
        .iter()
        .map(|route| route.port)
        .collect();
    assert_eq!(peers.len(), 1);
    assert!(served.contains(peers.keys().next().unwrap()), "{served:?}");
    assert_eq!(answers, [(1_000, false), (1_001, true)]);
}

/// Names are the workload's own choice, so they must not fill what all share.
#[test]
fn one_identity_leaves_room_for_others_however_many_names_it_takes() {
    let mut world = World::new(&["east"]);
    let as_mallory = |connection: &str, name: &str, key| Request {
        peer: workload("mallory"),
        ..request(connection, name, key)
    };
    // Names that were used once rest, the oldest gives way.
    for round in 0..300 {
        let (connection, name) = (format!("c{round}"), format!("n{round}"));
        attach(&mut world, as_mallory(&connection, &name, Some(100))).unwrap();
        close(&mut world, &connection, workload("mallory")).unwrap();
    }
    let resting = |world: &World| world.node("east").disk.assignments.len();
    assert_eq!(resting(&world), 190);
    // One connection under ever other names.
    for round in 0..300 {
        let name = format!("m{round}");
        attach(&mut world, as_mallory("same", &name, Some(100))).unwrap();
    }
    close(&mut world, "same", workload("mallory")).unwrap();
    assert_eq!(resting(&world), 190);
    // Live ones are refused at the limit; whoever is attached stays.
    for number in 0..190 {
        let (connection, name) = (format!("l{number}"), format!("l{number}"));
        attach(&mut world, as_mallory(&connection, &name, None)).unwrap();
    }
    let share = Err(Refusal::Share {
        id: workload("mallory"),
        limit: 190,
    });
    assert_eq!(attach(&mut world, as_mallory("x", "x", None)), share);
    attach(&mut world, as_mallory("l0", "l0", None)).unwrap();
    attach(&mut world, as_mallory("l1", "renamed", None)).unwrap();
    let refused = world.node("east").machine.counts().refused;
    assert_eq!(refused, BTreeMap::from([("share", 1)]));
    for number in 0..60 {
        let name = format!("w{number}");
        attach(&mut world, request(&name, &name, None)).unwrap();
    }
    close(&mut world, "l5", workload("mallory")).unwrap();
    attach(&mut world, as_mallory("x", "x", None)).unwrap();
}

#[test]
fn a_batch_of_requests_derives_one_table_and_the_same_state() {
    let requests = || {
        (0..100_u8).map(|n| Input::Request {
            call: CallId(u64::from(n) + 1_000),
            request: Box::new(request(&format!("c{n}"), &format!("w{n}"), Some(n + 100))),
        })
    };
    let serve = |batch: usize| {
        let mut world = World::new(&["east"]);
        let (now, node) = (world.now, world.nodes.get_mut("east").unwrap());
        let (mut tables, mut answers, mut out) = (0, 0, Outbox::default());
        let mut inputs: Vec<_> = requests().collect();
        while !inputs.is_empty() {
            let some = inputs.len().min(batch);
            node.machine.handle_all(inputs.drain(..some), now, &mut out);
            for effect in out.take() {
                let result = Ok(());
                match effect {
                    Effect::Append { ticket, .. } => {
                        inputs.push(Input::Appended { ticket, result })
                    }
                    Effect::SetPeer { ticket, .. } => {
                        inputs.push(Input::Installed { ticket, result });
                    }
                    Effect::SetRoutes { .. } => tables += 1,
                    Effect::Answer { result, .. } => answers += usize::from(result.is_ok()),
                    _ => {}
                }
            }
        }
        assert_eq!(answers, 100);
        (tables, node.machine.state().clone())
    };
    let ((batched, state), (single, wanted)) = (serve(1_000), serve(1));
    assert_eq!((batched, single), (1, 100));
    assert_eq!(state, wanted);
}

#[test]
fn a_full_router_refuses_the_next_workload_and_keeps_those_it_has() {
    let mut world = World::new(&["east"]);
    let mut small = config("east");
    small.limits.workloads = 2;
    let node = world.nodes.get_mut("east").unwrap();
    node.machine = RouterMachine::new(small, node.disk.clone(), document());
    world.input("east", Input::Start);
    world.run();
    for name in ["a", "b"] {
        attach(&mut world, request(name, name, None)).unwrap();
    }
    let full = Refusal::Exhausted {
        what: "this router",
        limit: 2,
    };
    assert_eq!(attach(&mut world, request("c", "c", None)), Err(full));
    attach(&mut world, request("a", "a", None)).unwrap();
}
