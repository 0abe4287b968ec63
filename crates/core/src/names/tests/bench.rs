//! A resolver with its effects sorted by kind, driven by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::world::*;
use crate::machine::{Machine, Outbox, Ticket};
use crate::names::{
    Answer, Answered, Asking, ClientLimits, Failure, Flags, Query, Question, RecordType, Reply,
    Resolver, ResolverEffect, ResolverInput, ResolverSettings, Transport, Upstream, View,
    ViewParts,
};
use crate::time::Now;

/// Neither stores answers of the network nor limits clients.
pub(super) const PLAIN: ResolverSettings = ResolverSettings {
    cache_octets: 1 << 20,
    stale_max: Duration::from_secs(3_600),
    clients: ClientLimits {
        per_second: 0,
        in_flight: 0,
    },
    network_life_max: Duration::ZERO,
    network_denial_max: Duration::ZERO,
};

pub(super) struct Bench {
    pub(super) resolver: Resolver,
    pub(super) now: Now,
    /// Of fan-outs.
    pub(super) queries: Vec<Query>,
    /// Of health and loops.
    pub(super) probes: Vec<Query>,
    pub(super) forgotten: Vec<Ticket>,
    pub(super) answers: BTreeMap<u64, Arc<Answer>>,
    /// With stamps and traces, as they came.
    pub(super) told: BTreeMap<u64, Answered>,
    pub(super) asked: u64,
}

impl Bench {
    pub(super) fn new(view: Arc<View>) -> Self {
        Self::with(view, PLAIN)
    }

    pub(super) fn with(view: Arc<View>, settings: ResolverSettings) -> Self {
        let mut bench = Self {
            resolver: Resolver::with_settings(1, settings),
            now: at(0),
            queries: Vec::new(),
            probes: Vec::new(),
            forgotten: Vec::new(),
            answers: BTreeMap::new(),
            told: BTreeMap::new(),
            asked: 0,
        };
        bench.input(ResolverInput::View(view));
        bench
    }

    /// Resolvers that were configured, without any router.
    pub(super) fn configured(upstreams: Vec<Upstream>) -> Self {
        Self::new(configured(upstreams))
    }

    pub(super) fn input(&mut self, input: ResolverInput) {
        let mut out = Outbox::default();
        self.resolver.handle(input, self.now, &mut out);
        self.sort(out);
    }

    fn sort(&mut self, mut out: Outbox<ResolverEffect>) {
        for effect in out.drain() {
            match effect {
                ResolverEffect::Query(query) if query.probe => self.probes.push(query),
                ResolverEffect::Query(query) => self.queries.push(query),
                ResolverEffect::Forget(ticket) => self.forgotten.push(ticket),
                ResolverEffect::Answer(answered) => {
                    let answer = Arc::new(answered.reading.to_answer());
                    let asker = answered.asker.0;
                    self.told.insert(asker, answered);
                    assert!(
                        self.answers.insert(asker, answer).is_none(),
                        "answered twice"
                    );
                }
            }
        }
    }

    pub(super) fn ask_from(&mut self, source: &str, text: &str, rtype: RecordType) -> u64 {
        let asking = self.asking(source, text, rtype);
        self.ask_this(asking)
    }

    pub(super) fn asking(&mut self, source: &str, text: &str, rtype: RecordType) -> Asking {
        self.asked += 1;
        let question: Question = question(text, rtype);
        Asking::new(Ticket(self.asked), ip(source), question, Flags::default())
    }

    pub(super) fn ask_this(&mut self, asking: Asking) -> u64 {
        let asker = asking.asker.0;
        self.input(ResolverInput::Ask(asking));
        asker
    }

    pub(super) fn ask(&mut self, text: &str) -> u64 {
        self.ask_from(MEMBER, text, RecordType::A)
    }

    /// Asks, and has the answer already.
    pub(super) fn told(&mut self, text: &str) -> Arc<Answer> {
        let asked = self.ask(text);
        self.answers.get(&asked).expect("an answer at once").clone()
    }

    pub(super) fn reply(&mut self, at: usize, reply: Reply) {
        let ticket = self.queries[at].ticket;
        self.input(ResolverInput::Reply { ticket, reply });
    }

    /// To the last query to that upstream.
    pub(super) fn reply_from(&mut self, upstream: &str, reply: Reply) {
        let at = self
            .queries
            .iter()
            .rposition(|query| query.upstream.label() == upstream)
            .expect("a query to it");
        self.reply(at, reply);
    }

    pub(super) fn fail(&mut self, query: &Query, failure: Failure) {
        let ticket = query.ticket;
        self.input(ResolverInput::Failed { ticket, failure });
    }

    /// Jumps to the next deadline.
    pub(super) fn wake(&mut self) {
        let (due, _) = self.resolver.next_wake().expect("a deadline");
        self.now = Now {
            mono: due.max(self.now.mono),
            ..self.now
        };
        let mut out = Outbox::default();
        self.resolver.wake(self.now, &mut out);
        self.sort(out);
    }

    /// Lets time pass, with every deadline in it.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while self.resolver.next_wake().is_some_and(|(due, _)| due <= end) {
            self.wake();
        }
        self.now.mono = end;
    }

    /// Lets time pass until everybody has an answer.
    pub(super) fn settle(&mut self) {
        while self.resolver.waiting() > 0 {
            self.wake();
        }
    }

    pub(super) fn to(&self, at: usize) -> (&str, Transport) {
        (
            self.queries[at].upstream.label(),
            self.queries[at].transport,
        )
    }
}

/// A view without a network, for clients of 172.16.0.0/16.
pub(super) fn configured(upstreams: Vec<Upstream>) -> Arc<View> {
    let parts = ViewParts {
        upstreams,
        ..client_parts()
    };
    Arc::new(View::assemble(parts).unwrap())
}

pub(super) fn client_parts() -> ViewParts {
    ViewParts {
        clients: vec![(
            "172.16.0.0/16".parse().unwrap(),
            crate::names::ClientClass::Member,
        )],
        ..ViewParts::default()
    }
}

pub(super) fn resolver(id: &str, last: u8) -> Upstream {
    Upstream::outside(id, vec![socket(&format!("192.0.2.{last}"))])
}

pub(super) fn three() -> Vec<Upstream> {
    vec![resolver("one", 1), resolver("two", 2), resolver("three", 3)]
}

pub(super) fn found(text: &str) -> Reply {
    positive(vec![address(text, "172.16.4.9")])
}

/// With a public address, TTL 30.
pub(super) fn public(text: &str) -> Reply {
    positive(vec![address(text, "198.51.100.9")])
}
