//! What one network's document says of a domain counts in that network only.

use core::time::Duration;
use std::sync::Arc;

use super::bench::{Bench, config, router};
use super::*;
use crate::document::fixture::{chain, domain, id, next, other_chain};
use crate::document::{Chain, RoleIds};
use crate::federation::{StreamId, SyncMessage};
use crate::ids::{NetworkUid, SpiffeId};

/// Networks red (in which west is west.test) and blue, as the configuration orders them.
struct Two {
    bench: Bench,
    red: Chain,
    blue: Chain,
}

/// Blue's admin names its own registry `west`.
fn evil(document: &mut crate::document::Document) {
    let west = document.members.get_mut(&domain("west")).unwrap();
    west.trust_domain = "evil.test".to_owned();
    west.roles = RoleIds::defaults("evil.test");
}

/// Blue's admin lists west's trust domain with roots of his own.
fn forged(_: &mut crate::document::Document) {}

impl Two {
    fn new(edit: impl FnOnce(&mut crate::document::Document)) -> Self {
        let red = chain(&["east", "west"]);
        let blue = other_chain("blue", &["east", "west"], edit);
        let chains = vec![red.clone(), blue.clone()];
        let mut two = Self {
            bench: Bench::boot_in(config(), chains, Vec::new()),
            red,
            blue,
        };
        for network in ["red", "blue"] {
            let endpoint = two.endpoint("east", network, &format!("{network}-east"));
            let register = Command::RegisterEndpoint {
                endpoint,
                lifetime: None,
            };
            two.bench.call(&router(), register).unwrap();
        }
        two
    }

    fn uid(&self, network: &str) -> NetworkUid {
        match network {
            "red" => self.red.uid(),
            _ => self.blue.uid(),
        }
    }

    fn endpoint(&self, of: &str, network: &str, name: &str) -> Endpoint {
        let marks = Marks {
            service: network.to_owned(),
            uid: self.uid(network),
            name: name.to_owned(),
            ..Marks::of(&self.bench.endpoint(of, 1)).unwrap()
        };
        Endpoint {
            name: name.to_owned(),
            services: vec![network.to_owned()],
            labels: [(network.to_owned(), marks.labels())].into(),
            ..self.bench.endpoint(of, 1)
        }
    }

    fn opens(&mut self, stream: u64, id: SpiffeId, vouched: &[&str]) {
        let vouched = vouched.iter().map(|network| self.uid(network)).collect();
        let peer = Peer::vouched(id, vouched);
        let stream = StreamId::Accepted(stream);
        self.bench.handle(Input::SyncOpened { stream, peer });
        let open = SyncMessage::Open {
            version: 1,
            domain: domain("west"),
            epoch: [1; 16],
            uids: vec![self.red.uid(), self.blue.uid()],
        };
        self.says(stream, open);
    }

    fn says(&mut self, stream: StreamId, message: SyncMessage) {
        self.bench.handle(Input::SyncReceived { stream, message });
        self.bench.write();
    }

    fn upsert(&mut self, stream: u64, sequence: u64, network: &str, name: &str) {
        let message = SyncMessage::Upsert {
            sequence,
            uid: self.uid(network),
            endpoint: Arc::new(self.endpoint("west", network, name)),
            lifetime: Duration::from_secs(60),
        };
        self.says(StreamId::Accepted(stream), message);
    }

    fn end(&mut self, stream: u64, sequence: u64) {
        let message = SyncMessage::EndOfSnapshot { sequence };
        self.says(StreamId::Accepted(stream), message);
    }

    /// What stream was told of endpoints and documents, by network.
    fn told(&self, stream: u64) -> Vec<NetworkUid> {
        let sent = self.bench.effects.iter().filter_map(|effect| match effect {
            Effect::Send {
                stream: StreamId::Accepted(of),
                messages,
            } if *of == stream => Some(messages),
            _ => None,
        });
        let uids = sent.flatten().filter_map(|message| match message {
            SyncMessage::Upsert { uid, .. } | SyncMessage::Remove { uid, .. } => Some(*uid),
            SyncMessage::Document(chain) => Some(chain.uid()),
            _ => None,
        });
        uids.collect()
    }

    fn is_closed(&self, stream: u64) -> bool {
        self.bench.effects.iter().any(|effect| {
            matches!(effect, Effect::CloseStream { stream: StreamId::Accepted(of), .. } if *of == stream)
        })
    }

    fn remote(&self) -> Vec<String> {
        let endpoints = self.bench.machine.endpoints();
        let remote = endpoints.filter(|(domain, _)| domain.is_some());
        remote.map(|(_, endpoint)| endpoint.name.clone()).collect()
    }

    fn contradictions(&mut self) -> usize {
        let of_them =
            |effect: &Effect| matches!(effect, Effect::Alarm(Alarm::Contradiction { .. }));
        let count = self.bench.effects.iter().filter(|effect| of_them(effect));
        let count = count.count();
        self.bench.effects.clear();
        count
    }
}

fn west() -> SpiffeId {
    id("west", "vl3/registry/r")
}

#[test]
fn a_network_that_gives_a_domains_name_to_a_stranger_is_not_believed() {
    let mut two = Two::new(evil);
    two.opens(1, west(), &["red"]);
    two.upsert(1, 1, "red", "red-west");
    two.end(1, 2);
    two.bench.effects.clear();
    two.opens(2, id("evil", "vl3/registry/r"), &["blue"]);
    assert!(two.is_closed(2) && !two.is_closed(1));
    assert_eq!(two.told(2), []);
    assert_eq!(two.remote(), ["red-west"]);
    // A stranger that comes first gets as little.
    let mut two = Two::new(evil);
    two.opens(2, id("evil", "vl3/registry/r"), &["blue"]);
    assert!(two.is_closed(2));
    assert_eq!(two.told(2), []);
}

#[test]
fn the_operator_hears_once_of_networks_that_contradict_each_other() {
    let mut two = Two::new(forged);
    let chain = next(&two.blue, evil);
    two.bench.effects.clear();
    two.bench
        .call(
            &router(),
            Command::Publish {
                chain: chain.clone(),
            },
        )
        .unwrap();
    assert_eq!(two.contradictions(), 1);
    let chain = next(&chain, |document| document.policy.stale_limit_seconds = 1);
    two.bench
        .call(
            &router(),
            Command::Publish {
                chain: chain.clone(),
            },
        )
        .unwrap();
    assert_eq!(two.contradictions(), 0);
    // The other way round: west's trust domain under another name.
    let chain = next(&chain, |document| {
        let mut member = document.members.remove(&domain("west")).unwrap();
        member.domain = domain("north");
        member.trust_domain = "west.test".to_owned();
        member.roles = RoleIds::defaults("west.test");
        document.members.insert(domain("north"), member);
    });
    two.bench
        .call(&router(), Command::Publish { chain })
        .unwrap();
    assert_eq!(two.contradictions(), 1);
    two.opens(1, west(), &["red", "blue"]);
    assert_eq!(two.told(1), [two.red.uid(), two.red.uid()]);
}

#[test]
fn a_stream_is_told_and_says_what_concerns_the_networks_that_vouch_for_it() {
    let mut two = Two::new(forged);
    two.opens(1, west(), &["red"]);
    two.upsert(1, 1, "red", "red-west");
    two.end(1, 2);
    let (stream, reason) = (StreamId::Accepted(1), "lost".to_owned());
    two.bench.handle(Input::SyncClosed { stream, reason });
    two.bench.effects.clear();
    // An identity for which blue alone vouches.
    two.opens(2, west(), &["blue"]);
    let blue = two.blue.uid();
    assert_eq!(two.told(2), [blue, blue]);
    // It says, withdraws, takes the name, and leaves out what is red's: all in vain.
    two.upsert(2, 1, "red", "red-west");
    let remove = |sequence, uid| SyncMessage::Remove {
        sequence,
        uid,
        name: "red-west".into(),
    };
    two.says(StreamId::Accepted(2), remove(2, two.red.uid()));
    two.says(StreamId::Accepted(2), remove(3, two.blue.uid()));
    two.upsert(2, 4, "blue", "red-west");
    two.upsert(2, 5, "blue", "blue-west");
    two.end(2, 6);
    assert_eq!(two.remote(), ["blue-west", "red-west"]);
    // A change in red is not told to it.
    two.bench.effects.clear();
    let unregister = Command::UnregisterEndpoint {
        name: "red-east".to_owned(),
    };
    two.bench.call(&router(), unregister).unwrap();
    assert_eq!(two.told(2), []);
}

#[test]
fn a_stream_of_a_better_network_takes_the_place_and_is_not_displaced() {
    let mut two = Two::new(forged);
    two.opens(1, west(), &["blue"]);
    two.upsert(1, 1, "blue", "red-west");
    assert_eq!(two.remote(), ["red-west"]);
    two.opens(2, west(), &["red"]);
    assert!(two.is_closed(1) && !two.is_closed(2));
    two.upsert(2, 1, "red", "red-west");
    two.upsert(2, 2, "red", "red-west2");
    two.end(2, 3);
    let of_red = two
        .bench
        .machine
        .objects
        .remotes
        .get(&domain("west"), "red-west");
    assert_eq!(of_red.unwrap().uid, two.red.uid());
    two.opens(3, west(), &["blue"]);
    assert!(two.is_closed(3) && !two.is_closed(2));
    // The refused one is not judged for the one that stands.
    two.upsert(2, 4, "red", "red-west3");
    assert_eq!(two.remote(), ["red-west", "red-west2", "red-west3"]);
    // One that speaks in both is better than in red alone.
    two.opens(4, west(), &["red", "blue"]);
    assert!(two.is_closed(2) && !two.is_closed(4));
}

/// Who speaks for a domain in a worse network does not use up what it may say in a better one.
#[test]
fn a_stream_of_a_worse_network_leaves_the_allowance_alone() {
    let mut two = Two::new(forged);
    for stream in 1..=100 {
        two.opens(stream, west(), &["blue"]);
    }
    assert!(two.bench.machine.counts().streams_too_fast > 0);
    two.opens(101, west(), &["red"]);
    assert!(!two.is_closed(101));
}

/// A version may vouch for an identity that the one before did not, or no longer.
#[test]
fn a_change_of_what_is_granted_opens_the_stream_anew() {
    let mut two = Two::new(forged);
    two.opens(1, west(), &["red"]);
    let rotated = next(&two.blue, |document| {
        document.members.get_mut(&domain("west")).unwrap().bundle = b"new roots".to_vec();
    });
    two.bench
        .call(&router(), Command::Publish { chain: rotated })
        .unwrap();
    assert!(two.is_closed(1));
    two.opens(2, west(), &["red", "blue"]);
    assert!(!two.is_closed(2));
    let other = next(&two.red, |document| {
        let west = document.members.get_mut(&domain("west")).unwrap();
        west.roles.registry = vec!["spiffe://west.test/vl3/registry/other".to_owned()];
    });
    two.bench
        .call(&router(), Command::Publish { chain: other })
        .unwrap();
    assert!(two.is_closed(2));
}

/// Whatever a snapshot names that is not taken leaves nothing behind.
#[test]
fn what_a_snapshot_names_in_vain_ends_what_was_there() {
    let mut two = Two::new(forged);
    two.opens(1, west(), &["red"]);
    two.upsert(1, 1, "red", "red-west");
    two.upsert(1, 2, "red", "red-west2");
    two.end(1, 3);
    two.opens(2, west(), &["red"]);
    // Another stream replaced the one before: only what it vouches for stays.
    two.upsert(2, 1, "red", "red-west2");
    two.upsert(2, 2, "red", &"x".repeat(300));
    two.end(2, 3);
    assert_eq!(two.remote(), ["red-west2"]);
}

#[test]
fn a_network_that_does_not_vouch_for_a_stream_neither_hears_it_nor_is_told_to_it() {
    let mut two = Two::new(forged);
    two.opens(1, west(), &["blue"]);
    two.upsert(1, 1, "red", "red-west");
    assert_eq!(two.remote(), [""; 0]);
    two.bench.effects.clear();
    let chain = next(&two.red, |document| document.policy.stale_limit_seconds = 1);
    two.bench
        .call(&router(), Command::Publish { chain })
        .unwrap();
    assert_eq!(two.told(1), []);
}

/// It was away when it was removed, and still believes the network to be common.
#[test]
fn who_was_removed_hears_it_where_the_document_lists_it_and_the_same_roots_vouch() {
    let (usual, other) = (
        "spiffe://west.test/vl3/registry/*",
        "spiffe://west.test/vl3/registry/other",
    );
    for (roots, registry, told) in [
        (&b""[..], usual, true),
        (b"others", usual, false),
        (b"", other, false),
    ] {
        let mut two = Two::new(|document| {
            document.members.get_mut(&domain("west")).unwrap().bundle = roots.to_vec();
        });
        let chain = next(&two.red, |document| {
            let west = document.members.get_mut(&domain("west")).unwrap();
            west.revoked = true;
            west.roles.registry = vec![registry.to_owned()];
        });
        two.bench
            .call(&router(), Command::Publish { chain })
            .unwrap();
        two.bench.effects.clear();
        two.opens(1, west(), &["blue"]);
        let red = two.told(1).contains(&two.red.uid());
        assert_eq!(red, told, "{registry} {roots:?}");
    }
}
