//! What an event of the data plane would have said, had it not been lost.

use super::attach::{attach, request};
use super::*;

fn samples(world: &mut World) {
    world.advance(Duration::from_secs(1));
}

fn member_routes(world: &World) -> usize {
    let routes = world.node("east").routes.iter();
    routes
        .filter(|route| route.class == crate::forward::PortClass::Member)
        .count()
}

#[test]
fn a_dead_descriptor_loses_its_routes_though_nobody_told() {
    let mut world = World::new(&["east"]);
    attach(&mut world, request("c1", "a", None)).unwrap();
    let session = FdSession(1);
    let event = FdEvent::Attach { secret: [42; 16] };
    world.input("east", Input::Fd { session, event });
    world.run();
    samples(&mut world);
    assert_eq!(member_routes(&world), 2);
    let port = world
        .node("east")
        .routes
        .iter()
        .find(|route| route.class == crate::forward::PortClass::Member)
        .unwrap()
        .port;
    world.nodes.get_mut("east").unwrap().dead.insert(port);
    samples(&mut world);
    assert_eq!(member_routes(&world), 0);
}

#[test]
fn a_links_endpoint_is_stored_though_nobody_told() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(10));
    let moved = Endpoint {
        remote: "198.51.100.7:4000".parse().unwrap(),
        local: None,
    };
    let east = world.nodes.get_mut("east").unwrap();
    let port = *east.peers.keys().next().unwrap();
    east.moved.insert(port, moved);
    samples(&mut world);
    let stored = &world.node("east").disk.links[&router_id("west")];
    assert_eq!(stored.endpoint, Some(moved));
}
