//! The loop: waits, takes what arrived, wakes what is due, sends what came of it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use vl3_core::Machine;
use vl3_core::names::{Condition, ResolverEffect, ResolverInput, View};
use vl3_runtime::clock;

use super::{Asked, Command, Engine, Forwarded, ReplyTo, Token};
use crate::metrics::Drop;
use crate::switch::Handed;
use crate::upstream::Completion;

/// Commands handled between two looks at the sockets.
const COMMANDS_MAX: usize = 64;
/// What is in flight may end after the stop (R7.2).
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Totals are shown so long after a round that may have changed them.
const TOTALS_PAUSE: Duration = Duration::from_millis(50);
/// Receive calls per listener that is read empty before it closes.
const LAST_READS_MAX: usize = 256;

impl Engine {
    /// Runs until [`Command::Stop`], then until nothing is in flight, at most two seconds.
    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        loop {
            let limit = self.patience();
            self.poll.wait(limit).context("wait for sockets")?;
            self.now = clock::now();
            self.take_ready();
            if self
                .resolver
                .next_wake()
                .is_some_and(|(at, _)| at <= self.now.mono)
            {
                self.resolver.wake(self.now, &mut self.outbox);
                self.apply();
            }
            self.end_round();
            if let Some(by) = self.stopping
                && (by <= self.now.mono || (self.asking.is_empty() && self.inbox.is_empty()))
            {
                return Ok(());
            }
        }
    }

    /// How long nothing is due.
    fn patience(&self) -> Option<Duration> {
        if !self.inbox.is_empty() {
            return Some(Duration::ZERO);
        }
        let wake = self.resolver.next_wake().map(|(at, _)| at);
        [
            wake,
            self.upstreams.next_close(),
            self.stopping,
            self.totals_due,
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|at| at.saturating_since(clock::mono()))
    }

    fn take_ready(&mut self) {
        // First: what was ordered before a question came counts for it.
        for _ in 0..COMMANDS_MAX {
            let Some(command) = self.inbox.next() else {
                break;
            };
            self.command(command);
        }
        let mut at = 0;
        while let Some(token) = self.poll.ready(at) {
            match token {
                // What rings from here on is heard by the next wait.
                Token::Inbox => self.inbox.hear(),
                Token::Listener(listener) => drop(self.questions(listener)),
                Token::Upstream(socket) => {
                    let (now, batch) = (self.now.mono, &mut self.batch);
                    self.upstreams.receive(socket, now, batch, &mut self.done);
                    self.complete();
                }
            }
            at += 1;
        }
    }

    /// One call's worth of questions; how many there were.
    fn questions(&mut self, at: u32) -> usize {
        let Some(listener) = self.listening.get(at) else {
            return 0;
        };
        let count = match self.batch.receive(&listener.socket) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
            Err(error) => {
                // An ICMP error of an earlier reply.
                tracing::debug!(%error, "receiving questions failed");
                return 0;
            }
        };
        let others = listener.others.clone();
        // The batch is read while the engine changes; it comes back.
        let batch = std::mem::replace(&mut self.batch, vl3_net::datagrams::ReceiveBatch::new(0, 0));
        for datagram in batch.iter() {
            if let Some(client) = datagram.remote {
                let handed = others.as_ref().map_or(Handed::Own, |others| {
                    others.hand_over(client, datagram.local, datagram.bytes)
                });
                match handed {
                    Handed::Own => {}
                    Handed::Over => continue,
                    Handed::Behind => {
                        self.metrics.dropped(Drop::ViewBehind);
                        continue;
                    }
                }
                let reply_to = ReplyTo::Udp {
                    listener: at,
                    client,
                    local: datagram.local,
                };
                self.message(datagram.bytes, reply_to);
            }
        }
        self.batch = batch;
        count
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Ask(Asked {
                source,
                message,
                responder,
            }) => {
                let reply_to = ReplyTo::Tcp {
                    responder,
                    client: source,
                };
                self.message(&message, reply_to);
            }
            Command::Completed(completion) => {
                self.done.push(completion);
                self.complete();
            }
            Command::Dialled(dialled) => {
                self.upstreams.dialled(dialled, &self.poll, &mut self.done);
                self.complete();
            }
            Command::View(view) => self.take_view(view),
            Command::ReplaceSockets => self.upstreams.replace_sockets(self.now.mono),
            Command::Listen(sockets) => drop(self.listening.add(sockets, &self.poll)),
            Command::Share(socket, others) => self.listening.share(socket, others, &self.poll),
            Command::Lend(number, socket) => self.listening.lend(number, socket),
            Command::Forwarded(Forwarded {
                socket,
                client,
                local,
                message,
            }) => {
                if let Some(listener) = self.listening.lent(socket) {
                    let reply_to = ReplyTo::Udp {
                        listener,
                        client,
                        local,
                    };
                    self.message(&message, reply_to);
                }
            }
            Command::Replace(sockets) => {
                let new = self.listening.add(sockets, &self.poll);
                let before = std::mem::replace(&mut self.passed, new);
                self.stop_listening(&before);
            }
            Command::Settings(settings) => self.input(ResolverInput::Settings(settings)),
            Command::Explain(explain) => self.explain(explain),
            Command::Cookies(keys) => self.cookies = keys,
            Command::LogRate(rate) => self.log.set_rate(rate),
            // Err: the asker of the status left.
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Stop => {
                let all = self.listening.numbers();
                self.stop_listening(&all);
                self.stopping = Some(self.now.mono + DRAIN_LIMIT);
            }
        }
    }

    /// What waits in a listener that goes is answered: a replaced one loses no question.
    fn stop_listening(&mut self, listeners: &[u32]) {
        for listener in listeners {
            let is_lent = |listener: &super::listening::Listener| listener.lent.is_some();
            let reads = if self.listening.get(*listener).is_some_and(is_lent) {
                // Another view's to read.
                0
            } else {
                LAST_READS_MAX
            };
            for _ in 0..reads {
                if self.questions(*listener) == 0 {
                    break;
                }
            }
            self.listening.retire(*listener, &self.poll);
        }
    }

    /// Tells the resolver what came of queries.
    fn complete(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        for completion in done.drain(..) {
            let (ticket, input) = match completion {
                Completion::Reply { ticket, reply } => {
                    (ticket, ResolverInput::Reply { ticket, reply })
                }
                Completion::Failed { ticket, failure } => {
                    (ticket, ResolverInput::Failed { ticket, failure })
                }
            };
            // First the machine: its next try looks up which socket this one used.
            self.input(input);
            self.upstreams.completed(ticket);
        }
        // What failed meanwhile comes with the next round at the latest.
        done.append(&mut self.done);
        self.done = done;
    }

    fn take_view(&mut self, view: Arc<View>) {
        let servers: BTreeSet<SocketAddr> = view
            .upstreams()
            .flat_map(|upstream| upstream.servers.iter().copied())
            .collect();
        self.upstreams.keep_only(&servers, self.now.mono);
        self.warn_of_own_listeners(&view);
        self.input(ResolverInput::View(view));
        self.tell_able();
    }

    fn warn_of_own_listeners(&self, view: &View) {
        let rejected = |view: &View| {
            view.network()
                .map_or_else(Vec::new, |network| network.rejected_servers().to_vec())
        };
        let now = rejected(view);
        let before = self.resolver.view().map(|view| rejected(view));
        if before.as_ref() != Some(&now) {
            for address in now {
                tracing::warn!(%address, "a server to ask is our own listener; it is left out");
            }
        }
    }

    pub(super) fn input(&mut self, input: ResolverInput) {
        self.resolver.handle(input, self.now, &mut self.outbox);
        self.apply();
    }

    /// Carries out effects. A query that nothing can carry fails at once, which may cause others:
    /// at most three per upstream and question.
    pub(super) fn apply(&mut self) {
        while !self.outbox.is_empty() {
            for effect in self.outbox.take() {
                match effect {
                    ResolverEffect::Query(query) => {
                        let sent = self.upstreams.send(&query, self.now.mono, &self.poll);
                        if let Err(failure) = sent {
                            let ticket = query.ticket;
                            let input = ResolverInput::Failed { ticket, failure };
                            self.resolver.handle(input, self.now, &mut self.outbox);
                        }
                    }
                    ResolverEffect::Forget(ticket) => self.upstreams.forget(ticket),
                    ResolverEffect::Answer(answered) => self.answer(answered),
                }
            }
        }
    }

    /// Sends what the round made, and closes what ended.
    fn end_round(&mut self) {
        self.upstreams.flush(&mut self.call, &mut self.done);
        self.upstreams
            .close_retired(self.now.mono, &self.poll, &mut self.done);
        // Failures may start other tries, whose failures come one round later.
        if !self.done.is_empty() {
            self.complete();
            self.upstreams.flush(&mut self.call, &mut self.done);
        }
        self.listening.flush(&mut self.call, &self.metrics);
        self.listening.close_retired();
        match self.totals_due {
            None => self.totals_due = Some(self.now.mono + TOTALS_PAUSE),
            Some(due) if due <= self.now.mono => {
                self.totals_due = None;
                self.show_totals();
            }
            Some(_) => {}
        }
    }

    /// What the resolver counts, as metrics: soon after it changed, not with every round.
    fn show_totals(&mut self) {
        let counters = self.resolver.counters();
        self.metrics
            .totals(&self.seen, counters, self.resolver.in_flight());
        self.seen.clone_from(counters);
        self.metrics.cache(
            self.resolver.cache_counters(),
            self.resolver.cache_size(),
            self.packets.evicted,
        );
        for status in self.resolver.upstreams() {
            self.metrics.to(status.upstream.label()).health(&status);
        }
        self.tell_able();
    }

    /// Whether there is somebody to answer from (R7.2).
    fn tell_able(&self) {
        let view = self.resolver.view();
        let able = view.is_some_and(|view| view.network().is_some())
            || self
                .resolver
                .upstreams()
                .any(|status| status.condition == Condition::Up);
        self.able
            .send_if_modified(|known| std::mem::replace(known, able) != able);
    }
}
