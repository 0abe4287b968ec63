//! Streams between processes: ordered in each direction, until they break.

use core::time::Duration;

use vl3_core::router::RoutesOpen;

use crate::broken::Broken;
use crate::event::{Event, Life, Node, Pipe, PipeBody, PipeKind};
use crate::internet::Travel;
use crate::world::{CALL_TIMEOUT, World};

impl World {
    pub fn open_pipe(&mut self, from: Node, to: Node, kind: PipeKind) -> u64 {
        let pipe = self.number();
        let ends = [self.life(from), self.life(to)];
        self.pipes.insert(
            pipe,
            Pipe {
                kind,
                ends,
                last: [self.now; 2],
            },
        );
        let (a, b) = (self.site(from), self.site(to));
        let arrivals = self.internet.fate(a, b, Travel::Stream, &mut self.tally);
        match arrivals.first() {
            Some(delay) if self.is_up(to) => self.later(*delay, Event::PipeOpens { pipe }),
            Some(delay) => self.later(*delay * 2, Event::PipeFails { pipe }),
            None => self.later(CALL_TIMEOUT, Event::PipeFails { pipe }),
        }
        pipe
    }

    /// Open streams that end at a process.
    pub fn pipes_to(&self, life: Life, kind: impl Fn(&PipeKind) -> bool) -> Vec<u64> {
        let its = self
            .pipes
            .iter()
            .filter(|(_, pipe)| pipe.ends[1] == life && kind(&pipe.kind));
        its.map(|(number, _)| *number).collect()
    }

    /// The acceptor's first word; whatever it says later arrives after it.
    pub fn accept_pipe(&mut self, number: u64, answer: Option<RoutesOpen>) {
        let at = self.now + Duration::from_millis(5);
        if let Some(pipe) = self.pipes.get_mut(&number) {
            pipe.last[0] = at;
        }
        self.queue.push(
            at,
            Event::PipeReady {
                pipe: number,
                answer,
            },
        );
    }

    /// From the end at `side` to the other one. A message that is lost breaks the stream.
    pub fn send(&mut self, pipe: u64, side: usize, body: PipeBody) {
        let Some(found) = self.pipes.get(&pipe) else {
            return;
        };
        let other = 1 - side;
        let (a, b) = (
            self.site(found.ends[side].node),
            self.site(found.ends[other].node),
        );
        let arrivals = self.internet.fate(a, b, Travel::Stream, &mut self.tally);
        let Some(delay) = arrivals.first() else {
            self.break_pipe(pipe);
            return;
        };
        let at = self.now + *delay;
        if let Some(found) = self.pipes.get_mut(&pipe) {
            let at = at.max(found.last[other]);
            found.last[other] = at;
            self.queue.push(
                at,
                Event::PipeData {
                    pipe,
                    side: other,
                    body,
                },
            );
        }
    }

    /// Both ends notice, each at its time; nothing more arrives.
    pub fn break_pipe(&mut self, pipe: u64) {
        let Some(found) = self.pipes.get(&pipe) else {
            return;
        };
        let far = self.site(found.ends[0].node) != self.site(found.ends[1].node);
        for side in 0..2 {
            let after = if far { 500 + self.rng.below(4_500) } else { 5 };
            self.later(
                Duration::from_millis(after),
                Event::PipeCloses { pipe, side },
            );
        }
    }

    /// One end closes; the other one hears of it after what is under way.
    pub fn close_pipe(&mut self, pipe: u64, side: usize) {
        let Some(found) = self.pipes.get(&pipe) else {
            return;
        };
        let at = found.last[1 - side].max(self.now) + Duration::from_millis(10);
        self.queue.push(
            at,
            Event::PipeCloses {
                pipe,
                side: 1 - side,
            },
        );
    }

    pub fn break_pipes_between(&mut self, a: usize, b: usize) {
        let crossing: Vec<u64> = self
            .pipes
            .iter()
            .filter(|(_, pipe)| {
                let sites = [self.site(pipe.ends[0].node), self.site(pipe.ends[1].node)];
                sites == [a, b] || sites == [b, a]
            })
            .map(|(number, _)| *number)
            .collect();
        for pipe in crossing {
            self.break_pipe(pipe);
        }
    }

    /// A process is gone: the other ends of its streams see them reset.
    pub fn break_pipes_of(&mut self, life: Life) {
        let its: Vec<u64> = self
            .pipes
            .iter()
            .filter(|(_, pipe)| pipe.ends.contains(&life))
            .map(|(number, _)| *number)
            .collect();
        for pipe in its {
            for side in 0..2 {
                self.later(Duration::from_millis(20), Event::PipeCloses { pipe, side });
            }
        }
    }

    pub fn pipe_opens(&mut self, pipe: u64) -> Result<(), Broken> {
        let Some(found) = self.pipes.get(&pipe) else {
            return Ok(());
        };
        let (from, to) = (found.ends[0], found.ends[1]);
        if !self.is_alive(to) {
            self.later(Duration::from_millis(20), Event::PipeFails { pipe });
            return Ok(());
        }
        let peer = self.id(from.node);
        let kind = found.kind.clone();
        match to.node {
            Node::Registry(index) => self.registry_accepts(index, pipe, peer, kind),
            Node::Router(index) => self.router_accepts(index, pipe, peer, kind),
            Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => Ok(()),
        }
    }

    pub fn pipe_ready(&mut self, pipe: u64, answer: Option<RoutesOpen>) -> Result<(), Broken> {
        let Some(found) = self.pipes.get(&pipe) else {
            return Ok(());
        };
        let (from, to) = (found.ends[0], found.ends[1]);
        if !self.is_alive(from) {
            return Ok(());
        }
        let (peer, kind) = (self.id(to.node), found.kind.clone());
        match from.node {
            Node::Registry(index) => self.registry_pipe_ready(index, pipe, peer, &kind),
            Node::Router(index) => self.router_pipe_ready(index, pipe, peer, kind, answer),
            Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => Ok(()),
        }
    }

    pub fn pipe_fails(&mut self, pipe: u64) -> Result<(), Broken> {
        let Some(found) = self.pipes.remove(&pipe) else {
            return Ok(());
        };
        if !self.is_alive(found.ends[0]) {
            return Ok(());
        }
        match found.ends[0].node {
            Node::Registry(index) => self.registry_pipe_ended(index, pipe, 0, &found.kind),
            Node::Router(index) => self.router_pipe_failed(index, &found.kind),
            Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => Ok(()),
        }
    }

    pub fn pipe_data(&mut self, pipe: u64, side: usize, body: PipeBody) -> Result<(), Broken> {
        let Some(found) = self.pipes.get(&pipe) else {
            return Ok(());
        };
        let life = found.ends[side];
        if !self.is_alive(life) {
            return Ok(());
        }
        let kind = found.kind.clone();
        match life.node {
            Node::Registry(index) => self.registry_pipe_data(index, pipe, side, &kind, body),
            Node::Router(index) => self.router_pipe_data(index, pipe, side, &kind, body),
            Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => Ok(()),
        }
    }

    pub fn pipe_closes(&mut self, pipe: u64, side: usize) -> Result<(), Broken> {
        let Some(found) = self.pipes.get_mut(&pipe) else {
            return Ok(());
        };
        let life = found.ends[side];
        let kind = found.kind.clone();
        // Seen once per end.
        found.ends[side].count = u32::MAX;
        if found.ends[1 - side].count == u32::MAX {
            self.pipes.remove(&pipe);
        }
        if !self.is_alive(life) {
            return Ok(());
        }
        match life.node {
            Node::Registry(index) => self.registry_pipe_ended(index, pipe, side, &kind),
            Node::Router(index) => self.router_pipe_ended(index, pipe, side, &kind),
            Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => Ok(()),
        }
    }

    // --- disks
}
