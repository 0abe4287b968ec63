//! Replicas over one journal, and whatever may happen to them in whatever order.

use std::collections::BTreeMap;

use super::bench::{Bench, at, router, workload};
use super::replica_tests::{Journal, Replica, journal, plain};
use super::*;
use crate::rng::Rng;
use crate::time::Now;

/// What one watcher believes, by the events that it got.
#[derive(Default)]
struct Watcher {
    /// The replica at which it watches; None: it must open its watch again.
    at: Option<usize>,
    seen: BTreeMap<String, String>,
}

/// A world of replicas in which anything happens in any order.
struct Model {
    rng: Rng,
    store: Journal,
    replicas: Vec<Option<Replica>>,
    watchers: BTreeMap<u64, Watcher>,
    /// Calls that no answer came to yet: who, where, which URL.
    open: BTreeMap<u64, (usize, String, u64)>,
    now: u64,
    next: u64,
    acknowledged: usize,
    deposed: usize,
}

impl Model {
    fn new(seed: u64) -> Self {
        let store = journal(Vec::new());
        let replicas = (0..2 + seed % 2).map(|_| Some(Replica::start(&store, at(0))));
        Self {
            rng: Rng::new(seed),
            replicas: replicas.collect(),
            store,
            watchers: (0..4).map(|id| (id, Watcher::default())).collect(),
            open: BTreeMap::new(),
            now: 0,
            next: 0,
            acknowledged: 0,
            deposed: 0,
        }
    }

    fn now(&self) -> Now {
        at(self.now)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.rng.next_u64() % limit
    }

    fn step(&mut self) {
        let (what, now) = (self.below(100), self.now());
        let index = usize::try_from(self.below(self.replicas.len() as u64)).unwrap();
        let (store, replica) = (&mut self.store, &mut self.replicas[index]);
        let Some(running) = replica else {
            if what < 30 {
                *replica = Some(Replica::start(store, now));
            }
            return;
        };
        match what {
            0..40 => self.call(index),
            40..60 => {
                let was = running.term;
                running.write(store, now);
                self.deposed += usize::from(was.is_some() && running.term.is_none());
            }
            60..75 if running.term.is_none() => {
                let batches = usize::try_from(self.rng.next_u64() % 3).unwrap();
                running.follow(store, batches, now);
            }
            75..78 if running.term.is_none() => running.reload(store, now),
            78..82 if running.term.is_none() => running.promote(store, now),
            82..84 if running.term.is_some_and(|term| term != store.term) => {
                running.depose(store, now);
                self.deposed += 1;
            }
            84..86 => self.crash(index),
            86..88 if running.term.is_some() => {
                running.confirm(what == 86, now);
            }
            86..90 => {
                self.now += 5;
                let now = at(self.now);
                running.wake(now);
            }
            90..100 => self.watch(index),
            _ => {}
        }
        self.look();
    }

    fn call(&mut self, index: usize) {
        let (now, call, kind, name, url) = (
            self.now(),
            self.next,
            self.below(10),
            format!("e{}", self.below(6)),
            self.below(1000),
        );
        self.next += 1;
        let command = match kind {
            0..6 => Command::RegisterEndpoint {
                endpoint: plain(&name, url),
                lifetime: None,
            },
            6..8 => Command::UnregisterEndpoint { name: name.clone() },
            _ => {
                let bench = Bench::new();
                bench.acquire(u8::try_from(url % 3).unwrap())
            }
        };
        let peer = if kind < 8 { workload("a") } else { router() };
        if kind < 6 {
            self.open.insert(call, (index, name, url));
        }
        if let Some(replica) = &mut self.replicas[index] {
            replica.call(call, &peer, command, now);
        }
    }

    fn crash(&mut self, index: usize) {
        self.replicas[index] = None;
        self.open.retain(|_, (at, ..)| *at != index);
        for watcher in self.watchers.values_mut() {
            watcher.at = watcher.at.filter(|at| *at != index);
        }
    }

    /// Somebody whose watch ended opens it elsewhere, and starts from that snapshot.
    fn watch(&mut self, index: usize) {
        let now = self.now();
        let lost = self
            .watchers
            .iter_mut()
            .find(|(_, watcher)| watcher.at.is_none());
        if let (Some((id, watcher)), Some(replica)) = (lost, &mut self.replicas[index]) {
            watcher.at = Some(index);
            watcher.seen.clear();
            replica.watch(*id, now);
        }
    }

    /// Takes replies and events, and checks what was promised.
    fn look(&mut self) {
        let now = self.now();
        for (index, replica) in self.replicas.iter_mut().enumerate() {
            let effects = replica
                .as_mut()
                .map(|replica| std::mem::take(&mut replica.effects));
            for effect in effects.unwrap_or_default() {
                match effect {
                    Effect::Deliver {
                        watcher, events, ..
                    } => {
                        let watcher = self.watchers.get_mut(&watcher.0).unwrap();
                        assert_eq!(watcher.at, Some(index));
                        for event in events {
                            let WatchEvent::Endpoint { found, deleted } = event else {
                                continue;
                            };
                            let Endpoint { name, url, .. } = found.shown.into_endpoint();
                            if deleted {
                                watcher.seen.remove(&name);
                            } else {
                                watcher.seen.insert(name, url);
                            }
                        }
                    }
                    Effect::EndWatch { watcher, .. } => {
                        self.watchers.get_mut(&watcher.0).unwrap().at = None;
                    }
                    Effect::Reply { call, result } => {
                        let open = self.open.remove(&call.0);
                        if let (Ok(reply), Some((_, name, url))) = (&result, open) {
                            assert!(matches!(reply, Reply::Endpoint(_)));
                            self.acknowledged += 1;
                            let registered = endpoint_with(&self.store, &name, url);
                            assert!(registered, "{name} at {url} was promised and is not kept");
                        }
                        if let Ok(Reply::Lease(granted)) = result {
                            self.acknowledged += 1;
                            let kept = self.store.replayed(now);
                            let kept = kept.lease(granted.lease.uid, &granted.lease.router);
                            assert!(
                                kept.is_some_and(|kept| *kept == granted.lease
                                    || kept.generation > granted.lease.generation),
                                "{:?} was promised, {kept:?} is kept",
                                granted.lease
                            );
                        }
                    }
                    Effect::Alarm(alarm) => panic!("{alarm}"),
                    Effect::Append { .. }
                    | Effect::Rewrite { .. }
                    | Effect::Dial { .. }
                    | Effect::Send { .. }
                    | Effect::CloseStream { .. }
                    | Effect::DocumentChanged { .. } => {}
                }
            }
        }
    }

    /// Everybody hears of everything.
    fn settle(&mut self) {
        let now = self.now();
        for index in 0..self.replicas.len() {
            let replica =
                self.replicas[index].get_or_insert_with(|| Replica::start(&self.store, now));
            if replica.term.is_some_and(|term| term != self.store.term) {
                replica.depose(&self.store, now);
            }
            while replica.writing.is_some() {
                replica.write(&mut self.store, now);
            }
        }
        for replica in self.replicas.iter_mut().flatten() {
            if replica.term.is_none() {
                replica.follow(&self.store, usize::MAX, now);
            }
        }
        self.look();
    }

    fn examine(&self) {
        let truth = self.store.replayed(self.now()).snapshot();
        for replica in self.replicas.iter().flatten() {
            assert_eq!(replica.machine.snapshot(), truth);
        }
        for (id, watcher) in &self.watchers {
            let Some(at) = watcher.at else { continue };
            let machine = &self.replicas[at].as_ref().unwrap().machine;
            let endpoints = machine.endpoints().map(|(_, endpoint)| endpoint);
            let found: BTreeMap<_, _> = endpoints
                .map(|endpoint| (endpoint.name.clone(), endpoint.url.clone()))
                .collect();
            assert_eq!(watcher.seen, found, "watcher {id} at replica {at}");
        }
    }
}

/// Whether the last or an earlier word on that endpoint was this one.
fn endpoint_with(store: &Journal, name: &str, url: u64) -> bool {
    let url = plain(name, url).url;
    store.batches.iter().flatten().any(|record| {
        matches!(record, Record::Endpoint { endpoint, .. }
            if endpoint.name == name && endpoint.url == url)
    })
}

#[test]
fn whatever_happens_to_replicas_no_promise_is_lost_and_all_end_up_equal() {
    let (mut acknowledged, mut deposed, mut terms) = (0, 0, 0);
    for seed in 0..300 {
        let mut model = Model::new(seed);
        for _ in 0..250 {
            model.step();
        }
        model.settle();
        model.examine();
        acknowledged += model.acknowledged;
        deposed += model.deposed;
        terms += model.store.term;
    }
    // A quiet run must not pass for a good one.
    assert!(acknowledged > 3_000, "{acknowledged} promises");
    assert!(deposed > 300, "{deposed} deposed");
    assert!(terms > 900, "{terms} terms");
}
