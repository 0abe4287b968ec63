//! What the router's DNS server may say does not exist.

use core::time::Duration;

use super::attach::{attach, close, request, workload};
use super::*;

/// The siblings that a name of the own domain is asked of, as the DNS server sees them.
fn siblings(machine: &RouterMachine) -> Vec<(Option<String>, bool)> {
    let siblings = machine.view.servers.iter().filter(|server| server.sibling);
    siblings
        .map(|server| {
            let name = server.router.as_ref().map(ToString::to_string);
            (name, server.addresses.is_empty())
        })
        .collect()
}

const UNKNOWN: (Option<String>, bool) = (None, true);

fn leased(world: &World, domain: &str) -> State {
    world.node(domain).disk.clone()
}

fn sibling_found(name: &str) -> WatchEvent {
    WatchEvent::Found(Discovered {
        router: RouterId {
            name: name.parse().unwrap(),
            domain: "east".parse().unwrap(),
        },
        uid: UID,
        generation: Generation(1),
        dials_only: false,
        address: "192.0.2.9:5010".parse().unwrap(),
    })
}

#[test]
fn until_the_registry_was_asked_siblings_are_a_missing_vote() {
    let mut world = World::new(&["east"]);
    world.advance(Duration::from_secs(2));
    let disk = leased(&world, "east");
    let now = world.now;
    let mut machine = RouterMachine::new(config("east"), disk, document());
    let mut out = Outbox::default();
    machine.handle(Input::Start, now, &mut out);
    assert_eq!(siblings(&machine), [UNKNOWN]);
    // An open watch has said nothing yet, and what it has shown may not be all.
    machine.handle(Input::Watch(WatchEvent::Opened), now, &mut out);
    machine.handle(Input::Watch(sibling_found("red-east-0")), now, &mut out);
    assert_eq!(
        siblings(&machine),
        [UNKNOWN, (Some("red-east-0".to_owned()), true)]
    );
    machine.handle(Input::Watch(WatchEvent::Complete), now, &mut out);
    assert_eq!(siblings(&machine), [(Some("red-east-0".to_owned()), true)]);
    // What was known stays known while the registry is away again.
    machine.handle(Input::Watch(WatchEvent::Opened), now, &mut out);
    assert_eq!(siblings(&machine), [(Some("red-east-0".to_owned()), true)]);
}

#[test]
fn a_lone_router_denies_names_as_soon_as_the_registry_was_asked() {
    let world = World::new(&["east"]);
    assert_eq!(siblings(&world.node("east").machine), []);
}

#[test]
fn a_sibling_that_is_not_dialled_is_listed_at_once() {
    let mut world = World::new(&["east"]);
    world.advance(Duration::from_secs(2));
    // The lower name dials: here nothing else follows from the event.
    world.input("east", Input::Watch(sibling_found("red-a")));
    world.run();
    assert_eq!(
        siblings(&world.node("east").machine),
        [(Some("red-a".to_owned()), true)]
    );
    let gone = RouterId {
        name: "red-a".parse().unwrap(),
        domain: "east".parse().unwrap(),
    };
    world.input("east", Input::Watch(WatchEvent::Gone(gone)));
    world.run();
    assert_eq!(siblings(&world.node("east").machine), []);
}

#[test]
fn a_fenced_router_denies_no_name_of_its_domain() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    world.generation.insert("west".to_owned(), 5);
    world.show("west", "west");
    world.run();
    assert!(world.node("west").machine.is_fenced());
    assert_eq!(siblings(&world.node("west").machine), [UNKNOWN]);
    let remote = &world.node("west").machine.view.servers;
    assert!(
        remote.iter().all(|server| server.addresses.is_empty()),
        "nobody is asked by a router that has no links: {remote:?}"
    );
}

/// Effects of one input that concern the registration.
fn registered(machine: &mut RouterMachine, input: Input, now: Now) -> Vec<Effect> {
    let mut out = Outbox::default();
    machine.handle(input, now, &mut out);
    let mut effects = out.take();
    effects.retain(|effect| {
        matches!(
            effect,
            Effect::Register { .. } | Effect::Unregister | Effect::CedeRegistration
        )
    });
    effects
}

#[test]
fn a_fenced_router_leaves_its_successors_registration_alone() {
    let mut world = World::new(&["west"]);
    world.advance(Duration::from_secs(2));
    let successor = Discovered {
        router: router_id("west"),
        uid: UID,
        generation: Generation(5),
        dials_only: false,
        address: "192.0.2.1:5010".parse().unwrap(),
    };
    let now = world.now;
    let machine = &mut world.nodes.get_mut("west").unwrap().machine;
    let found = Input::Watch(WatchEvent::Found(successor));
    assert_eq!(registered(machine, found, now), [Effect::CedeRegistration]);
}

#[test]
fn a_registry_that_comes_back_is_told_again_who_is_there() {
    let mut world = World::new(&["west"]);
    world.advance(Duration::from_secs(2));
    let now = world.now;
    let machine = &mut world.nodes.get_mut("west").unwrap().machine;
    assert_eq!(registered(machine, Input::Watch(WatchEvent::Lost), now), []);
    let again = registered(machine, Input::Watch(WatchEvent::Opened), now);
    assert!(
        matches!(again.as_slice(), [Effect::Register { .. }]),
        "{again:?}"
    );
}

#[test]
fn nobody_is_forgotten_while_the_registry_is_away() {
    let mut world = World::new(&["east"]);
    world.advance(Duration::from_secs(2));
    world.input("east", Input::Watch(sibling_found("red-a")));
    // It comes back with nothing, and goes again before anybody could register.
    world.input("east", Input::Watch(WatchEvent::Lost));
    world.input("east", Input::Watch(WatchEvent::Opened));
    world.input("east", Input::Watch(WatchEvent::Lost));
    world.run();
    world.advance(Duration::from_secs(60));
    assert_eq!(
        siblings(&world.node("east").machine),
        [(Some("red-a".to_owned()), true)]
    );
    world.input("east", Input::Watch(WatchEvent::Opened));
    world.run();
    world.advance(Duration::from_secs(11));
    assert_eq!(siblings(&world.node("east").machine), []);
}

/// A registry of the stock make knows no names: whoever asks is granted one.
#[test]
fn r1_10_a_second_identity_does_not_take_a_name_that_is_in_use() {
    let mut world = World::new(&["east"]);
    world.advance(Duration::from_secs(2));
    let first = attach(&mut world, request("one", "db", None)).unwrap();
    let mut second = request("two", "db", None);
    second.peer = workload("mallory");
    attach(&mut world, second).unwrap();
    let held = |world: &World| {
        let name = "db".parse().unwrap();
        world.node("east").machine.view.names.get(&name).cloned()
    };
    let of_first: Vec<_> = first.addresses.iter().map(|net| net.addr()).collect();
    assert_eq!(held(&world), Some(of_first));
    // Nor when claims are renewed; it is free when its holder goes.
    world.advance(Duration::from_secs(20));
    assert_ne!(held(&world), None);
    close(&mut world, "one", workload("db")).unwrap();
    world.advance(Duration::from_secs(20));
    assert!(held(&world).is_some());
}
