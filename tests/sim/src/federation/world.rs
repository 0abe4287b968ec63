//! Registries, their clients and the network between domains, in virtual time.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use vl3_core::federation::{StreamId, SyncMessage};
use vl3_core::ids::NetworkUid;
use vl3_core::machine::Ticket;
use vl3_core::registry::{
    Command, FoundEndpoint, Input, Peer, Refusal, RegistryMachine, Reply, WatcherId,
};
use vl3_core::{Machine as _, Mono, Now, Outbox, Rng, Wall};

use super::cast::{Network, domain_name, has};
use super::clients::{Client, Op, Watch};
use super::faults::{Fault, Tally};
use super::node::Node;
use super::pipes::{Parcel, Pipe};
use super::truth::Truth;
use crate::broken::Broken;
use crate::queue::Queue;
use crate::trace::Trace;

/// After the last fault everything is as it should be within this.
pub const SETTLED_WITHIN: Duration = Duration::from_secs(60);

const EPOCH_SECS: u64 = 1_800_000_000;

pub(super) type Step = Result<(), Broken>;

#[derive(Debug)]
pub struct World {
    pub(super) now: Mono,
    pub(super) queue: Queue<Event>,
    pub(super) rng: Rng,
    pub trace: Trace,
    pub tally: Tally,
    pub(super) networks: Vec<Network>,
    pub(super) nodes: Vec<Node>,
    pub(super) clients: Vec<Client>,
    pub(super) watches: BTreeMap<WatcherId, Watch>,
    pub(super) pipes: BTreeMap<u64, Pipe>,
    /// Who is not heard by whom.
    pub(super) cut: BTreeSet<(usize, usize)>,
    pub(super) calls: BTreeMap<u64, Asked>,
    pub(super) truth: Truth,
    /// Some version of a document was signed with two contents.
    pub(super) two_contents: bool,
    /// Domains that ever lied.
    pub(super) liars: BTreeSet<usize>,
    pub(super) calm_at: Mono,
    pub(super) is_calm: bool,
    next: u64,
}

/// Who waits for the answer to a call.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Client {
        client: usize,
        number: u64,
        op: Op,
        arrived: Mono,
    },
    /// Somebody of this network that is no client, under this name.
    Probe {
        network: usize,
        name: String,
        op: Op,
        arrived: Mono,
    },
    /// The operator of a range in a network.
    Excluded(usize, IpNet),
    /// Of this domain.
    Stranger(usize),
    /// What a watch should have been told, and the pages of that so far.
    Watched(WatcherId, Vec<FoundEndpoint>),
    Operator,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    Wake {
        node: usize,
        life: u64,
    },
    Synced {
        node: usize,
        life: u64,
        ticket: Ticket,
    },
    DiskFails {
        node: usize,
        life: u64,
        ticket: Ticket,
    },
    Call {
        client: usize,
        number: u64,
        op: Op,
    },
    Answer {
        client: usize,
        number: u64,
        result: Box<Result<Reply, Refusal>>,
    },
    Tick(usize),
    Rewatch(usize),
    /// A watcher took a page of its snapshot.
    WatchRest {
        node: usize,
        life: u64,
        watcher: WatcherId,
    },
    Dialled {
        node: usize,
        life: u64,
        stream: StreamId,
        to: usize,
    },
    DialFailed {
        node: usize,
        life: u64,
        stream: StreamId,
    },
    Parcel {
        pipe: u64,
        to: usize,
        parcel: Parcel,
    },
    Closed {
        node: usize,
        life: u64,
        stream: StreamId,
    },
    Start(usize),
    Crash {
        node: usize,
        life: u64,
    },
    Director,
    Undo(Undo),
    Publish(usize),
    Examine,
}

/// The end of a fault that lasts.
#[derive(Clone, Debug)]
pub(super) enum Undo {
    Cut(usize, usize),
    Slow(usize),
    Flap(usize, u32),
    Lie(usize),
    Exclude(usize),
}

impl World {
    pub fn new(seed: u64, keep_trace: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x5eed_fede_5a7e_0001);
        let many = rng.one_in(6);
        let domains = 3 + below(&mut rng, if many { 10 } else { 4 });
        // Not all are members from the start, and the second network has few.
        let late = rng.one_in(3);
        let present = domains - usize::from(late);
        let mut networks = vec![Network::new("red", 0, 0..present)];
        if rng.one_in(2) {
            networks.push(Network::new("blue", 1, 0..2));
        }
        let nodes = (0..domains)
            .map(|domain| Node::new(domain, &networks))
            .collect();
        let calm_at = Mono::from_secs(60 + rng.below(100));
        let mut world = Self {
            now: Mono::default(),
            queue: Queue::default(),
            rng,
            trace: Trace::new(keep_trace),
            tally: Tally::default(),
            networks,
            nodes,
            clients: Vec::new(),
            watches: BTreeMap::new(),
            pipes: BTreeMap::new(),
            cut: BTreeSet::new(),
            calls: BTreeMap::new(),
            truth: Truth::default(),
            two_contents: false,
            liars: BTreeSet::new(),
            calm_at,
            is_calm: false,
            next: 0,
        };
        world.draw_clients();
        for node in 0..world.nodes.len() {
            world.later(Duration::from_millis(10), Event::Start(node));
        }
        world.later(Duration::from_secs(3), Event::Director);
        world
    }

    /// Until some time after the last fault, when everything is looked at.
    pub fn play(&mut self) -> Step {
        let end = self.calm_at + SETTLED_WITHIN;
        self.queue.push(end, Event::Examine);
        while let Some((at, event)) = self.queue.pop() {
            self.now = at;
            if matches!(event, Event::Examine) {
                return self.examine();
            }
            self.step(event)?;
        }
        Ok(())
    }

    fn step(&mut self, event: Event) -> Step {
        match event {
            Event::Wake { node, life } if self.lives(node, life) => self.wake(node),
            Event::Synced { node, life, ticket } if self.lives(node, life) => {
                self.nodes[node].disk.sync_first();
                self.nodes[node].idle = true;
                self.input(node, Input::Appended { ticket })?;
                self.check_replay_sometimes(node)
            }
            Event::DiskFails { node, life, ticket } if self.lives(node, life) => {
                self.disk_fails(node, ticket)
            }
            Event::Call { client, number, op } => self.call_arrives(client, number, op),
            Event::Answer {
                client,
                number,
                result,
            } => {
                self.answer_arrives(client, number, *result);
                Ok(())
            }
            Event::Tick(client) => {
                self.tick(client);
                Ok(())
            }
            Event::Rewatch(watch) => self.open_watch(watch),
            Event::WatchRest {
                node,
                life,
                watcher,
            } if self.lives(node, life) => self.watch_rest(node, watcher),
            Event::Dialled {
                node,
                life,
                stream,
                to,
            } if self.lives(node, life) => self.dialled(node, stream, to),
            Event::DialFailed { node, life, stream } if self.lives(node, life) => {
                let reason = "unreachable".to_owned();
                self.input(node, Input::SyncClosed { stream, reason })
            }
            Event::Closed { node, life, stream } if self.lives(node, life) => {
                let reason = "closed".to_owned();
                self.input(node, Input::SyncClosed { stream, reason })
            }
            Event::Parcel { pipe, to, parcel } => self.parcel_arrives(pipe, to, parcel),
            Event::Start(node) => self.start(node),
            Event::Crash { node, life } if self.lives(node, life) => {
                self.crash(node, Fault::Crash)?;
                let after = self.millis(200, 12_000);
                self.later(after, Event::Start(node));
                Ok(())
            }
            Event::Director => self.direct(),
            Event::Undo(undo) => self.undo(&undo),
            Event::Publish(network) => self.publish_everywhere(network),
            _ => Ok(()),
        }
    }

    pub(super) fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].machine.is_some()
    }

    pub(super) fn later(&mut self, after: Duration, event: Event) {
        self.queue.push(self.now + after, event);
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.rng.below(to - from + 1))
    }

    pub(super) fn pick(&mut self, count: usize) -> usize {
        below(&mut self.rng, count)
    }

    pub(super) fn count(&mut self, fault: Fault) {
        self.tally.count(fault);
    }

    pub(super) fn note(&mut self, node: usize, what: core::fmt::Arguments<'_>) {
        self.trace.note(self.now, &domain_name(node), what);
    }

    /// Both clocks as a node reads them.
    pub(super) fn now_at(&self, node: usize) -> Now {
        let secs = EPOCH_SECS.saturating_add_signed(self.nodes[node].clock_offset);
        Now {
            mono: self.now,
            wall: Wall(Wall::from_unix_secs(secs).0 + self.now.0),
        }
    }

    pub(super) fn machine(&self, node: usize) -> Option<&RegistryMachine> {
        self.nodes[node].machine.as_ref()
    }

    /// An identity of `domain` as its certificate counts at `node`.
    pub(super) fn peer(&self, node: usize, domain: usize, id: vl3_core::ids::SpiffeId) -> Peer {
        if node == domain {
            return Peer::own(id);
        }
        Peer::vouched(id, self.common(node, domain))
    }

    /// The networks in which both are members by the versions that `node` holds: of the
    /// machine counts only which versions these are, what they say was kept when an admin
    /// signed them.
    pub(super) fn common(&self, node: usize, domain: usize) -> BTreeSet<NetworkUid> {
        let networks = self.networks.iter();
        let both = |network: &&Network| {
            let held = self
                .machine(node)
                .and_then(|machine| machine.document(network.uid));
            let written = held.and_then(|held| network.written(held));
            written.is_some_and(|written| has(written, node) && has(written, domain))
        };
        networks.filter(both).map(|network| network.uid).collect()
    }

    pub(super) fn input(&mut self, node: usize, input: Input) -> Step {
        self.note_input(node, &input);
        let now = self.now_at(node);
        let Some(machine) = self.nodes[node].machine.as_mut() else {
            return Ok(());
        };
        let mut out = Outbox::default();
        machine.handle(input, now, &mut out);
        self.effects(node, out)
    }

    fn wake(&mut self, node: usize) -> Step {
        let now = self.now_at(node);
        let asleep = self.nodes[node].wakes_at.take();
        let Some(machine) = self.nodes[node].machine.as_mut() else {
            return Ok(());
        };
        let mut out = Outbox::default();
        if machine.next_wake().is_some_and(|(at, _)| at <= now.mono) {
            machine.wake(now, &mut out);
            if let Some((at, reason)) = machine.next_wake().filter(|(at, _)| *at <= now.mono) {
                let what =
                    format!("d{node} wakes for ever: {reason} is due at {at} since {asleep:?}");
                return Err(Broken::new(9, what));
            }
        }
        self.effects(node, out)
    }

    pub(super) fn arm(&mut self, node: usize) {
        let Some((at, _)) = self.machine(node).and_then(vl3_core::Machine::next_wake) else {
            return;
        };
        let of = &mut self.nodes[node];
        if of.wakes_at.is_none_or(|armed| at < armed) {
            of.wakes_at = Some(at);
            let life = of.life;
            self.queue
                .push(at.max(self.now), Event::Wake { node, life });
        }
    }

    pub(super) fn ask(&mut self, node: usize, peer: Peer, command: Command, asked: Asked) -> Step {
        let call = self.number();
        self.calls.insert(call, asked);
        let call = vl3_core::registry::CallId(call);
        self.input(
            node,
            Input::Call {
                call,
                peer,
                command,
            },
        )
    }

    fn note_input(&mut self, node: usize, input: &Input) {
        if self.trace.is_kept() {
            return self.note(node, format_args!("<- {input:?}"));
        }
        match input {
            Input::Call { call, command, .. } => {
                let kind = core::mem::discriminant(command);
                self.note(node, format_args!("call {} {kind:?}", call.0));
            }
            Input::SyncReceived { stream, message } => {
                let sequence = match message {
                    SyncMessage::Upsert { sequence, .. }
                    | SyncMessage::Remove { sequence, .. }
                    | SyncMessage::EndOfSnapshot { sequence }
                    | SyncMessage::KeepAlive { sequence } => *sequence,
                    SyncMessage::Open { .. } | SyncMessage::Document(_) => 0,
                };
                self.note(node, format_args!("heard {stream:?} {sequence}"));
            }
            other => {
                let kind = core::mem::discriminant(other);
                self.note(node, format_args!("{kind:?}"));
            }
        }
    }
}

pub(super) fn below(rng: &mut Rng, count: usize) -> usize {
    usize::try_from(rng.below(count as u64)).unwrap_or(0)
}
