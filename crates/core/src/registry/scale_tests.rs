//! What is kept for many objects and watchers: the same answers as a look at everything, and
//! limits with a named behaviour.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::bench::{Bench, at, config, router, workload};
use super::matching::EndpointQuery;
use super::shown::View;
use super::*;
use crate::document::fixture::{chain, domain, id, next};
use crate::federation::{StreamId, SyncMessage};
use crate::machine::{Machine as _, Outbox};
use crate::time::Now;

/// One endpoint of a small world of names and services, so that much of it matches.
fn endpoint(name: u8, services: &[u8]) -> Endpoint {
    let services: Vec<_> = services
        .iter()
        .map(|service| format!("s{service}"))
        .collect();
    let labels = Labels::from([("app".to_owned(), format!("{}", name % 2))]);
    Endpoint {
        name: format!("n{name}"),
        labels: services
            .iter()
            .map(|service| (service.clone(), labels.clone()))
            .collect(),
        services,
        url: format!("tcp://192.0.2.{}:5010", name % 3),
        ..Endpoint::default()
    }
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Own(u8, Vec<u8>),
    OwnGone(u8),
    Remote(bool, u8, Vec<u8>),
    RemoteGone(bool, u8),
}

pub(super) fn changes() -> impl Strategy<Value = Vec<Change>> {
    let services = || prop::collection::vec(0..4_u8, 0..3);
    let change = prop_oneof![
        (0..6_u8, services()).prop_map(|(name, services)| Change::Own(name, services)),
        (0..6_u8).prop_map(Change::OwnGone),
        (any::<bool>(), 0..6_u8, services())
            .prop_map(|(west, name, services)| Change::Remote(west, name, services)),
        (any::<bool>(), 0..6_u8).prop_map(|(west, name)| Change::RemoteGone(west, name)),
    ];
    prop::collection::vec(change, 1..40)
}

pub(super) fn queries() -> impl Strategy<Value = EndpointQuery> {
    let at = || {
        prop_oneof![
            Just(""),
            Just("@west"),
            Just("@north"),
            Just("@WEST"),
            Just("@")
        ]
    };
    let name = prop::option::of((0..6_u8, at()).prop_map(|(name, at)| format!("n{name}{at}")));
    let service = (0..4_u8, at()).prop_map(|(service, at)| format!("s{service}{at}"));
    let services = prop::collection::vec(service.clone(), 0..3);
    let labels = prop::option::of((service, 0..2_u8));
    let url = prop_oneof![Just(""), Just("192.0.2.1"), Just("nowhere")];
    let expires = prop::option::of(1_800_000_060..1_800_000_062_u64);
    (name, services, labels, url, expires).prop_map(|(name, services, labels, url, expires)| {
        EndpointQuery {
            name: name.unwrap_or_default(),
            services,
            labels: labels
                .map(|(service, app)| {
                    let labels = Labels::from([("app".to_owned(), app.to_string())]);
                    BTreeMap::from([(service, labels)])
                })
                .unwrap_or_default(),
            url: url.to_owned(),
            expires_unix_secs: expires,
        }
    })
}

type Seen = Vec<Endpoint>;

impl Bench {
    pub(super) fn change(&mut self, change: Change) {
        let of = |west: bool| domain(if west { "west" } else { "north" });
        let record = match change {
            Change::Own(name, services) => Record::Endpoint {
                endpoint: Arc::new(endpoint(name, &services)),
                owner: workload("a").id,
            },
            Change::OwnGone(name) => Record::EndpointRemoved {
                name: format!("n{name}"),
            },
            Change::Remote(west, name, services) => Record::Remote {
                uid: self.chain.uid(),
                domain: of(west),
                endpoint: Packed::new(&endpoint(name, &services)),
            },
            Change::RemoteGone(west, name) => Record::RemoteRemoved {
                domain: of(west),
                name: format!("n{name}"),
            },
        };
        let now = self.now;
        let mut out = Outbox::default();
        self.machine.commit(vec![record], now, &mut out);
        self.machine.handle(
            Input::Unwatch {
                watcher: WatcherId(u64::MAX),
            },
            now,
            &mut out,
        );
        self.take(out);
        self.write();
    }

    /// A look at every endpoint there is.
    pub(super) fn scan(&self, query: &EndpointQuery, peer: &Peer) -> Seen {
        let shown = self.machine.endpoints().filter_map(|(of, endpoint)| {
            let config = &self.machine.config;
            let view = self.machine.view(self.chain.uid(), query, peer);
            // Nobody vouches for any of them.
            let (shown, left) = match (of, view) {
                (None, _) => (Endpoint::clone(&endpoint), config.endpoint_lifetime),
                (Some(domain), view) => {
                    let packed = Packed::new(&endpoint);
                    let shown = match view? {
                        View::Router => packed.for_routers(domain),
                        View::Other => packed.for_others(domain),
                    };
                    (shown, config.federation.stale_grace)
                }
            };
            let expires = self.now.wall + left;
            query.matches(&shown, expires.unix_secs()).then_some(shown)
        });
        shown.collect()
    }

    /// All pages of a Find, each within its bounds.
    pub(super) fn find(&self, query: &EndpointQuery, peer: &Peer) -> Seen {
        let (mut seen, mut after) = (Seen::new(), None);
        loop {
            let find = |after: &Option<Place>| {
                self.machine
                    .find_endpoints(query, after.as_ref(), peer, self.now)
            };
            let page = find(&after);
            assert!(page.found.len() <= self.machine.config.page_found_max);
            assert!(page.next.is_none() || page.next > after, "a page goes on");
            seen.extend(
                page.found
                    .into_iter()
                    .map(|found| found.shown.into_endpoint()),
            );
            after = page.next;
            if after.is_none() {
                return seen;
            }
        }
    }

    pub(super) fn watch(&mut self, watcher: u64, peer: &Peer, query: &EndpointQuery) {
        self.handle(Input::Watch {
            watcher: WatcherId(watcher),
            peer: peer.clone(),
            query: Query::Endpoints(query.clone()),
        });
    }

    /// A stream of the registry of west, and what it says.
    pub(super) fn west(&mut self, stream: u64) {
        let peer = Peer::vouched(id("west", "vl3/registry/r"), [self.chain.uid()].into());
        let stream = StreamId::Accepted(stream);
        self.handle(Input::SyncOpened { stream, peer });
        self.says(
            stream,
            SyncMessage::Open {
                version: 1,
                domain: domain("west"),
                epoch: [1; 16],
                uids: vec![self.chain.uid()],
            },
        );
    }

    pub(super) fn says(&mut self, stream: StreamId, message: SyncMessage) {
        self.handle(Input::SyncReceived { stream, message });
        self.write();
    }

    pub(super) fn west_says(&mut self, stream: u64, sequence: u64, name: &str) {
        let mut endpoint = self.endpoint("west", 1);
        endpoint.name = name.to_owned();
        for labels in endpoint.labels.values_mut() {
            labels.insert(LABEL_NAME.to_owned(), name.to_owned());
        }
        let message = SyncMessage::Upsert {
            sequence,
            uid: self.chain.uid(),
            endpoint: Arc::new(endpoint),
            lifetime: core::time::Duration::from_secs(60),
        };
        self.says(StreamId::Accepted(stream), message);
    }

    fn limited(&mut self) -> usize {
        let of_limit =
            |effect: &Effect| matches!(effect, Effect::Alarm(Alarm::DomainLimited { .. }));
        let limited = self
            .effects
            .iter()
            .filter(|effect| of_limit(effect))
            .count();
        self.effects.clear();
        limited
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The oracle is `EndpointQuery::matches` over everything, as each caller sees it.
    #[test]
    fn an_index_answers_as_a_look_at_everything(
        changes in changes(),
        queries in prop::collection::vec(queries(), 8),
        (found_max, looked_at_max) in (1..4_usize, 1..6_usize),
    ) {
        let paged = Config { page_found_max: found_max, page_looked_at_max: looked_at_max, ..config() };
        for config in [config(), paged] {
            let mut bench = Bench::boot(config, chain(&["east", "west", "north"]), Vec::new());
            for change in changes.clone() {
                bench.change(change);
            }
            for query in &queries {
                for peer in [router(), workload("a")] {
                    prop_assert_eq!(bench.find(query, &peer), bench.scan(query, &peer));
                }
            }
        }
    }

    /// What watchers are told adds up to what they would find.
    #[test]
    fn a_watch_tells_each_change_that_a_find_would_show(changes in changes(), query in queries()) {
        let mut bench = Bench::boot(config(), chain(&["east", "west", "north"]), Vec::new());
        let query = EndpointQuery { expires_unix_secs: None, ..query };
        let peers = [router(), workload("a")];
        for (watcher, peer) in (1..).zip(&peers) {
            bench.watch(watcher, peer, &query);
        }
        for change in changes {
            let before = peers.each_ref().map(|peer| bench.scan(&query, peer));
            bench.change(change);
            let after = peers.each_ref().map(|peer| bench.scan(&query, peer));
            for (index, watcher) in [(0, 1), (1, 2)] {
                let names = |found: &[Endpoint]| -> BTreeMap<String, Endpoint> {
                    found.iter().map(|found| (found.name.clone(), found.clone())).collect()
                };
                let (before, after) = (names(&before[index]), names(&after[index]));
                let told = bench.delivered(watcher);
                let new = after.iter().filter(|(name, endpoint)| before.get(*name) != Some(*endpoint));
                for (name, _) in new {
                    prop_assert!(told.contains(&(name.clone(), false)), "{} is not told", name);
                }
                for (name, deleted) in &told {
                    prop_assert_eq!(*deleted, !after.contains_key(name), "{} is told wrongly", name);
                }
            }
        }
    }
}

#[test]
fn one_identity_cannot_take_all_watches() {
    let limits = Config {
        watchers_per_identity_max: 2,
        ..config()
    };
    let mut bench = Bench::boot(limits, chain(&["east", "west"]), Vec::new());
    let all = EndpointQuery::default();
    for watcher in 1..=3 {
        bench.watch(watcher, &workload("a"), &all);
    }
    let refusal = Refusal::Limit {
        what: "watches of one identity",
        limit: 2,
    };
    let watcher = WatcherId(3);
    assert!(
        bench
            .effects
            .contains(&Effect::EndWatch { watcher, refusal })
    );
    bench.watch(4, &workload("b"), &all);
    assert_eq!(bench.machine.counts().watchers, 3);
    bench.handle(Input::Unwatch {
        watcher: WatcherId(1),
    });
    bench.watch(5, &workload("a"), &all);
    assert_eq!(bench.machine.counts().watchers, 3);
}

/// Whoever makes identities does not get the room of the own domain with them.
#[test]
fn other_domains_cannot_take_all_watches_whatever_identities_they_make() {
    let limits = Config {
        watchers_max: 8,
        watchers_per_identity_max: 4,
        ..config()
    };
    let chain = chain(&["east", "west", "north", "south"]);
    let mut bench = Bench::boot(limits, chain, Vec::new());
    let all = EndpointQuery::default();
    let mut watcher = 0;
    let mut watches = |bench: &mut Bench, of: &str, name: &str| {
        watcher += 1;
        let peer = Peer::vouched(id(of, name), [bench.chain.uid()].into());
        bench.watch(watcher, &peer, &all);
        let ended = bench.effects.drain(..).find_map(|effect| match effect {
            Effect::EndWatch { refusal, .. } => Some(refusal.to_string()),
            _ => None,
        });
        ended.unwrap_or_default()
    };
    for name in ["a", "b", "c", "d"] {
        assert_eq!(watches(&mut bench, "west", name), "");
    }
    let refused = "watches of one identity: at most 4 are allowed";
    assert_eq!(watches(&mut bench, "west", "e"), refused);
    for of in ["north", "south"] {
        assert_eq!(watches(&mut bench, of, "a"), "");
    }
    let refused = "watches of other domains: at most 6 are allowed";
    assert_eq!(watches(&mut bench, "south", "b"), refused);
    for name in ["a", "b"] {
        assert_eq!(watches(&mut bench, "east", name), "");
    }
    let refused = "watches: at most 8 are allowed";
    assert_eq!(watches(&mut bench, "east", "c"), refused);
    bench.handle(Input::Unwatch {
        watcher: WatcherId(1),
    });
    assert_eq!(watches(&mut bench, "south", "b"), "");
}

#[test]
fn a_domain_above_its_limits_keeps_what_it_has_and_is_told_of_once() {
    let one = Packed::new(&Bench::new().endpoint("west", 1)).len() + 200;
    for (endpoints_max, domain_bytes_max, total_bytes_max) in [
        (2, 1 << 20, 1 << 20),
        (9, 3 * one - 100, 1 << 20),
        (9, 1 << 20, 3 * one - 100),
    ] {
        let mut limits = config();
        limits.federation.endpoints_max = endpoints_max;
        limits.federation.domain_bytes_max = domain_bytes_max;
        limits.federation.total_bytes_max = total_bytes_max;
        let mut bench = Bench::boot(limits, chain(&["east", "west"]), Vec::new());
        bench.west(1);
        for (sequence, name) in (1..).zip(["red-wes1", "red-wes2", "red-wes3", "red-wes4"]) {
            bench.west_says(1, sequence, name);
        }
        let size = bench.machine.remote_size(&domain("west"));
        assert_eq!((size.endpoints, size.refused), (2, 2));
        assert_eq!(
            (bench.limited(), bench.machine.counts().remote_refused),
            (1, 2)
        );
        // Its own entries may change; another one has room when one went.
        bench.west_says(1, 5, "red-wes2");
        let removed = |sequence| SyncMessage::Remove {
            sequence,
            uid: bench.chain.uid(),
            name: "red-wes1".into(),
        };
        let removed = removed(6);
        bench.says(StreamId::Accepted(1), removed);
        bench.west_says(1, 7, "red-wes3");
        assert_eq!(bench.machine.remote_size(&domain("west")).endpoints, 2);
        bench.west_says(1, 8, "red-wes4");
        assert_eq!(bench.limited(), 0, "told already");
        // After a whole snapshot that fits, the next excess is told again.
        for stream in [2, 3] {
            bench.west(stream);
            bench.west_says(stream, 1, "red-wes2");
            bench.says(
                StreamId::Accepted(stream),
                SyncMessage::EndOfSnapshot { sequence: 2 },
            );
        }
        for (sequence, name) in (3..).zip(["red-wes1", "red-wes3"]) {
            bench.west_says(3, sequence, name);
        }
        assert_eq!(bench.limited(), 1);
    }
}

/// A router saw the network's own name; once its domain is revoked it sees others', if any.
#[test]
fn a_watch_hears_of_the_end_of_what_its_domain_may_not_see_any_more() {
    let mut bench = Bench::boot(config(), chain(&["east", "west", "north"]), Vec::new());
    bench.west(1);
    let red = EndpointQuery {
        services: vec!["red".to_owned()],
        ..EndpointQuery::default()
    };
    bench.watch(1, &router(), &red);
    bench.west_says(1, 1, "red-west");
    assert_eq!(bench.delivered(1), [("red-west@west".to_owned(), false)]);
    let revoked = next(&bench.chain, |document| {
        if let Some(east) = document.members.get_mut(&domain("east")) {
            east.revoked = true;
        }
    });
    bench
        .call(&router(), Command::Publish { chain: revoked })
        .unwrap();
    assert_eq!(bench.delivered(1), [("red-west@west".to_owned(), true)]);
}

/// A domain whose endpoints all have other names after a loss of its stream.
#[test]
fn a_new_snapshot_takes_the_place_of_what_is_stale() {
    let mut limits = config();
    limits.federation.endpoints_max = 2;
    let mut bench = Bench::boot(limits, chain(&["east", "west"]), Vec::new());
    bench.west(1);
    for (sequence, name) in (1..).zip(["red-wes1", "red-wes2"]) {
        bench.west_says(1, sequence, name);
    }
    let (stream, reason) = (StreamId::Accepted(1), "lost".to_owned());
    bench.handle(Input::SyncClosed { stream, reason });
    bench.west(2);
    for (sequence, name) in (1..).zip(["red-wes3", "red-wes4", "red-wes5"]) {
        bench.west_says(2, sequence, name);
    }
    let names = bench
        .machine
        .endpoints()
        .map(|(_, endpoint)| endpoint.name.clone());
    assert_eq!(names.collect::<Vec<_>>(), ["red-wes3", "red-wes4"]);
    assert_eq!(bench.limited(), 1);
}

/// Invariant 12: what a domain withdraws from a network is withdrawn there.
#[test]
fn an_endpoint_that_leaves_its_network_leaves_other_domains_too() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    bench.west(1);
    bench.call(&router(), bench.register(1)).unwrap();
    bench.effects.clear();
    let unmarked = Endpoint {
        name: "red-east".to_owned(),
        services: vec!["red".to_owned()],
        ..Endpoint::default()
    };
    let command = Command::RegisterEndpoint {
        endpoint: unmarked,
        lifetime: None,
    };
    bench.call(&router(), command).unwrap();
    let removed = |effect: &Effect| {
        matches!(effect, Effect::Send { messages, .. }
            if matches!(&messages[..], [SyncMessage::Remove { name, .. }] if &**name == "red-east"))
    };
    assert!(bench.effects.iter().any(removed), "{:?}", bench.effects);
}

/// A stream whose queue is short must not end because much happened during one append.
#[test]
fn what_waits_for_one_append_goes_out_as_one_batch() {
    let mut bench = Bench::new();
    bench.west(1);
    bench.watch(1, &workload("a"), &EndpointQuery::default());
    bench.effects.clear();
    bench.send(&router(), bench.acquire(1));
    for generation in 1..=40 {
        bench.send(&router(), bench.register(generation));
    }
    bench.write();
    let batches = |of: &dyn Fn(&Effect) -> usize| {
        let sizes: Vec<_> = bench
            .effects
            .iter()
            .map(of)
            .filter(|size| *size > 0)
            .collect();
        sizes
    };
    let sent = batches(&|effect| match effect {
        Effect::Send { messages, .. } => messages.len(),
        _ => 0,
    });
    let told = batches(&|effect| match effect {
        Effect::Deliver { events, .. } => events.len(),
        _ => 0,
    });
    assert_eq!((sent, told), (vec![40], vec![40]));
}

#[test]
fn the_next_deadline_is_that_of_what_expires_first() {
    let mut bench = Bench::new();
    bench.now = at(10);
    bench
        .call(
            &workload("a"),
            Command::RegisterEndpoint {
                endpoint: endpoint(1, &[1]),
                lifetime: None,
            },
        )
        .unwrap();
    let due = |bench: &Bench| bench.machine.objects.next_expiry();
    assert_eq!(due(&bench), Some(at(70).mono));
    bench.now = at(20);
    bench
        .call(
            &workload("a"),
            Command::RegisterEndpoint {
                endpoint: endpoint(1, &[1]),
                lifetime: None,
            },
        )
        .unwrap();
    assert_eq!(due(&bench), Some(at(80).mono));
    bench.now = Now {
        mono: at(80).mono,
        ..bench.now
    };
    bench.wake();
    bench.write();
    assert_eq!((due(&bench), bench.machine.counts().endpoints), (None, 0));
}
