//! Several machines over one journal.

mod confirmation;

use super::bench::{Bench, at, config, router, workload};
use super::*;
use crate::allocator;
use crate::document::fixture::{chain, domain, id, next};
use crate::ids::Generation;
use crate::machine::{Machine, Outbox, Ticket};
use crate::time::Now;

/// The store that replicas share: what was written in which order, and in which term.
#[derive(Default)]
pub(super) struct Journal {
    pub(super) batches: Vec<Vec<Record>>,
    pub(super) term: u64,
}

impl Journal {
    fn all(&self) -> Vec<Record> {
        self.batches.concat()
    }

    /// What somebody finds who starts from the store alone.
    pub(super) fn replayed(&self, now: Now) -> RegistryMachine {
        let boot = Boot {
            documents: vec![chain(&["east", "west"])],
            records: self.all(),
            ..Boot::default()
        };
        RegistryMachine::boot(config(), boot, now).unwrap()
    }
}

pub(super) struct Replica {
    pub(super) machine: RegistryMachine,
    /// Batches that came through the feed.
    read: usize,
    /// The term in which it believes to be active.
    pub(super) term: Option<u64>,
    pub(super) writing: Option<(Ticket, Vec<Record>)>,
    pub(super) effects: Vec<Effect>,
}

fn following(documents: Vec<crate::document::Chain>, now: Now) -> RegistryMachine {
    let boot = Boot {
        documents,
        following: true,
        ..Boot::default()
    };
    RegistryMachine::boot(config(), boot, now).unwrap()
}

impl Replica {
    /// As a process starts: it reads the store and follows.
    pub(super) fn start(journal: &Journal, now: Now) -> Self {
        let mut replica = Self {
            machine: following(vec![chain(&["east", "west"])], now),
            read: 0,
            term: None,
            writing: None,
            effects: Vec::new(),
        };
        replica.reload(journal, now);
        replica
    }

    fn handle(&mut self, input: Input, now: Now) {
        let mut out = Outbox::default();
        self.machine.handle(input, now, &mut out);
        self.take(out);
    }

    pub(super) fn wake(&mut self, now: Now) {
        let mut out = Outbox::default();
        self.machine.wake(now, &mut out);
        self.take(out);
    }

    fn take(&mut self, mut out: Outbox<Effect>) {
        for effect in out.take() {
            match effect {
                Effect::Append { ticket, records } => {
                    assert!(self.term.is_some(), "only the active replica writes");
                    assert!(self.writing.replace((ticket, records)).is_none());
                }
                effect => self.effects.push(effect),
            }
        }
    }

    pub(super) fn reload(&mut self, journal: &Journal, now: Now) {
        self.read = journal.batches.len();
        let records = journal.all();
        self.handle(Input::Reload { records }, now);
    }

    pub(super) fn follow(&mut self, journal: &Journal, batches: usize, now: Now) {
        for batch in journal.batches.iter().skip(self.read).take(batches) {
            let mut out = Outbox::default();
            let records = batch.clone();
            self.machine
                .handle(Input::Followed { records }, now, &mut out);
            self.read += 1;
            self.take(out);
        }
    }

    pub(super) fn promote(&mut self, journal: &mut Journal, now: Now) {
        journal.term += 1;
        self.term = Some(journal.term);
        let records = journal.all();
        self.handle(Input::Promoted { records }, now);
        self.wake(now);
    }

    /// The write that is under way reaches the store, which refuses it where another term began.
    pub(super) fn write(&mut self, journal: &mut Journal, now: Now) {
        let Some((ticket, records)) = self.writing.take() else {
            return;
        };
        if self.term == Some(journal.term) {
            journal.batches.push(records);
            self.handle(Input::Appended { ticket }, now);
        } else {
            self.depose(journal, now);
        }
    }

    pub(super) fn depose(&mut self, journal: &Journal, now: Now) {
        self.writing = None;
        let reason = "another replica is active".to_owned();
        self.handle(Input::Deposed { reason }, now);
        let effects = std::mem::take(&mut self.effects);
        *self = Self {
            effects,
            ..Self::start(journal, now)
        };
    }

    /// Whether the store says that it is still the active one.
    pub(super) fn confirm(&mut self, confirmed: bool, now: Now) {
        let input = if confirmed {
            Input::Confirmed
        } else {
            Input::Unconfirmed
        };
        self.handle(input, now);
    }

    pub(super) fn watch(&mut self, watcher: u64, now: Now) {
        let query = Query::Endpoints(EndpointQuery::default());
        self.handle(
            Input::Watch {
                watcher: WatcherId(watcher),
                peer: workload("watcher"),
                query,
            },
            now,
        );
    }

    pub(super) fn call(&mut self, call: u64, peer: &Peer, command: Command, now: Now) {
        let (call, peer) = (CallId(call), peer.clone());
        self.handle(
            Input::Call {
                call,
                peer,
                command,
            },
            now,
        );
    }

    fn reply(&mut self, call: u64) -> Option<Result<Reply, Refusal>> {
        let at = self.effects.iter().position(
            |effect| matches!(effect, Effect::Reply { call: of, .. } if *of == CallId(call)),
        )?;
        match self.effects.remove(at) {
            Effect::Reply { result, .. } => Some(result),
            _ => None,
        }
    }

    fn delivered(&mut self) -> Vec<(String, bool)> {
        let mut seen = Vec::new();
        self.effects.retain(|effect| {
            let Effect::Deliver { events, .. } = effect else {
                return true;
            };
            seen.extend(events.iter().filter_map(|event| match event {
                WatchEvent::Endpoint { found, deleted } => {
                    Some((found.shown.endpoint().name.clone(), *deleted))
                }
                WatchEvent::Service { .. } | WatchEvent::Document(_) => None,
            }));
            false
        });
        seen
    }
}

pub(super) fn plain(name: &str, url: u64) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        services: vec!["web".to_owned()],
        url: format!("tcp://192.0.2.1:{url}"),
        ..Endpoint::default()
    }
}

fn removed(name: &str) -> Record {
    Record::EndpointRemoved {
        name: name.to_owned(),
    }
}

fn endpoint(name: &str, url: u64) -> Record {
    Record::Endpoint {
        endpoint: plain(name, url).into(),
        owner: id("east", "workload/a"),
    }
}

fn document() -> Record {
    Record::Document {
        chain: chain(&["east", "west"]),
    }
}

pub(super) fn journal(batches: Vec<Vec<Record>>) -> Journal {
    Journal { batches, term: 0 }
}

#[test]
fn a_replica_that_follows_tells_its_watchers_and_writes_nothing() {
    let mut store = journal(vec![vec![document()]]);
    let mut replica = Replica::start(&store, at(0));
    replica.watch(1, at(0));
    store.batches.push(vec![endpoint("a", 1), endpoint("b", 1)]);
    store.batches.push(vec![removed("a")]);
    replica.follow(&store, 9, at(1));
    let told = [("a", false), ("b", false), ("a", true)];
    assert_eq!(
        replica.delivered(),
        told.map(|(name, gone)| (name.to_owned(), gone))
    );
    // Long after their lifetime: the active replica knows of refreshes, this one does not.
    replica.wake(at(10_000));
    assert_eq!(replica.machine.endpoints().count(), 1);
    assert!(replica.writing.is_none() && replica.delivered().is_empty());
    let find = Command::FindEndpoints {
        query: EndpointQuery::default(),
        after: None,
    };
    replica.call(1, &workload("b"), find, at(10_000));
    let Some(Ok(Reply::Endpoints(page))) = replica.reply(1) else {
        panic!("a Find is answered");
    };
    assert!(page.found[0].expires > at(10_000).wall);
}

#[test]
fn a_replica_that_follows_refuses_what_the_active_one_decides() {
    let mut replica = Replica::start(&journal(vec![vec![document()]]), at(0));
    let register = Command::RegisterEndpoint {
        endpoint: plain("a", 1),
        lifetime: None,
    };
    replica.call(1, &workload("a"), register, at(0));
    assert!(matches!(
        replica.reply(1),
        Some(Err(Refusal::Unavailable { .. }))
    ));
    let (stream, peer) = (crate::federation::StreamId::Accepted(1), router());
    replica.handle(Input::SyncOpened { stream, peer }, at(0));
    assert!(matches!(
        replica.effects.pop(),
        Some(Effect::CloseStream { .. })
    ));
}

#[test]
fn after_a_gap_watchers_hear_of_what_came_changed_and_went() {
    let mut store = journal(vec![vec![
        document(),
        endpoint("gone", 1),
        endpoint("same", 1),
        endpoint("other", 1),
    ]]);
    let mut replica = Replica::start(&store, at(0));
    replica.watch(1, at(0));
    replica.delivered();
    store.batches.push(vec![
        removed("gone"),
        endpoint("other", 2),
        endpoint("new", 1),
    ]);
    replica.reload(&store, at(1));
    let told = [("gone", true), ("new", false), ("other", false)];
    assert_eq!(
        replica.delivered(),
        told.map(|(name, gone)| (name.to_owned(), gone))
    );
    assert_eq!(replica.machine.snapshot(), store.replayed(at(1)).snapshot());
}

#[test]
fn a_promoted_replica_gives_everything_one_full_lifetime_and_starts_to_dial() {
    let mut store = journal(vec![vec![document(), endpoint("a", 1)]]);
    let mut replica = Replica::start(&store, at(0));
    replica.promote(&mut store, at(100));
    replica.write(&mut store, at(100));
    assert!(
        replica
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Dial { .. }))
    );
    replica.wake(at(159));
    assert_eq!(replica.machine.endpoints().count(), 1);
    replica.wake(at(160));
    assert_eq!(replica.machine.endpoints().count(), 0);
}

#[test]
fn the_first_active_replica_records_the_configured_documents_and_only_once() {
    let mut store = journal(Vec::new());
    let mut first = Replica::start(&store, at(0));
    let mut second = Replica::start(&store, at(0));
    assert_eq!(first.machine.documents().count(), 1);
    first.promote(&mut store, at(1));
    first.write(&mut store, at(1));
    assert_eq!(store.all(), vec![document()]);
    second.follow(&store, 9, at(1));
    second.promote(&mut store, at(2));
    assert!(second.writing.is_none());
}

#[test]
fn what_the_store_holds_counts_until_promotion_brings_a_newer_document_of_the_configuration() {
    let old = chain(&["east", "west"]);
    let new = next(&old, |document| document.policy.stale_limit_seconds = 5);
    let mut store = journal(vec![vec![document()]]);
    let mut replica = Replica {
        machine: following(vec![new.clone()], at(0)),
        ..Replica::start(&store, at(0))
    };
    replica.reload(&store, at(0));
    assert_eq!(replica.machine.document(old.uid()), Some(&old));
    replica.promote(&mut store, at(1));
    assert_eq!(replica.machine.document(old.uid()), Some(&new));
    replica.write(&mut store, at(1));
    assert_eq!(store.all().last(), Some(&Record::Document { chain: new }));
}

#[test]
fn a_network_that_a_replica_does_not_serve_is_followed_and_kept() {
    let mut store = journal(Vec::new());
    let mut replica = Replica {
        machine: following(Vec::new(), at(0)),
        ..Replica::start(&store, at(0))
    };
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    store.batches.push(bench.disk.clone());
    replica.follow(&store, 9, at(0));
    assert_eq!(replica.machine.documents().count(), 0);
    assert_eq!(replica.machine.snapshot(), bench.machine.snapshot());
}

#[test]
fn a_deposed_replica_refuses_what_waits_and_ends_its_watches() {
    let mut store = journal(vec![vec![document()]]);
    let mut replica = Replica::start(&store, at(0));
    replica.promote(&mut store, at(0));
    replica.write(&mut store, at(0));
    replica.watch(1, at(0));
    let register = Command::RegisterEndpoint {
        endpoint: plain("a", 1),
        lifetime: None,
    };
    replica.call(1, &workload("a"), register, at(0));
    assert!(replica.reply(1).is_none());
    store.term += 1;
    replica.write(&mut store, at(0));
    assert!(matches!(
        replica.reply(1),
        Some(Err(Refusal::Unavailable { .. }))
    ));
    assert!(replica.delivered().is_empty());
    assert!(replica.effects.iter().any(|effect| matches!(
        effect,
        Effect::EndWatch {
            watcher: WatcherId(1),
            refusal: Refusal::Unavailable { .. }
        }
    )));
    assert!(replica.machine.is_following());
    assert_eq!(replica.machine.endpoints().count(), 0);
}

#[test]
fn a_router_that_returns_to_another_replica_keeps_its_lease_and_its_round_grows() {
    let mut store = journal(Vec::new());
    let mut first = Replica::start(&store, at(0));
    first.promote(&mut store, at(0));
    first.write(&mut store, at(0));
    let bench = Bench::new();
    first.call(1, &router(), bench.acquire(1), at(1));
    first.write(&mut store, at(1));
    let Some(Ok(Reply::Lease(before))) = first.reply(1) else {
        panic!("a lease");
    };
    let mut second = Replica::start(&store, at(2));
    second.promote(&mut store, at(2));
    second.call(2, &router(), bench.acquire(2), at(3));
    second.write(&mut store, at(3));
    let Some(Ok(Reply::Lease(after))) = second.reply(2) else {
        panic!("a lease");
    };
    assert_eq!(after.lease.prefix6, before.lease.prefix6);
    assert_eq!(
        after.lease.generation,
        Generation(before.lease.generation.0 + 1)
    );
}

fn remote(of: &Bench, name: &str) -> Record {
    let endpoint = Endpoint {
        name: name.to_owned(),
        ..of.endpoint("west", 1)
    };
    Record::Remote {
        uid: of.chain.uid(),
        domain: domain("west"),
        endpoint: Packed::new(&endpoint),
    }
}

#[test]
fn a_replica_tells_of_other_domains_as_long_as_its_own_is_a_member() {
    let bench = Bench::new();
    let ends = next(&bench.chain, |document| {
        let east = document.members.get_mut(&domain("east")).unwrap();
        east.not_after = Some(at(50).wall);
    });
    let mut store = journal(vec![vec![Record::Document { chain: ends }]]);
    let mut replica = Replica::start(&store, at(0));
    let watch = Input::Watch {
        watcher: WatcherId(1),
        peer: router(),
        query: Query::Endpoints(EndpointQuery::default()),
    };
    replica.handle(watch, at(0));
    for (now, record, told) in [
        (
            40,
            remote(&bench, "red-wes1"),
            Some(("red-wes1@west", false)),
        ),
        (60, remote(&bench, "red-wes2"), None),
        (
            61,
            Record::RemoteRemoved {
                domain: domain("west"),
                name: "red-wes1".to_owned(),
            },
            Some(("red-wes1@west", true)),
        ),
    ] {
        store.batches.push(vec![record]);
        replica.follow(&store, 1, at(now));
        let told: Vec<_> = told
            .map(|(name, gone)| (name.to_owned(), gone))
            .into_iter()
            .collect();
        assert_eq!(replica.delivered(), told, "at {now}");
    }
}

#[test]
fn a_version_that_is_held_is_no_news_to_a_replica() {
    let old = chain(&["east", "west"]);
    let newer = next(&old, |_| {});
    let mut store = journal(vec![vec![document()]]);
    let mut replica = Replica::start(&store, at(0));
    let watch = Input::Watch {
        watcher: WatcherId(1),
        peer: router(),
        query: Query::Document(old.uid()),
    };
    replica.handle(watch, at(0));
    for (chain, news) in [(&old, 0), (&newer, 1), (&newer, 0), (&old, 0)] {
        replica.effects.clear();
        let chain = chain.clone();
        store.batches.push(vec![Record::Document { chain }]);
        replica.follow(&store, 1, at(1));
        let told = |effect: &&Effect| matches!(effect, Effect::Deliver { .. });
        assert_eq!(replica.effects.iter().filter(told).count(), news);
        assert_eq!(replica.effects.is_empty(), news == 0);
    }
}

#[test]
fn the_replica_that_is_promoted_after_a_restore_records_the_mark() {
    let mut store = journal(vec![vec![document()]]);
    let boot = Boot {
        documents: vec![chain(&["east", "west"])],
        following: true,
        restored: true,
        ..Boot::default()
    };
    let mut replica = Replica {
        machine: RegistryMachine::boot(config(), boot, at(0)).unwrap(),
        ..Replica::start(&store, at(0))
    };
    replica.reload(&store, at(0));
    replica.promote(&mut store, at(1));
    replica.write(&mut store, at(1));
    replica.call(1, &router(), Bench::new().acquire(1), at(2));
    assert!(matches!(
        replica.reply(1),
        Some(Err(Refusal::Lease(allocator::Refusal::ReadoptOnly { .. })))
    ));
    assert_eq!(store.replayed(at(3)).snapshot(), replica.machine.snapshot());
    assert_eq!(check(&store.all(), None).readopting, 1);
}

/// It looked at the documents long ago, when nothing was to be dialled.
#[test]
fn a_replica_that_followed_for_long_dials_when_it_is_promoted() {
    let mut store = journal(vec![vec![document()]]);
    let mut replica = Replica::start(&store, at(0));
    replica.wake(at(1));
    replica.effects.clear();
    replica.promote(&mut store, at(100));
    let dials = |effect: &Effect| matches!(effect, Effect::Dial { .. });
    assert!(replica.effects.iter().any(dials));
}

#[test]
fn a_long_journal_is_rewritten_by_the_replica_that_is_promoted() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    let mut store = journal(vec![bench.disk.clone()]);
    let few = Config {
        rewrite_after: 2,
        ..config()
    };
    let boot = Boot {
        documents: vec![chain(&["east", "west"])],
        following: true,
        ..Boot::default()
    };
    let mut replica = Replica {
        machine: RegistryMachine::boot(few, boot, at(0)).unwrap(),
        ..Replica::start(&store, at(0))
    };
    replica.reload(&store, at(0));
    replica.promote(&mut store, at(1));
    replica.call(1, &router(), bench.register(1), at(1));
    let rewrites = |effect: &Effect| matches!(effect, Effect::Rewrite { .. });
    assert!(replica.effects.iter().any(rewrites));
}
