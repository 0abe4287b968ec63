//! Finds and snapshots of watches are shown page by page, as their readers take them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::bench::{Bench, config, router, workload};
use super::scale_tests::{Change, changes, queries};
use super::*;
use crate::document::fixture::chain;

fn by_name(change: Change) -> Change {
    let services = |name: u8| (0..name % 4).collect();
    match change {
        Change::Own(name, _) => Change::Own(name, services(name)),
        Change::Remote(west, name, _) => Change::Remote(west, name, services(name)),
        gone => gone,
    }
}

impl Bench {
    /// What a watch showed and told since it was last asked; it reads page by page.
    fn read(&mut self, watcher: u64, seen: &mut BTreeMap<String, Endpoint>) -> bool {
        let mut has_rest = false;
        self.effects.retain(|effect| {
            let Effect::Deliver {
                watcher: of,
                events,
                rest,
            } = effect
            else {
                return true;
            };
            if *of != WatcherId(watcher) {
                return true;
            }
            has_rest |= rest;
            for event in events {
                let WatchEvent::Endpoint { found, deleted } = event else {
                    continue;
                };
                let endpoint = found.shown.endpoint();
                if *deleted {
                    seen.remove(&endpoint.name);
                } else {
                    seen.insert(endpoint.name.clone(), Endpoint::clone(&endpoint));
                }
            }
            false
        });
        if has_rest {
            let watcher = WatcherId(watcher);
            self.handle(Input::WatchRest { watcher });
        }
        has_rest
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A watch that is shown its snapshot page by page, while everything changes, has in the
    /// end what a Find shows. What an endpoint offers goes by its name here: as at stock
    /// registries nobody is told that one goes on without what was queried.
    #[test]
    fn pages_of_a_watch_and_what_it_is_told_add_up_to_a_find(
        before in changes(),
        meanwhile in changes(),
        query in queries(),
        reads in prop::collection::vec(any::<bool>(), 40),
    ) {
        let paged = Config { page_found_max: 2, page_looked_at_max: 3, ..config() };
        let mut bench = Bench::boot(paged, chain(&["east", "west", "north"]), Vec::new());
        for change in before {
            bench.change(by_name(change));
        }
        let query = EndpointQuery { expires_unix_secs: None, ..query };
        let peers = [router(), workload("a")];
        let mut seen = [BTreeMap::new(), BTreeMap::new()];
        for (watcher, peer) in (1..).zip(&peers) {
            bench.watch(watcher, peer, &query);
        }
        for (change, reads) in meanwhile.into_iter().zip(reads) {
            bench.change(by_name(change));
            if reads {
                for (watcher, seen) in (1..).zip(&mut seen) {
                    bench.read(watcher, seen);
                }
            }
        }
        for ((watcher, seen), peer) in (1..).zip(&mut seen).zip(&peers) {
            while bench.read(watcher, seen) {}
            let found = bench.find(&query, peer).into_iter();
            let found: BTreeMap<_, _> = found.map(|one| (one.name.clone(), one)).collect();
            prop_assert_eq!(&*seen, &found);
        }
    }
}

/// Much that does not match costs a turn no more than a page either.
#[test]
fn one_turn_looks_at_a_bounded_number_of_endpoints_and_copies_none() {
    let paged = Config {
        page_found_max: 10,
        page_looked_at_max: 25,
        ..config()
    };
    let mut bench = Bench::boot(paged, chain(&["east", "west"]), Vec::new());
    for name in 0..100 {
        bench.change(Change::Remote(true, name, vec![1]));
    }
    let pages = |query: &EndpointQuery| {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let found = bench
                .machine
                .find_endpoints(query, after.as_ref(), &router(), bench.now);
            pages.push(found.found.len());
            after = found.next;
            if after.is_none() {
                return pages;
            }
        }
    };
    assert_eq!(pages(&EndpointQuery::default()), [10; 10]);
    let nowhere = EndpointQuery {
        url: "nowhere".to_owned(),
        ..EndpointQuery::default()
    };
    assert_eq!(pages(&nowhere), [0; 4]);
    let all = EndpointQuery::default();
    let page = bench
        .machine
        .find_endpoints(&all, None, &router(), bench.now);
    let (_, held) = bench.machine.objects.remotes.iter().next().unwrap();
    // Ten readers of the whole network hold ten pages of places, and what the registry holds.
    assert!(page.found[0].shown.bytes() <= held.packed.len() + 64);
    assert_eq!(size_of::<FoundEndpoint>(), 40);
}

/// Whoever may have a page unread can read everything.
#[test]
fn a_page_of_large_endpoints_is_short() {
    let mut bench = Bench::new();
    for number in 0..40 {
        let endpoint = Endpoint {
            name: format!("large-{number}"),
            url: "x".repeat(14_000),
            ..Endpoint::default()
        };
        let lifetime = None;
        let register = Command::RegisterEndpoint { endpoint, lifetime };
        bench.call(&workload("a"), register).unwrap();
    }
    let all = EndpointQuery::default();
    let page = bench
        .machine
        .find_endpoints(&all, None, &workload("a"), bench.now);
    assert_eq!(page.found.len(), 19);
    assert!(page.next.is_some());
    assert_eq!(bench.find(&all, &workload("a")).len(), 40);
}
