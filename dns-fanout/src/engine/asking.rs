//! One question from its octets to its reply.

use std::time::Duration;

use vl3_core::Ticket;
use vl3_core::names::{
    Admission, Answered, Asking, CacheStamp, Decision, Rcode, Reading, ResolverInput,
};

use super::cookies::Verdict;
use super::packets::{Key, Store};
use super::{Engine, ReplyTo, Waiting};
use crate::metrics::{Drop, Proto};
use crate::query_log::Entry;
use crate::wire::{self, Body, Dropped, Parsed, Terms};

/// Questions that wait when the server counts as loaded: half of what may (R3.10).
const LOADED: usize = vl3_core::names::WAITING_MAX / 2;
/// RFC 7873 8.
const BAD_COOKIE: Rcode = Rcode(23);

impl Engine {
    /// A client's message.
    pub(super) fn message(&mut self, octets: &[u8], reply_to: ReplyTo) {
        match wire::parse(octets) {
            Parsed::Ask(asked) => self.ask(&asked, reply_to),
            Parsed::Reply(octets, rcode) => {
                self.metrics.malformed(rcode);
                self.reply(reply_to, |out| out.extend_from_slice(&octets));
            }
            Parsed::Drop(Dropped::Short) => self.metrics.dropped(Drop::Short),
            Parsed::Drop(Dropped::IsReply) => self.metrics.dropped(Drop::IsReply),
        }
    }

    fn ask(&mut self, asked: &wire::Asked<'_>, reply_to: ReplyTo) {
        let proto = if reply_to.is_udp() {
            Proto::udp
        } else {
            Proto::tcp
        };
        let source = reply_to.source();
        self.metrics
            .request(proto, source.is_ipv6(), asked.rtype, asked.length);
        let log = self.log.draw();
        let own = asked.options.cookie.as_ref();
        let cookie = self.cookies.judge(own, source, self.now.wall);
        let view = self.resolver.view();
        let class = view.and_then(|view| view.client_class(source));
        let key = class.map(|class| Key::of(asked, class));
        if let Some(key) = &key
            && let Some((at, stamp)) = self.packets.find(key)
        {
            match self.resolver.admit(source, self.now) {
                Admission::Admitted(_) => {}
                Admission::Stranger | Admission::Limited | Admission::NotReady => {
                    return self.refuse(asked, reply_to);
                }
            }
            match self.resolver.reuse(stamp, self.now) {
                Some(age) => {
                    if log {
                        self.log_stored(asked, &reply_to, at);
                    }
                    return self.reuse(asked, reply_to, at, age, cookie);
                }
                None => self.packets.remove(at),
            }
        }
        if reply_to.is_udp() && !cookie.proven && self.is_loaded() {
            return self.prove_first(asked, reply_to, cookie);
        }
        self.resolve(asked, reply_to, key, cookie, log);
    }

    fn resolve(
        &mut self,
        asked: &wire::Asked<'_>,
        reply_to: ReplyTo,
        key: Option<Key>,
        cookie: Verdict,
        log: bool,
    ) {
        let Some(request) = asked.to_request() else {
            return;
        };
        let source = reply_to.source();
        let (question, flags) = (request.question.clone(), request.flags);
        if let ReplyTo::Udp { listener, .. } = &reply_to {
            self.listening.hold(*listener);
        }
        // The highest bit of a number tells explanations from questions.
        self.generation = self.generation.wrapping_add(1) & (u32::MAX >> 1);
        let generation = self.generation;
        let at = self.asking.insert(Waiting {
            generation,
            request,
            reply_to,
            since: self.now.mono,
            cookie,
            key,
            log,
        });
        let asker = Ticket(u64::from(generation) << 32 | u64::from(at));
        let mut asking = Asking::new(asker, source, question, flags);
        asking.mark = asked.options.way.mark();
        asking.log = log;
        self.input(ResolverInput::Ask(asking));
    }

    /// Logs a question that a stored packet answers.
    fn log_stored(&self, asked: &wire::Asked<'_>, reply_to: &ReplyTo, at: u32) {
        let (Some(request), Some(packet)) = (asked.to_request(), self.packets.get(at)) else {
            return;
        };
        self.log.put(Entry {
            client: reply_to.source(),
            proto: reply_to.proto(),
            question: request.question,
            rcode: packet.rcode,
            decision: packet.decision,
            waited: Duration::ZERO,
            trace: None,
        });
    }

    /// Answers by a stored packet.
    fn reuse(
        &mut self,
        asked: &wire::Asked<'_>,
        reply_to: ReplyTo,
        at: u32,
        age: u32,
        cookie: Verdict,
    ) {
        let Some((packet, turn)) = self.packets.take_turn(at) else {
            return;
        };
        let mut terms = Terms::of(asked, reply_to.is_udp(), cookie.proven, cookie.answer);
        (terms.age, terms.turn) = (age, turn);
        self.metrics.hit(packet.rcode, packet.decision);
        // Borrows the packet and the sockets, not the engine.
        let write = |out: &mut Vec<u8>| packet.body.write(out, &terms, asked.section);
        send(&mut self.listening, &self.metrics, reply_to, write);
    }

    pub(super) fn answer(&mut self, answered: Answered) {
        if Self::is_explained(answered.asker) {
            return self.explained(answered);
        }
        let Answered {
            asker,
            reading,
            stamp,
            trace,
        } = answered;
        // The low half is the place, the high half the generation.
        let at = u32::try_from(asker.0 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let is_it = |waiting: &Waiting| u64::from(waiting.generation) == asker.0 >> 32;
        if !self.asking.get(at).is_some_and(is_it) {
            return;
        }
        let Some(waiting) = self.asking.remove(at) else {
            return;
        };
        if let ReplyTo::Udp { listener, .. } = &waiting.reply_to {
            self.listening.release(*listener);
        }
        let waited = self.now.mono.saturating_since(waiting.since);
        self.metrics
            .response(reading.rcode, reading.decision, waited);
        if reading.decision == Decision::VotesMissing {
            let name = &waiting.request.question.name;
            tracing::debug!(%name, rcode = reading.rcode.label(), "answered with votes missing");
        }
        if waiting.log {
            self.log.put(Entry {
                client: waiting.reply_to.source(),
                proto: waiting.reply_to.proto(),
                question: waiting.request.question.clone(),
                rcode: reading.rcode,
                decision: reading.decision,
                waited,
                trace,
            });
        }
        let Waiting {
            request,
            reply_to,
            cookie,
            key,
            ..
        } = waiting;
        let asked = request.asked();
        let mut terms = Terms::of(&asked, reply_to.is_udp(), cookie.proven, cookie.answer);
        let body = Body::render(&request.question, &request.section, &reading.answer);
        if !body.turns() && reading.turn > 0 {
            let turned = Body::render(&request.question, &request.section, &reading.to_answer());
            return self.reply(reply_to, |out| turned.write(out, &terms, &request.section));
        }
        terms.age = reading.age;
        terms.turn = reading.turn;
        self.reply(reply_to, |out| body.write(out, &terms, &request.section));
        if let (Some(key), Some(stamp)) = (key, stamp) {
            self.keep(&key, body, &reading, stamp);
        }
    }

    /// Stores an answer that was asked for twice.
    fn keep(&mut self, key: &Key, mut body: Body, reading: &Reading, stamp: CacheStamp) {
        if body.turns() && self.packets.was_asked(key) {
            body.shrink();
            let store = Store {
                body,
                rcode: reading.rcode,
                decision: reading.decision,
                stamp,
                turn: reading.turn,
            };
            self.packets.store(key, store);
        }
    }

    /// Whether whoever may have forged its address shall prove it first (R6.5).
    fn is_loaded(&self) -> bool {
        self.resolver.waiting() >= LOADED
    }

    /// BADCOOKIE with a good one to come back with, or TCP, which proves the same.
    fn prove_first(&mut self, asked: &wire::Asked<'_>, reply_to: ReplyTo, cookie: Verdict) {
        let octets = match cookie.answer {
            Some(_) => wire::bare(asked, BAD_COOKIE, cookie.answer, false),
            None => wire::bare(asked, Rcode::NO_ERROR, None, true),
        };
        self.metrics.dropped(Drop::Unproven);
        self.reply(reply_to, |out| out.extend_from_slice(&octets));
    }

    /// Beyond the limit of one client (R6.6).
    fn refuse(&mut self, asked: &wire::Asked<'_>, reply_to: ReplyTo) {
        self.metrics.hit(Rcode::REFUSED, Decision::ClientLimit);
        let octets = wire::bare(asked, Rcode::REFUSED, None, false);
        self.reply(reply_to, |out| out.extend_from_slice(&octets));
    }

    fn reply(&mut self, to: ReplyTo, write: impl FnOnce(&mut Vec<u8>)) {
        send(&mut self.listening, &self.metrics, to, write);
    }
}

/// UDP leaves with the round, TCP by its connection's task.
fn send(
    listening: &mut super::listening::Listening,
    metrics: &crate::metrics::Metrics,
    to: ReplyTo,
    write: impl FnOnce(&mut Vec<u8>),
) {
    match to {
        ReplyTo::Udp {
            listener,
            client,
            local,
        } => {
            let octets = listening.reply(listener, client, local, write);
            metrics.replied(octets);
        }
        ReplyTo::Tcp { responder, .. } => {
            let mut octets = Vec::with_capacity(512);
            write(&mut octets);
            metrics.replied(octets.len());
            if let Err(why) = responder.send(octets) {
                metrics.dropped(why);
            }
        }
    }
}
