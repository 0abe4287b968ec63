//! Two registries' machines with streams between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::StreamId;
use crate::document::Chain;
use crate::document::fixture::{chain, document, domain, id, next, signed};
use crate::ids::{DomainName, Generation, NetworkName, NetworkUid};
use crate::machine::{Machine, Outbox};
use crate::registry::{
    Boot, CallId, Command, Config, Effect, Endpoint, Input, Marks, Peer, RegistryMachine,
};
use crate::time::{Mono, Now, Wall};

struct Side {
    name: &'static str,
    machine: RegistryMachine,
    effects: VecDeque<Effect>,
    alarms: usize,
}

/// Streams are pairs of ends, by side; a broken path delivers nothing.
struct Pair {
    sides: [Side; 2],
    ends: BTreeMap<(usize, StreamId), (usize, StreamId)>,
    chain: Chain,
    /// The networks in which certificates count.
    vouched: BTreeSet<NetworkUid>,
    now: Now,
    reachable: bool,
    accepted: u64,
    dials: [usize; 2],
}

fn at(secs: u64) -> Now {
    Now {
        mono: Mono::from_secs(secs),
        wall: Wall::from_unix_secs(1_800_000_000 + secs),
    }
}

fn side(name: &'static str, documents: Vec<Chain>) -> Side {
    let config = Config::new(
        domain(name),
        id(name, "vl3/registry/r"),
        [name.as_bytes()[0]; 16],
        7,
    );
    let boot = Boot {
        documents,
        ..Boot::default()
    };
    let machine = RegistryMachine::boot(config, boot, at(1)).unwrap();
    Side {
        name,
        machine,
        effects: VecDeque::new(),
        alarms: 0,
    }
}

impl Pair {
    fn new() -> Self {
        Self::with(chain(&["east", "west"]))
    }

    fn with(chain: Chain) -> Self {
        Self::of(vec![chain])
    }

    /// Changes are of the first network.
    fn of(chains: Vec<Chain>) -> Self {
        let sides = ["east", "west"].map(|name| side(name, chains.clone()));
        let (now, ends) = (at(1), BTreeMap::new());
        let mut pair = Self {
            sides,
            ends,
            vouched: chains.iter().map(Chain::uid).collect(),
            chain: chains[0].clone(),
            now,
            reachable: true,
            accepted: 0,
            dials: [0, 0],
        };
        pair.run(0);
        pair
    }

    fn handle(&mut self, at: usize, input: Input) {
        let mut out = Outbox::default();
        self.sides[at].machine.handle(input, self.now, &mut out);
        self.sides[at].effects.extend(out.take());
    }

    fn peer(&self, at: usize) -> Peer {
        Peer::vouched(
            id(self.sides[at].name, "vl3/registry/r"),
            self.vouched.clone(),
        )
    }

    /// Carries effects over until nothing is left.
    fn settle(&mut self) {
        loop {
            let Some(at) = (0..2).find(|at| !self.sides[*at].effects.is_empty()) else {
                return;
            };
            let Some(effect) = self.sides[at].effects.pop_front() else {
                return;
            };
            self.carry_out(at, effect);
        }
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        let other = 1 - at;
        match effect {
            Effect::Append { ticket, .. } | Effect::Rewrite { ticket, .. } => {
                self.handle(at, Input::Appended { ticket });
            }
            Effect::Dial { stream, .. } => {
                self.dials[at] += 1;
                if !self.reachable {
                    return self.handle(
                        at,
                        Input::SyncClosed {
                            stream,
                            reason: "unreachable".to_owned(),
                        },
                    );
                }
                self.accepted += 1;
                let accepted = StreamId::Accepted(self.accepted);
                self.ends.insert((at, stream), (other, accepted));
                self.ends.insert((other, accepted), (at, stream));
                let (here, there) = (self.peer(at), self.peer(other));
                self.handle(
                    other,
                    Input::SyncOpened {
                        stream: accepted,
                        peer: here,
                    },
                );
                self.handle(
                    at,
                    Input::SyncOpened {
                        stream,
                        peer: there,
                    },
                );
            }
            Effect::Send { stream, messages } => {
                if let Some((to, end)) = self
                    .ends
                    .get(&(at, stream))
                    .copied()
                    .filter(|_| self.reachable)
                {
                    for message in messages {
                        self.handle(
                            to,
                            Input::SyncReceived {
                                stream: end,
                                message,
                            },
                        );
                    }
                }
            }
            Effect::CloseStream { stream, .. } => {
                if let Some(end) = self.ends.remove(&(at, stream)) {
                    self.ends.remove(&end);
                    if self.reachable {
                        self.handle(
                            end.0,
                            Input::SyncClosed {
                                stream: end.1,
                                reason: "closed".to_owned(),
                            },
                        );
                    }
                }
            }
            Effect::Alarm(_) => self.sides[at].alarms += 1,
            Effect::Reply { result, .. } => assert!(result.is_ok(), "{result:?}"),
            Effect::Deliver { .. } | Effect::EndWatch { .. } | Effect::DocumentChanged { .. } => {}
        }
    }

    /// Lets that many seconds pass, in small steps.
    fn run(&mut self, secs: u64) {
        let until = self.now.mono + core::time::Duration::from_secs(secs);
        loop {
            for at in 0..2 {
                let mut out = Outbox::default();
                self.sides[at].machine.wake(self.now, &mut out);
                self.sides[at].effects.extend(out.take());
            }
            self.settle();
            if self.now.mono >= until {
                return;
            }
            let step = core::time::Duration::from_millis(100);
            self.now = Now {
                mono: self.now.mono + step,
                wall: self.now.wall + step,
            };
        }
    }

    fn endpoint(&self, at: usize, generation: u64) -> Endpoint {
        let name = format!("red-{}", self.sides[at].name);
        let marks = Marks {
            service: "red".to_owned(),
            proto: "1-1".to_owned(),
            role: "router".to_owned(),
            uid: self.chain.uid(),
            domain: domain(self.sides[at].name),
            name: name.clone(),
            generation: Generation(generation),
            dials_only: false,
            udp: None,
        };
        Endpoint {
            name,
            services: vec!["red".to_owned()],
            labels: BTreeMap::from([("red".to_owned(), marks.labels())]),
            url: "tcp://192.0.2.1:5010".to_owned(),
            ..Endpoint::default()
        }
    }

    fn register(&mut self, at: usize, generation: u64) {
        let endpoint = self.endpoint(at, generation);
        let peer = Peer::own(id(self.sides[at].name, "vl3/router/r"));
        let command = Command::RegisterEndpoint {
            endpoint,
            lifetime: None,
        };
        self.handle(
            at,
            Input::Call {
                call: CallId(1),
                peer,
                command,
            },
        );
        self.settle();
    }

    fn publish(&mut self, at: usize, edit: impl FnOnce(&mut crate::document::Document)) {
        self.chain = next(&self.chain, edit);
        let command = Command::Publish {
            chain: self.chain.clone(),
        };
        let peer = Peer::own(id(self.sides[at].name, "workload/admin"));
        self.handle(
            at,
            Input::Call {
                call: CallId(2),
                peer,
                command,
            },
        );
        self.settle();
    }

    /// The version of the first network that this side holds.
    fn version(&self, at: usize) -> u64 {
        let held = self.sides[at].machine.document(self.chain.uid());
        held.expect("of the configuration").document().version
    }

    fn revoke_west(&mut self, at: usize) {
        self.publish(at, |document| {
            document.members.get_mut(&domain("west")).unwrap().revoked = true;
        });
    }

    /// Names of remote endpoints that this side believes.
    fn remote(&self, at: usize) -> Vec<(String, String)> {
        let of_remote = |(domain, endpoint): (Option<&DomainName>, Arc<Endpoint>)| {
            domain.map(|domain| (domain.to_string(), endpoint.name.clone()))
        };
        self.sides[at]
            .machine
            .endpoints()
            .filter_map(of_remote)
            .collect()
    }
}

/// Another network of both, in which west has these roots.
fn blue(west_bundle: &[u8]) -> Chain {
    let mut blue = document(&["east", "west"]);
    blue.nonce = vec![8; 32];
    blue.uid = NetworkUid::derive(&blue.nonce, &blue.admin_keys);
    blue.name = NetworkName::new("blue").unwrap();
    blue.members.get_mut(&domain("west")).unwrap().bundle = west_bundle.to_vec();
    Chain::verify(vec![signed(blue, &[1])]).unwrap()
}

fn red(name: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), format!("red-{name}"))]
}

#[test]
fn the_lower_name_dials_and_the_other_side_only_when_it_does_not() {
    let mut pair = Pair::new();
    pair.run(20);
    assert_eq!(pair.dials, [1, 0]);
    // East has no address to dial west at: west comes after five seconds and jitter.
    let lonely = next(&chain(&["east", "west"]), |document| {
        document
            .members
            .get_mut(&domain("west"))
            .unwrap()
            .contacts
            .clear();
    });
    let mut pair = Pair::with(lonely);
    pair.run(4);
    assert_eq!(pair.dials, [0, 0]);
    pair.run(4);
    assert_eq!(pair.dials, [0, 1]);
    // A domain that only dials does so at once.
    let edge = next(&chain(&["east", "west"]), |document| {
        document
            .members
            .get_mut(&domain("west"))
            .unwrap()
            .dials_only = true;
    });
    assert_eq!(Pair::with(edge).dials, [0, 1]);
}

#[test]
fn both_directions_carry_a_snapshot_and_then_changes() {
    let mut pair = Pair::new();
    pair.register(1, 1);
    assert_eq!(pair.remote(0), red("west"));
    pair.register(0, 1);
    assert_eq!(pair.remote(1), red("east"));
    pair.run(61);
    assert_eq!(
        (pair.remote(0), pair.remote(1)),
        (vec![], vec![]),
        "not refreshed, so expired"
    );
}

#[test]
fn a_partition_leaves_stale_entries_and_the_heal_brings_the_truth() {
    let mut pair = Pair::new();
    pair.register(1, 1);
    pair.reachable = false;
    pair.run(100);
    assert_eq!(pair.remote(0), red("west"), "stale, but known");
    assert!(
        pair.sides[0]
            .machine
            .remotes()
            .iter()
            .all(|remote| !remote.connected)
    );
    let held = pair.sides[0].machine.held_domains();
    let west = held.first().unwrap();
    let (failed, reason) = west.status.last_error.clone().unwrap();
    assert!(west.status.heard.unwrap() < failed, "{west:?}");
    assert!(!reason.is_empty());
    assert_eq!(west.entries, 1);
    assert!(west.bytes > 100, "{}", west.bytes);
    pair.reachable = true;
    pair.run(20);
    assert_eq!(pair.remote(0), vec![], "west's router expired meanwhile");
    pair.register(1, 2);
    assert_eq!(pair.remote(0), red("west"));
    pair.reachable = false;
    pair.run(3700);
    assert_eq!(pair.remote(0), vec![], "gone after the grace");
    let dials = pair.dials[0];
    assert!(
        (200..3000).contains(&dials),
        "dialled for ever, with back-off: {dials}"
    );
}

#[test]
fn a_newer_document_crosses_and_a_revoked_domain_loses_its_entries_alone() {
    let mut pair = Pair::new();
    pair.register(1, 1);
    pair.register(0, 1);
    pair.publish(1, |document| document.policy.stale_limit_seconds = 1);
    assert_eq!((pair.version(0), pair.version(1)), (2, 2));
    pair.revoke_west(0);
    assert_eq!(pair.remote(0), vec![]);
    assert_eq!(
        pair.sides[0].machine.endpoints().count(),
        1,
        "the own entry stays"
    );
    assert!(pair.sides[0].machine.remotes().is_empty());
    assert_eq!(pair.version(1), 3, "west is told why");
    assert_eq!(pair.remote(1), vec![]);
    assert!(pair.sides[1].machine.remotes().is_empty());
}

#[test]
fn who_was_away_when_it_was_removed_learns_it_on_a_stream_of_another_network() {
    let mut pair = Pair::of(vec![chain(&["east", "west"]), blue(&[])]);
    pair.register(0, 1);
    pair.reachable = false;
    pair.run(20);
    pair.revoke_west(0);
    assert_eq!(pair.version(1), 1);
    pair.reachable = true;
    pair.run(30);
    assert_eq!(pair.version(1), 2);
    assert_eq!(pair.remote(1), vec![]);
    let connected = |at: usize| pair.sides[at].machine.remotes()[0].connected;
    assert!(connected(0) && connected(1), "for the sake of blue");
}

#[test]
fn a_document_is_not_told_to_whom_other_roots_vouch_for() {
    let mut pair = Pair::of(vec![chain(&["east", "west"]), blue(b"others")]);
    pair.reachable = false;
    pair.run(20);
    pair.revoke_west(0);
    pair.vouched.remove(&pair.chain.uid());
    pair.reachable = true;
    pair.run(30);
    assert!(pair.sides[0].machine.remotes()[0].connected);
    assert_eq!(pair.version(1), 1);
}

#[test]
fn what_the_document_does_not_grant_is_not_believed() {
    let pair = Pair::new();
    let document = pair.chain.document();
    let west = &document.members[&domain("west")];
    let judge = |edit: &dyn Fn(&mut Endpoint)| {
        let mut endpoint = pair.endpoint(1, 1);
        edit(&mut endpoint);
        super::believe(&endpoint, pair.chain.uid(), document, west, 4096)
            .map_err(|error| error.field)
    };
    assert_eq!(judge(&|_| {}), Ok(()));
    let label = |endpoint: &mut Endpoint, key: &str, value: &str| {
        endpoint
            .labels
            .get_mut("red")
            .unwrap()
            .insert(key.to_owned(), value.to_owned());
    };
    assert_eq!(
        judge(&|endpoint| label(endpoint, "vl3/domain", "east")),
        Err("vl3/domain")
    );
    assert_eq!(
        judge(&|endpoint| label(endpoint, "vl3/uid", &"7".repeat(32))),
        Err("vl3/uid")
    );
    assert_eq!(
        judge(&|endpoint| label(endpoint, "vl3/name", "red-east")),
        Err("vl3/name")
    );
    assert_eq!(
        judge(&|endpoint| label(endpoint, "x", &"y".repeat(5000))),
        Err("size")
    );
    assert_eq!(
        judge(&|endpoint| endpoint.name = "red@east".to_owned()),
        Err("name")
    );
    assert_eq!(
        judge(&|endpoint| endpoint.labels.clear()),
        Err("network_service_labels")
    );
    assert_eq!(
        judge(&|endpoint| endpoint.services.push("blue".to_owned())),
        Err("network_service_names")
    );
    let others_labels = |endpoint: &mut Endpoint| {
        let labels = endpoint.labels["red"].clone();
        endpoint.labels.insert("green".to_owned(), labels);
    };
    assert_eq!(judge(&others_labels), Err("network_service_names"));
    for url in [
        "",
        "unix:///x",
        "tcp://0.0.0.0:1",
        "tcp://10.80.0.1:1",
        "tcp://127.0.0.1:1",
        "tcp://[fd00:1:2:3::1]:1",
        "tcp://x",
        "tcp://x:0",
    ] {
        assert_eq!(
            judge(&|endpoint| url.clone_into(&mut endpoint.url)),
            Err("url"),
            "{url}"
        );
    }
    assert_eq!(
        judge(&|endpoint| "tcp://router.west.example:5010".clone_into(&mut endpoint.url)),
        Ok(())
    );
}

#[test]
fn a_stranger_and_a_liar_get_no_stream() {
    let mut pair = Pair::new();
    let stream = StreamId::Accepted(99);
    let uid = pair.chain.uid();
    let not_vouched = Peer::own(id("west", "vl3/registry/r"));
    let no_registry = Peer::vouched(id("west", "vl3/router/r"), [uid].into());
    let own = Peer::own(id("east", "vl3/registry/other"));
    for peer in [not_vouched, no_registry, own] {
        let mut out = Outbox::default();
        pair.sides[0].machine.handle(
            Input::SyncOpened {
                stream,
                peer: peer.clone(),
            },
            pair.now,
            &mut out,
        );
        let closed = |effect: &Effect| matches!(effect, Effect::CloseStream { stream: of, .. } if *of == stream);
        assert!(out.as_slice().iter().any(closed), "{peer:?}");
    }
}
