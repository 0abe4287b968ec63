//! Who may speak on a link, and how long its word counts.

use core::time::Duration;

use super::links::routes_to;
use super::*;

/// Why a routes stream for the link to west is closed, if it is.
fn closed(peer: &str, generation: u64) -> Option<&'static str> {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    let open = RoutesOpen {
        uid: UID,
        router: router_id("west"),
        instance: config("west").instance,
        generation: Generation(generation),
    };
    let event = RoutesEvent::Started {
        peer: SpiffeId::new(peer).unwrap(),
        open,
        dialled: false,
    };
    let stream = StreamId(9_999);
    let (now, mut out) = (world.now, Outbox::default());
    let east = world.nodes.get_mut("east").unwrap();
    east.machine
        .handle(Input::Routes { stream, event }, now, &mut out);
    out.take().into_iter().find_map(|effect| match effect {
        Effect::CloseRoutes { reason, .. } => Some(reason),
        _ => None,
    })
}

#[test]
fn only_the_identity_and_the_round_of_a_link_speak_on_it() {
    let peer = "spiffe://west.test/vl3/router/red-west";
    let other = "spiffe://west.test/vl3/router/red-west-2";
    assert_eq!(closed(peer, 1), None);
    assert_eq!(closed(other, 1), Some("another identity holds the link"));
    let round = Some("another generation than the link's");
    assert_eq!((closed(peer, 0), closed(peer, 2)), (round, round));
}

#[test]
fn what_is_held_without_a_stream_is_judged_again_by_a_new_document() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    world.cut.insert(("east".to_owned(), "west".to_owned()));
    let streams: Vec<_> = world.node("east").streams.keys().copied().collect();
    for stream in streams {
        world.end_stream("east", stream);
    }
    world.run();
    let block = "10.0.8.0/22".to_owned();
    assert!(
        !world
            .node("east")
            .machine
            .routes
            .has_stream(&router_id("west"))
    );
    assert!(routes_to(&world, "east").contains(&block), "held");
    let mut moved = document();
    let west = moved.members.get_mut(&"west".parse().unwrap()).unwrap();
    west.block4 = Some("10.0.12.0/22".parse().unwrap());
    moved.version = 2;
    let document = Input::Document {
        document: Box::new(moved),
        bytes: vec![2],
    };
    world.input("east", document);
    world.run();
    let held = routes_to(&world, "east");
    assert!(!held.is_empty(), "IPv6 is as before");
    assert!(
        held.iter().all(|route| !route.starts_with("10.")),
        "{held:?}"
    );
}
