//! The one owner of the resolver: questions, replies and states in; queries and answers out.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use vl3_core::names::{
    Asking, Decision, Network, Reading, Resolver, ResolverCounters, ResolverEffect, ResolverInput,
    UpstreamId, View,
};
use vl3_core::{Machine, Outbox, Ticket, TicketCounter};
use vl3_runtime::{CancellationToken, clock};

use crate::metrics::Metrics;
use crate::serve::Responder;
use crate::upstream::{Completion, Upstreams};
use crate::wire::{self, Request};

/// Questions that wait for the engine; listeners then wait, and the kernel's queues drop.
pub(crate) const QUESTIONS_MAX: usize = 1_024;
/// Replies that wait for the engine; sockets then wait.
pub(crate) const COMPLETIONS_MAX: usize = 1_024;
/// Inputs handled between two looks at the clock.
const BATCH_MAX: usize = 64;
/// What is in flight may end after the stop (R7.2).
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// A question and where its answer goes.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) source: IpAddr,
    pub(crate) request: Request,
    pub(crate) responder: Responder,
}

#[derive(Debug)]
pub(crate) enum Command {
    Ask(Asked),
    Status(oneshot::Sender<Value>),
}

pub(crate) struct Engine {
    resolver: Resolver,
    upstreams: Upstreams,
    metrics: Metrics,
    asking: HashMap<Ticket, Waiting>,
    askers: TicketCounter,
    outbox: Outbox<ResolverEffect>,
    seen: ResolverCounters,
}

/// What the engine listens to.
pub(crate) struct Inputs {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) completions: mpsc::Receiver<Completion>,
    pub(crate) views: watch::Receiver<Option<Arc<View>>>,
    /// Changes when sockets of before may be dead.
    pub(crate) epochs: watch::Receiver<u64>,
}

struct Waiting {
    request: Request,
    responder: Responder,
    since: Instant,
}

impl Engine {
    pub(crate) fn new(upstreams: Upstreams, metrics: Metrics) -> Self {
        Self {
            resolver: Resolver::new(rand::random()),
            upstreams,
            metrics,
            asking: HashMap::new(),
            askers: TicketCounter::default(),
            outbox: Outbox::default(),
            seen: ResolverCounters::default(),
        }
    }

    /// Runs until `shutdown`, then until nothing is in flight, at most two seconds.
    pub(crate) async fn run(
        mut self,
        mut inputs: Inputs,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        self.take_view(&mut inputs.views);
        let mut drained_by = None;
        loop {
            let mut deadline = self.resolver.next_wake().map(|(at, _)| at);
            // Before anything else: busy queues must not delay what is due.
            if deadline.is_some_and(|deadline| deadline <= clock::mono()) {
                self.resolver.wake(clock::now(), &mut self.outbox);
                self.apply();
                deadline = self.resolver.next_wake().map(|(at, _)| at);
            }
            self.metrics.totals(
                &self.seen,
                self.resolver.counters(),
                self.resolver.in_flight(),
            );
            if self.seen != *self.resolver.counters() {
                self.seen.clone_from(self.resolver.counters());
            }
            if drained_by.is_some() && self.asking.is_empty() && inputs.commands.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if drained_by.is_none() => {
                    drained_by = Some(tokio::time::Instant::now() + DRAIN_LIMIT);
                }
                () = until(drained_by) => return Ok(()),
                Ok(()) = inputs.views.changed() => self.take_view(&mut inputs.views),
                Ok(()) = inputs.epochs.changed() => self.upstreams.replace_sockets(),
                Some(completion) = inputs.completions.recv() => {
                    self.complete(completion);
                    for _ in 1..BATCH_MAX {
                        let Ok(completion) = inputs.completions.try_recv() else { break };
                        self.complete(completion);
                    }
                }
                () = clock::sleep_until(deadline) => {}
                command = inputs.commands.recv() => {
                    let Some(command) = command else { return Ok(()) };
                    self.command(command);
                    for _ in 1..BATCH_MAX {
                        let Ok(command) = inputs.commands.try_recv() else { break };
                        self.command(command);
                    }
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Ask(asked) => self.ask(asked),
            // Err: the asker of the status left.
            Command::Status(reply) => drop(reply.send(self.status())),
        }
    }

    fn ask(&mut self, asked: Asked) {
        let Asked {
            source,
            request,
            responder,
        } = asked;
        let asker = self.askers.issue();
        let (question, flags) = (request.question.clone(), request.flags);
        self.asking.insert(
            asker,
            Waiting {
                request,
                responder,
                since: Instant::now(),
            },
        );
        self.input(ResolverInput::Ask(Asking {
            asker,
            source,
            question,
            flags,
        }));
    }

    fn complete(&mut self, completion: Completion) {
        let (ticket, input) = match completion {
            Completion::Reply { ticket, reply } => (ticket, ResolverInput::Reply { ticket, reply }),
            Completion::Failed { ticket, failure } => {
                (ticket, ResolverInput::Failed { ticket, failure })
            }
        };
        // First the machine: its next try looks up which socket this one used.
        self.input(input);
        self.upstreams.completed(ticket);
    }

    fn take_view(&mut self, views: &mut watch::Receiver<Option<Arc<View>>>) {
        let Some(view) = views.borrow_and_update().clone() else {
            return;
        };
        let servers: BTreeSet<SocketAddr> = view
            .upstreams()
            .flat_map(|upstream| upstream.servers.iter().copied())
            .collect();
        self.upstreams.keep_only(&servers);
        let rejected = view
            .network()
            .map_or(&[][..], |network| network.rejected_servers());
        let before = self.resolver.view().and_then(|view| view.network());
        if before.is_none_or(|before| before.rejected_servers() != rejected) {
            for address in rejected {
                tracing::warn!(%address, "a server to ask is our own listener; it is left out");
            }
        }
        self.input(ResolverInput::View(view));
    }

    fn input(&mut self, input: ResolverInput) {
        self.resolver.handle(input, clock::now(), &mut self.outbox);
        self.apply();
    }

    /// Carries out effects. A query that nothing can carry fails at once, which may cause others:
    /// at most three per upstream and question.
    fn apply(&mut self) {
        let mut effects: VecDeque<ResolverEffect> = self.outbox.drain().collect();
        while let Some(effect) = effects.pop_front() {
            match effect {
                ResolverEffect::Query(query) => {
                    if let Err(failure) = self.upstreams.send(&query) {
                        let input = ResolverInput::Failed {
                            ticket: query.ticket,
                            failure,
                        };
                        self.resolver.handle(input, clock::now(), &mut self.outbox);
                        effects.extend(self.outbox.drain());
                    }
                }
                ResolverEffect::Forget(ticket) => self.upstreams.forget(ticket),
                ResolverEffect::Answer(answered) => {
                    self.answer(answered.asker, &answered.reading);
                }
            }
        }
    }

    fn answer(&mut self, asker: Ticket, reading: &Reading) {
        let Some(waiting) = self.asking.remove(&asker) else {
            return;
        };
        self.metrics
            .response(reading, waiting.since.elapsed().as_secs_f64());
        if reading.decision == Decision::VotesMissing {
            let name = &waiting.request.question.name;
            tracing::debug!(%name, rcode = reading.rcode.label(), "answered with votes missing");
        }
        let answer = reading.to_answer();
        let octets = wire::build(&waiting.request, &answer, waiting.responder.is_udp());
        if let Err(why) = waiting.responder.send(octets) {
            self.metrics.dropped(why);
        }
    }

    fn status(&self) -> Value {
        let counters = self.resolver.counters();
        let network = self.resolver.view().and_then(|view| view.network());
        let view = network.map(|view: &Network| {
            let servers: Vec<Value> = view.state().servers.iter().map(|server| json!({
                "domain": server.domain.as_str(),
                "router": server.router.as_str(),
                "addresses": server.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "sibling": server.sibling,
                "rtt_ms": self.resolver.rtt(&UpstreamId::of_router(&server.domain, &server.router)).map(|rtt| rtt.as_secs_f64() * 1e3),
            })).collect();
            let names: serde_json::Map<String, Value> = view.state().names.iter().map(|(name, local)| {
                let addresses: Vec<String> = local.addresses.iter().map(ToString::to_string).collect();
                (name.to_string(), json!(addresses))
            }).collect();
            json!({
                "network": view.document().uid.to_string(),
                "zone": view.zone().to_string(),
                "domain": view.domain().as_str(),
                "document_version": view.document().version,
                "names": names,
                "servers": servers,
            })
        });
        let decisions: serde_json::Map<String, Value> = counters
            .decisions
            .iter()
            .map(|(decision, count)| (decision.label().to_owned(), json!(count)))
            .collect();
        let missing: serde_json::Map<String, Value> = counters
            .failures
            .iter()
            .map(|(failure, count)| (failure.label().to_owned(), json!(count)))
            .collect();
        json!({
            "view": view,
            "in_flight": self.resolver.in_flight(),
            "waiting": self.resolver.waiting(),
            "upstream_sockets": self.upstreams.sockets(),
            "answers": decisions,
            "votes_missing": missing,
            "coalesced": counters.coalesced,
            "shed": counters.shed,
            "strangers": counters.strangers,
        })
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
