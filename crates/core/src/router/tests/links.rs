//! Links and routes between routers.

use core::time::Duration;

use ipnet::IpNet;

use crate::forward::PortClass;
use crate::ids::Generation;

use super::*;

pub(super) fn routes_to(world: &World, at: &str) -> Vec<String> {
    let routes = world
        .node(at)
        .routes
        .iter()
        .filter(|route| matches!(route.class, PortClass::Remote(_)));
    routes.map(|route| route.prefix.to_string()).collect()
}

#[test]
fn three_routers_become_a_mesh_with_one_link_per_pair() {
    let mut world = World::new(&["east", "north", "west"]);
    world.advance(Duration::from_secs(2));
    for domain in ["east", "north", "west"] {
        assert_eq!(world.node(domain).peers.len(), 2, "{domain}");
        assert_eq!(
            world
                .node(domain)
                .routes
                .iter()
                .filter(|r| matches!(r.class, PortClass::Remote(_)))
                .count(),
            8
        );
    }
    assert_eq!(world.node("east").dials, 2);
    assert_eq!(world.node("west").dials, 0, "the lower names dial");
    assert!(routes_to(&world, "east").contains(&"10.0.8.0/22".to_owned()));
}

#[test]
fn the_other_side_dials_when_the_preferred_one_does_not() {
    let mut world = World::new(&["west"]);
    world.generation.insert("east".to_owned(), 1);
    world.show("west", "east");
    world.run();
    world.advance(Duration::from_secs(4));
    assert_eq!(world.node("west").dials, 0);
    world.advance(Duration::from_secs(4));
    assert!(world.node("west").dials > 0);
}

#[test]
fn a_restarted_router_has_peers_and_routes_before_anybody_answers() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    let before = world
        .node("west")
        .routes
        .iter()
        .map(|r| r.prefix)
        .collect::<Vec<_>>();
    let disk = world.node("west").disk.clone();
    assert_eq!(disk, *world.node("west").machine.state());
    let mut machine = RouterMachine::new(config("west"), disk, document());
    let mut out = Outbox::default();
    machine.handle(Input::Start, world.now, &mut out);
    let peers: Vec<_> = out
        .take()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::SetPeer { ticket, peer } => Some((ticket, peer)),
            _ => None,
        })
        .collect();
    // East dialled, so its endpoint is learnt from its packets only: none here.
    assert_eq!(peers.len(), 1);
    machine.handle(
        Input::Installed {
            ticket: peers[0].0,
            result: Ok(()),
        },
        world.now,
        &mut out,
    );
    assert_eq!(
        machine.table().iter().map(|r| r.prefix).collect::<Vec<_>>(),
        before
    );
}

#[test]
fn a_partition_heals_within_seconds() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    world.cut.insert(("east".to_owned(), "west".to_owned()));
    world.advance(Duration::from_secs(30));
    assert!(
        world
            .node("east")
            .machine
            .view
            .servers
            .iter()
            .all(|server| server.addresses.is_empty())
    );
    world.cut.clear();
    world.advance(Duration::from_secs(12));
    assert!(!routes_to(&world, "east").is_empty() && !routes_to(&world, "west").is_empty());
    assert!(
        world
            .node("east")
            .machine
            .view
            .servers
            .iter()
            .any(|server| !server.addresses.is_empty())
    );
}

#[test]
fn a_higher_generation_replaces_and_a_lower_one_is_refused() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    world.generation.insert("west".to_owned(), 2);
    world.boot("west", State::default());
    world.advance(Duration::from_secs(10));
    let link = &world.node("east").machine.state().links[&router_id("west")];
    assert_eq!(link.generation, Generation(2));
    assert_eq!(world.node("east").peers.len(), 1);
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        uid: UID,
        domain: "west".parse().unwrap(),
        name: "red-west".to_owned(),
        instance: InstanceId([9; 16]),
        generation: Generation(1),
        dials_only: false,
        role: HelloRole::Router,
    };
    let refused = link_request(&mut world, "west", hello, PublicKey([77; 32]));
    assert!(
        matches!(refused, Err(Refusal::Precondition { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_router_of_another_domain_cannot_speak_for_this_one() {
    let mut world = World::new(&["east"]);
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        uid: UID,
        domain: "west".parse().unwrap(),
        name: "red-west".to_owned(),
        instance: InstanceId([9; 16]),
        generation: Generation(1),
        dials_only: false,
        role: HelloRole::Router,
    };
    let refused = link_request(&mut world, "north", hello.clone(), PublicKey([77; 32]));
    assert!(
        matches!(refused, Err(Refusal::Denied { .. })),
        "{refused:?}"
    );
    let newer = Hello {
        version_min: 2,
        version_max: 3,
        ..hello.clone()
    };
    let refused = link_request(&mut world, "west", newer, PublicKey([77; 32]));
    assert!(
        matches!(&refused, Err(Refusal::Precondition { reason }) if reason.contains("2 to 3")),
        "{refused:?}"
    );
    let other = Hello {
        uid: NetworkUid([8; 16]),
        ..hello
    };
    let refused = link_request(&mut world, "west", other, PublicKey([77; 32]));
    assert!(
        matches!(refused, Err(Refusal::Precondition { .. })),
        "{refused:?}"
    );
    assert!(world.node("east").peers.is_empty());
}

#[test]
fn a_foreign_prefix_is_not_believed() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    let truth = routes_to(&world, "east");
    let open = RoutesOpen {
        uid: UID,
        router: router_id("west"),
        instance: config("west").instance,
        generation: Generation(1),
    };
    let stream = StreamId(9_999);
    let event = RoutesEvent::Started {
        peer: spiffe("west"),
        open,
        dialled: false,
    };
    world.input("east", Input::Routes { stream, event });
    let announce = |sequence, prefix: &str| {
        let prefix: IpNet = prefix.parse().unwrap();
        RoutesEvent::Message(RoutesMessage::Announce {
            sequence,
            prefix,
            preference: 0,
            mtu: 0,
        })
    };
    world.input(
        "east",
        Input::Routes {
            stream,
            event: announce(1, "10.0.4.0/24"),
        },
    );
    world.input(
        "east",
        Input::Routes {
            stream,
            event: announce(2, "0.0.0.0/0"),
        },
    );
    world.input(
        "east",
        Input::Routes {
            stream,
            event: announce(3, "10.0.9.0/24"),
        },
    );
    world.input(
        "east",
        Input::Routes {
            stream,
            event: RoutesEvent::Message(RoutesMessage::End { sequence: 4 }),
        },
    );
    world.run();
    assert_eq!(routes_to(&world, "east"), ["10.0.9.0/24"]);
    let disbelieved = world.node("east").machine.routes.disbelieved();
    assert_eq!(disbelieved.values().sum::<u64>(), 2);
    let ended = RoutesEvent::Ended;
    world.input(
        "east",
        Input::Routes {
            stream,
            event: ended,
        },
    );
    world.run();
    assert_eq!(
        routes_to(&world, "east"),
        truth,
        "the link's own stream counts again"
    );
}

/// What is not believed is remembered as well, for a later document: it must not grow either.
#[test]
fn routes_that_nobody_believes_count_towards_the_limit_of_a_link() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    let truth = routes_to(&world, "east");
    let (stream, now) = (StreamId(9_999), world.now);
    let node = world.nodes.get_mut("east").unwrap();
    let mut out = Outbox::default();
    let mut tell = |event| {
        node.machine
            .handle(Input::Routes { stream, event }, now, &mut out);
        let closes = |effect: &Effect| matches!(effect, Effect::CloseRoutes { .. });
        out.take().iter().any(closes)
    };
    let open = RoutesOpen {
        uid: UID,
        router: router_id("west"),
        instance: config("west").instance,
        generation: Generation(1),
    };
    tell(RoutesEvent::Started {
        peer: spiffe("west"),
        open,
        dialled: false,
    });
    let foreign = |number: u64| {
        let [.., high, low] = number.to_be_bytes();
        RoutesEvent::Message(RoutesMessage::Announce {
            sequence: number,
            prefix: format!("172.16.{high}.{low}/32").parse().unwrap(),
            preference: 0,
            mtu: 0,
        })
    };
    let limit = u64::try_from(Limits::default().routes_per_link).unwrap();
    for number in 1..=limit {
        assert!(!tell(foreign(number)), "{number}");
    }
    assert!(tell(foreign(limit + 1)), "the stream is cut");
    for number in limit + 2..limit + 10 {
        assert!(!tell(foreign(number)), "cut once, heard no more");
    }
    tell(RoutesEvent::Message(RoutesMessage::End {
        sequence: limit + 10,
    }));
    let routes = &node.machine.routes;
    assert_eq!(routes.held(), 4, "those of the link's own stream");
    let counted = routes.disbelieved();
    assert_eq!(counted[&crate::routes::Disbelief::Foreign], limit);
    assert_eq!(counted[&crate::routes::Disbelief::TooMany], 1);
    assert_eq!(routes_to(&world, "east"), truth);
}

#[test]
fn a_revoked_member_is_gone_at_once() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    let mut document = document();
    document.version = 2;
    document
        .members
        .get_mut(&"west".parse().unwrap())
        .unwrap()
        .revoked = true;
    world.input(
        "east",
        Input::Document {
            document: Box::new(document),
            bytes: vec![2],
        },
    );
    world.run();
    assert!(world.node("east").peers.is_empty());
    assert!(routes_to(&world, "east").is_empty());
    world.advance(Duration::from_secs(30));
    assert!(world.node("east").peers.is_empty());
}

#[test]
fn a_membership_that_ends_by_time_ends_its_link() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    let mut document = document();
    document.version = 2;
    let end = world.now.wall + Duration::from_secs(10);
    document
        .members
        .get_mut(&"west".parse().unwrap())
        .unwrap()
        .not_after = Some(end);
    world.input(
        "east",
        Input::Document {
            document: Box::new(document),
            bytes: vec![2],
        },
    );
    world.run();
    assert_eq!(world.node("east").peers.len(), 1);
    world.advance(Duration::from_secs(12));
    assert!(world.node("east").peers.is_empty());
}

#[test]
fn a_name_that_starts_over_is_linked_once_its_former_life_is_gone() {
    let mut world = World::new(&["east", "west"]);
    world.generation.insert("west".to_owned(), 5);
    world.boot("west", State::default());
    world.advance(Duration::from_secs(2));
    let linked = |world: &World| {
        let link = world
            .node("east")
            .machine
            .state()
            .links
            .get(&router_id("west"));
        link.map(|link| link.generation)
    };
    assert_eq!(linked(&world), Some(Generation(5)));
    // Its registry lost its memory, and the router its disk.
    world.generation.insert("west".to_owned(), 2);
    world.boot("west", State::default());
    world.advance(Duration::from_secs(60));
    assert_eq!(linked(&world), Some(Generation(5)), "it may live yet");
    world.advance(Duration::from_secs(700));
    assert_eq!(linked(&world), Some(Generation(2)));
}

#[test]
fn a_membership_that_ended_while_the_router_was_down_is_not_restored() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    let disk = world.node("east").disk.clone();
    assert_eq!(disk.links.len(), 1);
    let mut document = document();
    document
        .members
        .get_mut(&"west".parse().unwrap())
        .unwrap()
        .not_after = Some(world.now.wall);
    let mut machine = RouterMachine::new(config("east"), disk, document);
    let mut out = Outbox::default();
    machine.handle(Input::Start, world.now, &mut out);
    assert_eq!(machine.state().links.len(), 0);
    assert_eq!(machine.state().routes.len(), 0);
}

#[test]
fn a_newer_life_under_the_own_name_fences() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    world.generation.insert("west".to_owned(), 5);
    let discovered = Discovered {
        router: router_id("west"),
        uid: UID,
        generation: Generation(5),
        dials_only: false,
        address: "192.0.2.1:5010".parse().unwrap(),
    };
    world.input("west", Input::Watch(WatchEvent::Found(discovered)));
    world.run();
    assert!(world.node("west").machine.is_fenced());
    assert!(world.node("west").peers.is_empty());
    world.advance(Duration::from_secs(60));
    assert!(world.node("west").peers.is_empty());
}

fn link_request(
    world: &mut World,
    as_domain: &str,
    hello: Hello,
    public_key: PublicKey,
) -> Result<Answer, Refusal> {
    let request = Request {
        connection: ConnectionId::new("stranger").unwrap(),
        peer: spiffe(as_domain),
        claimed: None,
        hello: Some(hello),
        name: None,
        mechanism: MechanismWish::WireGuard { public_key },
        addresses: Vec::new(),
        excluded: Vec::new(),
        mtu: 0,
        expires_in: Duration::from_secs(60),
        local: None,
    };
    world.call("east", |call| Input::Request {
        call,
        request: Box::new(request),
    })
}
