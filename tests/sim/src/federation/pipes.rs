//! Sync streams between registries: in order within one stream, late or never across a cut.

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use vl3_core::federation::{StreamId, SyncMessage};
use vl3_core::ids::{DomainName, Generation, NetworkUid};
use vl3_core::registry::{Endpoint, Input, LABEL_DOMAIN, LABEL_UID, Marks};
use vl3_core::{Mono, Wall};

use super::cast::{domain_name, registry_id};
use super::faults::Fault;
use super::world::{Event, Step, World};
use crate::broken::Broken;

#[derive(Clone, Debug)]
pub(super) enum Parcel {
    Messages(Vec<SyncMessage>),
    End,
}

#[derive(Debug)]
pub(super) struct Pipe {
    /// Node, its life, its name for the stream; the dialler first.
    pub(super) ends: [(usize, u64, StreamId); 2],
    /// When the last parcel to each end arrives.
    last: [Mono; 2],
    /// What a cut keeps from each end.
    held: [VecDeque<Parcel>; 2],
    /// How many messages each end's sender invented.
    invented: [u64; 2],
    /// What each end was told of since the last `Open`.
    named: [BTreeSet<Arc<str>>; 2],
}

impl World {
    pub(super) fn dial(&mut self, node: usize, stream: StreamId, domain: &DomainName) {
        let to = (0..self.nodes.len()).find(|to| domain_name(*to) == *domain);
        let life = self.nodes[node].life;
        let after = self.millis(5, 60);
        match to {
            Some(to) if !self.is_cut_between(node, to) => {
                self.later(
                    after,
                    Event::Dialled {
                        node,
                        life,
                        stream,
                        to,
                    },
                );
            }
            _ => self.later(
                Duration::from_secs(2),
                Event::DialFailed { node, life, stream },
            ),
        }
    }

    fn is_cut_between(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a, b)) || self.cut.contains(&(b, a))
    }

    /// Both ends stand at once; what is said travels.
    pub(super) fn dialled(&mut self, node: usize, stream: StreamId, to: usize) -> Step {
        let vouched = !self.common(node, to).is_empty() && !self.common(to, node).is_empty();
        if self.is_cut_between(node, to) || self.nodes[to].machine.is_none() || !vouched {
            let reason = "refused".to_owned();
            return self.input(node, Input::SyncClosed { stream, reason });
        }
        let pipe = self.number();
        let accepted = StreamId::Accepted(pipe);
        let ends = [
            (node, self.nodes[node].life, stream),
            (to, self.nodes[to].life, accepted),
        ];
        self.pipes.insert(
            pipe,
            Pipe {
                ends,
                last: [self.now; 2],
                held: [VecDeque::new(), VecDeque::new()],
                invented: [0; 2],
                named: [BTreeSet::new(), BTreeSet::new()],
            },
        );
        self.nodes[node].streams.insert(stream, (pipe, 0));
        self.nodes[to].streams.insert(accepted, (pipe, 1));
        let peer = self.peer(to, node, registry_id(node));
        self.input(
            to,
            Input::SyncOpened {
                stream: accepted,
                peer,
            },
        )?;
        let peer = self.peer(node, to, registry_id(to));
        self.input(node, Input::SyncOpened { stream, peer })
    }

    pub(super) fn send(
        &mut self,
        node: usize,
        stream: StreamId,
        messages: Vec<SyncMessage>,
    ) -> Step {
        let Some((pipe, side)) = self.nodes[node].streams.get(&stream).copied() else {
            return Ok(());
        };
        let to = self.pipes.get(&pipe).map(|pipe| pipe.ends[1 - side].0);
        if let Some(to) = to {
            self.check_sent(node, to, &messages)?;
        }
        let messages = match self.nodes[node].lie {
            Some(lie) => self.lie(node, lie, pipe, side, messages),
            None => self.renumber(pipe, side, messages),
        };
        self.put(pipe, 1 - side, Parcel::Messages(messages));
        Ok(())
    }

    fn put(&mut self, pipe: u64, to: usize, parcel: Parcel) {
        let mut after = self.millis(2, 40);
        let Some(ends) = self.pipes.get(&pipe).map(|pipe| pipe.ends) else {
            return;
        };
        if ends.iter().any(|(node, ..)| self.nodes[*node].slow) {
            after += self.millis(500, 4000);
        }
        let arrives = self.now + after;
        let Some(of) = self.pipes.get_mut(&pipe) else {
            return;
        };
        of.last[to] = of.last[to].max(arrives);
        let at = of.last[to];
        self.queue.push(at, Event::Parcel { pipe, to, parcel });
    }

    pub(super) fn parcel_arrives(&mut self, pipe: u64, to: usize, parcel: Parcel) -> Step {
        let Some(of) = self.pipes.get_mut(&pipe) else {
            return Ok(());
        };
        let (from, at) = (of.ends[1 - to].0, of.ends[to].0);
        if self.cut.contains(&(from, at)) {
            of.held[to].push_back(parcel);
            return Ok(());
        }
        self.deliver(pipe, to, parcel)
    }

    fn deliver(&mut self, pipe: u64, to: usize, parcel: Parcel) -> Step {
        let Some((node, life, stream)) = self.pipes.get(&pipe).map(|pipe| pipe.ends[to]) else {
            return Ok(());
        };
        match parcel {
            Parcel::Messages(messages) => {
                for message in messages {
                    let stands =
                        self.lives(node, life) && self.nodes[node].streams.contains_key(&stream);
                    if !stands {
                        return Ok(());
                    }
                    let ends = matches!(message, SyncMessage::EndOfSnapshot { .. });
                    self.hear(pipe, to, &message);
                    self.input(node, Input::SyncReceived { stream, message })?;
                    if ends {
                        self.check_snapshot(pipe, to)?;
                    }
                }
                Ok(())
            }
            Parcel::End => {
                self.pipes.remove(&pipe);
                let stood =
                    self.lives(node, life) && self.nodes[node].streams.remove(&stream).is_some();
                if !stood {
                    return Ok(());
                }
                let reason = "ended by the other side".to_owned();
                self.input(node, Input::SyncClosed { stream, reason })
            }
        }
    }

    fn hear(&mut self, pipe: u64, to: usize, message: &SyncMessage) {
        let Some(of) = self.pipes.get_mut(&pipe) else {
            return;
        };
        match message {
            SyncMessage::Open { .. } => of.named[to].clear(),
            SyncMessage::Upsert { endpoint, .. } => {
                of.named[to].insert(endpoint.name.as_str().into());
            }
            SyncMessage::Remove { name, .. } => {
                of.named[to].remove(name);
            }
            _ => {}
        }
    }

    /// Invariant 7 at the end of a snapshot: what it does not name is gone at once, however
    /// long entries would stay without a stream.
    fn check_snapshot(&self, pipe: u64, to: usize) -> Step {
        let Some(of) = self.pipes.get(&pipe) else {
            return Ok(());
        };
        let ((node, _, stream), (speaker, ..)) = (of.ends[to], of.ends[1 - to]);
        let name = domain_name(speaker);
        let stands = self.nodes[node].streams.contains_key(&stream);
        let Some(machine) = self.machine(node).filter(|_| stands) else {
            return Ok(());
        };
        let mut held = machine.endpoints().filter(|(of, _)| *of == Some(&name));
        let unnamed = held.find(|(_, endpoint)| !of.named[to].contains(endpoint.name.as_str()));
        if let Some((_, endpoint)) = unnamed {
            let what = format!(
                "d{node} holds {} of {name}, whose whole snapshot does not name it",
                endpoint.name
            );
            return Err(Broken::new(7, what));
        }
        Ok(())
    }

    /// The machine closes its end; the other one hears of it, unless it is cut off.
    pub(super) fn close(&mut self, node: usize, stream: StreamId) {
        if let Some((pipe, side)) = self.nodes[node].streams.remove(&stream) {
            self.end_pipe(pipe, side);
        }
        let life = self.nodes[node].life;
        let after = self.millis(0, 5);
        self.later(after, Event::Closed { node, life, stream });
    }

    pub(super) fn end_pipe(&mut self, pipe: u64, side: usize) {
        self.put(pipe, 1 - side, Parcel::End);
    }

    /// Both ends notice that the stream is gone.
    pub(super) fn break_pipe(&mut self, pipe: u64) {
        for to in [0, 1] {
            self.put(pipe, to, Parcel::End);
        }
        // The first end that hears takes the pipe away; the other one is told beside it.
        let Some(ends) = self.pipes.get(&pipe).map(|pipe| pipe.ends) else {
            return;
        };
        for (node, life, stream) in ends {
            if self.lives(node, life) && self.nodes[node].streams.remove(&stream).is_some() {
                let after = self.millis(1, 50);
                self.later(after, Event::Closed { node, life, stream });
            }
        }
        self.pipes.remove(&pipe);
    }

    pub(super) fn break_pipes_of(&mut self, node: usize) {
        let of = self.pipes.iter();
        let of = of.filter(|(_, pipe)| pipe.ends.iter().any(|end| end.0 == node));
        let of: Vec<_> = of.map(|(pipe, _)| *pipe).collect();
        of.into_iter().for_each(|pipe| self.break_pipe(pipe));
    }

    /// A cut ends: what was said meanwhile arrives late, or the stream did not survive.
    pub(super) fn heal(&mut self, from: usize, at: usize) -> Step {
        if !self.cut.remove(&(from, at)) {
            return Ok(());
        }
        let across = |pipe: &Pipe, to: usize| (pipe.ends[1 - to].0, pipe.ends[to].0) == (from, at);
        let pipes: Vec<_> = self
            .pipes
            .iter()
            .flat_map(|(id, pipe)| {
                [0, 1]
                    .into_iter()
                    .filter(move |to| across(pipe, *to))
                    .map(|to| (*id, to))
            })
            .collect();
        for (pipe, to) in pipes {
            if self.rng.one_in(2) {
                self.break_pipe(pipe);
                continue;
            }
            while let Some(parcel) = self
                .pipes
                .get_mut(&pipe)
                .and_then(|of| of.held[to].pop_front())
            {
                self.deliver(pipe, to, parcel)?;
            }
        }
        Ok(())
    }

    /// Messages of an honest sender; where it lied before on this stream, its count went on.
    fn renumber(&self, pipe: u64, side: usize, mut messages: Vec<SyncMessage>) -> Vec<SyncMessage> {
        let more = self.pipes.get(&pipe).map_or(0, |pipe| pipe.invented[side]);
        if more > 0 {
            messages.iter_mut().for_each(|message| shift(message, more));
        }
        messages
    }

    fn lie(
        &mut self,
        node: usize,
        lie: Fault,
        pipe: u64,
        side: usize,
        messages: Vec<SyncMessage>,
    ) -> Vec<SyncMessage> {
        let victim = (node + 1) % self.nodes.len();
        let foreign = self.networks.iter().find(|network| !network.has(node));
        let foreign = foreign.map_or(NetworkUid([7; 16]), |network| network.uid);
        let red = (self.networks[0].uid, self.networks[0].name.to_string());
        let mut said = Vec::new();
        for mut message in self.renumber(pipe, side, messages) {
            let more = self
                .pipes
                .get_mut(&pipe)
                .map(|pipe| &mut pipe.invented[side]);
            let is_last = matches!(
                message,
                SyncMessage::EndOfSnapshot { .. } | SyncMessage::KeepAlive { .. }
            );
            if lie == Fault::LieTooMany
                && is_last
                && let Some(more) = more
            {
                let at = sequence(&message).saturating_sub(u64::from(matches!(
                    message,
                    SyncMessage::EndOfSnapshot { .. }
                )));
                for number in 1..=20 {
                    said.push(SyncMessage::Upsert {
                        sequence: at + number,
                        uid: red.0,
                        endpoint: Arc::new(invented(node, red.0, &red.1, number)),
                        lifetime: Duration::from_secs(30),
                    });
                }
                *more += 20;
                shift(&mut message, 20);
                self.count(lie);
            } else if lie == Fault::LieSequence && sequence(&message) > 0 {
                shift(&mut message, 7);
                self.count(lie);
            } else if let SyncMessage::Upsert { uid, endpoint, .. } = &mut message {
                let mut other = Endpoint::clone(endpoint);
                match lie {
                    Fault::LieDomain => {
                        label(&mut other, LABEL_DOMAIN, domain_name(victim).as_str())
                    }
                    Fault::LieAddress => "tcp://10.0.3.7:5010".clone_into(&mut other.url),
                    Fault::LieNetwork => {
                        label(&mut other, LABEL_UID, &foreign.to_string());
                        *uid = foreign;
                    }
                    Fault::LieHuge => label(&mut other, "note", &"x".repeat(9000)),
                    _ => {}
                }
                if **endpoint != other {
                    self.count(lie);
                }
                *endpoint = Arc::new(other);
            }
            said.push(message);
        }
        said
    }
}

fn label(endpoint: &mut Endpoint, key: &str, value: &str) {
    for labels in endpoint.labels.values_mut() {
        labels.insert(key.to_owned(), value.to_owned());
    }
}

fn sequence(message: &SyncMessage) -> u64 {
    match message {
        SyncMessage::Upsert { sequence, .. }
        | SyncMessage::Remove { sequence, .. }
        | SyncMessage::EndOfSnapshot { sequence }
        | SyncMessage::KeepAlive { sequence } => *sequence,
        SyncMessage::Open { .. } | SyncMessage::Document(_) => 0,
    }
}

fn shift(message: &mut SyncMessage, by: u64) {
    match message {
        SyncMessage::Upsert { sequence, .. }
        | SyncMessage::Remove { sequence, .. }
        | SyncMessage::EndOfSnapshot { sequence }
        | SyncMessage::KeepAlive { sequence } => *sequence += by,
        SyncMessage::Open { .. } | SyncMessage::Document(_) => {}
    }
}

/// A router that is not there, in a form that is believed.
fn invented(node: usize, uid: NetworkUid, network: &str, number: u64) -> Endpoint {
    router_endpoint(
        node,
        uid,
        network,
        &format!("lie-{number}"),
        Generation(1),
        1,
    )
}

/// An endpoint as our routers register it; `version` makes it differ.
pub(super) fn router_endpoint(
    domain: usize,
    uid: NetworkUid,
    network: &str,
    name: &str,
    generation: Generation,
    version: u64,
) -> Endpoint {
    let marks = Marks {
        service: network.to_owned(),
        proto: "1-1".to_owned(),
        role: "router".to_owned(),
        uid,
        domain: domain_name(domain),
        name: name.to_owned(),
        generation,
        dials_only: false,
        udp: None,
    };
    Endpoint {
        name: name.to_owned(),
        services: vec![network.to_owned()],
        labels: [(network.to_owned(), marks.labels())].into(),
        url: format!("tcp://192.0.{}.7:{}", domain % 250, 5000 + version % 1000),
        registered: Some(Wall::from_unix_secs(1_700_000_000)),
        ..Endpoint::default()
    }
}
