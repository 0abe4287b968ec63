//! The world of one run: processes, the network between them, virtual time.

use core::fmt;
use core::time::Duration;
use std::collections::BTreeMap;
use std::net::IpAddr;

use vl3_core::ids::SpiffeId;
use vl3_core::{Machine as _, Mono, Now, Rng, Wall};

use crate::broken::Broken;
use crate::cast::{self, Cast};
use crate::event::{
    Awaits, CallBody, Direction, Event, Life, Node, Pipe, PipeBody, PipeKind, ReplyBody,
};
use crate::faults::{Fault, Profile, Tally};
use crate::internet::{Internet, Travel};
use crate::queue::Queue;
use crate::registry::Registry;
use crate::router::Router;
use crate::trace::Trace;
use crate::truth::Truth;
use crate::workload::Workload;

/// Wall time at the start of every run.
const EPOCH_SECONDS: u64 = 1_800_000_000;
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// A machine that wakes that often without time passing wakes for ever.
const WAKES_AT_ONCE_MAX: u32 = 200;

#[derive(Debug)]
pub struct World {
    pub now: Mono,
    pub rng: Rng,
    pub profile: Profile,
    pub internet: Internet,
    pub tally: Tally,
    pub trace: Trace,
    pub cast: Cast,
    pub registries: Vec<Registry>,
    pub routers: Vec<Router>,
    pub workloads: Vec<Workload>,
    pub truth: Truth,
    queue: Queue<Event>,
    pipes: BTreeMap<u64, Pipe>,
    waiting: BTreeMap<u64, (Life, Awaits)>,
    callers: BTreeMap<u64, Life>,
    places: BTreeMap<IpAddr, Node>,
    number: u64,
}

impl World {
    pub fn new(seed: u64, profile: Profile, keep_trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let profile = profile.settle(&mut rng);
        let cast = Cast::draw(&mut rng);
        let internet = Internet::new(profile, rng.fork());
        let mut world = Self {
            now: Mono::from_secs(1),
            profile,
            internet,
            tally: Tally::default(),
            trace: Trace::new(keep_trace),
            registries: Vec::new(),
            routers: Vec::new(),
            workloads: Vec::new(),
            truth: Truth::default(),
            queue: Queue::default(),
            pipes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            callers: BTreeMap::new(),
            places: BTreeMap::new(),
            number: 0,
            rng,
            cast,
        };
        for domain in 0..world.cast.domains {
            world.registries.push(Registry::new(domain, &world.cast));
            world
                .places
                .insert(cast::registry_address(domain).ip(), Node::Registry(domain));
        }
        for role in 0..world.cast.routers.len() {
            world.add_router(role, 0);
        }
        for role in 0..world.cast.workloads.len() {
            world.places.insert(
                world.cast.workloads[role].address.ip(),
                Node::Workload(role),
            );
            world.workloads.push(Workload::new(role, &world.cast));
        }
        world
    }

    /// A process for a role; more than one makes two instances of one name.
    pub fn add_router(&mut self, role: usize, instance: u8) -> Node {
        let index = self.routers.len();
        let seed = self.rng.next_u64();
        let router = Router::new(role, instance, seed, &self.cast);
        self.places.insert(router.address.ip(), Node::Router(index));
        self.routers.push(router);
        Node::Router(index)
    }

    /// Runs until the queue is empty or `until`; what breaks ends the run.
    pub fn run(&mut self, until: Mono) -> Result<(), Broken> {
        let mut wakes = 0;
        loop {
            let queued = self.queue.next_at();
            let waking = self.next_wake();
            let queue_first = match (queued, waking) {
                (None, None) => return Ok(()),
                (Some(at), Some((wake, _, _))) => at <= wake,
                (queued, _) => queued.is_some(),
            };
            let at = if queue_first {
                queued.unwrap_or(self.now)
            } else {
                waking.map_or(self.now, |(at, ..)| at)
            };
            if at > until {
                self.now = until;
                return Ok(());
            }
            if at > self.now {
                self.now = at;
                wakes = 0;
            }
            if queue_first {
                if let Some((_, event)) = self.queue.pop() {
                    self.dispatch(event)?;
                }
            } else if let Some((_, node, reason)) = waking {
                wakes += 1;
                if wakes > WAKES_AT_ONCE_MAX {
                    return Err(Broken::new(9, format!("{node} wakes for ever: {reason}")));
                }
                self.note(&node, format_args!("wakes: {reason}"));
                match node {
                    Node::Registry(index) => self.wake_registry(index)?,
                    Node::Router(index) => self.wake_router(index)?,
                    Node::Dns(index) => self.wake_dns(index)?,
                    Node::Workload(_) | Node::Operator(_) => {}
                }
            }
        }
    }

    fn next_wake(&self) -> Option<(Mono, Node, &'static str)> {
        let registries = self
            .registries
            .iter()
            .enumerate()
            .filter_map(|(index, registry)| {
                let (at, reason) = registry.machine.as_ref()?.next_wake()?;
                Some((at, Node::Registry(index), reason))
            });
        let routers = self
            .routers
            .iter()
            .enumerate()
            .filter_map(|(index, router)| {
                let (at, reason) = router.machine.as_ref()?.next_wake()?;
                Some((at, Node::Router(index), reason))
            });
        let servers = self
            .routers
            .iter()
            .enumerate()
            .filter_map(|(index, router)| {
                router.machine.as_ref()?;
                let (at, reason) = router.dns.resolver.next_wake()?;
                Some((at, Node::Dns(index), reason))
            });
        registries
            .chain(routers)
            .chain(servers)
            .min_by_key(|(at, node, _)| (*at, *node))
    }

    fn dispatch(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Packet { to, wire, packet } => self.packet_arrives(to, wire, packet),
            Event::CallArrives {
                call,
                from,
                to,
                body,
            } => self.call_arrives(call, from, to, body),
            Event::Replied { call, body } => self.replied(call, body),
            Event::PipeOpens { pipe } => self.pipe_opens(pipe),
            Event::PipeReady { pipe, answer } => self.pipe_ready(pipe, answer),
            Event::PipeFails { pipe } => self.pipe_fails(pipe),
            Event::PipeData { pipe, side, body } => self.pipe_data(pipe, side, body),
            Event::PipeCloses { pipe, side } => self.pipe_closes(pipe, side),
            Event::Synced { to, ticket } => self.synced(to, ticket),
            Event::Local { to, input } => match to.node {
                Node::Router(index) if self.is_alive(to) => self.router_input(index, *input),
                _ => Ok(()),
            },
            Event::Chore { to, chore } if self.is_alive(to) => self.chore(to, chore),
            Event::Chore { .. } => Ok(()),
            Event::QueryEnds { to, id } => match to.node {
                Node::Router(index) if self.is_alive(to) => self.query_ends(index, id),
                _ => Ok(()),
            },
            Event::Direct(direction) => self.direct(direction),
        }
    }

    // --- time and order

    pub fn now_at(&self, node: Node) -> Now {
        let offset = match node {
            Node::Registry(index) => self.registries[index].clock_offset,
            Node::Router(index) => self.routers[index].clock_offset,
            Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => 0,
        };
        let wall = EPOCH_SECONDS * 1_000_000_000 + self.now.0;
        Now {
            mono: self.now,
            wall: Wall(wall.saturating_add_signed(offset)),
        }
    }

    pub fn later(&mut self, delay: Duration, event: Event) {
        self.queue.push(self.now + delay, event);
    }

    pub fn direct_at(&mut self, seconds: u64, direction: Direction) {
        self.queue
            .push(Mono::from_secs(seconds), Event::Direct(direction));
    }

    pub fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub fn note(&mut self, who: &dyn fmt::Display, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, who, what);
    }

    // --- who is who

    pub fn site(&self, node: Node) -> usize {
        match node {
            Node::Registry(index) | Node::Operator(index) => index,
            Node::Router(index) | Node::Dns(index) => {
                self.cast.routers[self.routers[index].role].domain
            }
            Node::Workload(index) => self.cast.workloads[index].domain,
        }
    }

    pub fn id(&self, node: Node) -> SpiffeId {
        match node {
            Node::Registry(index) | Node::Operator(index) => cast::registry_id(index),
            Node::Router(index) | Node::Dns(index) => {
                self.cast.routers[self.routers[index].role].id.clone()
            }
            Node::Workload(index) => self.cast.workloads[index].id.clone(),
        }
    }

    pub fn at_address(&self, address: IpAddr) -> Option<Node> {
        self.places.get(&address).copied()
    }

    pub fn life(&self, node: Node) -> Life {
        let count = match node {
            Node::Registry(index) => self.registries[index].lives,
            Node::Router(index) | Node::Dns(index) => self.routers[index].lives,
            Node::Workload(index) => self.workloads[index].lives,
            Node::Operator(_) => 0,
        };
        Life { node, count }
    }

    pub fn is_up(&self, node: Node) -> bool {
        match node {
            Node::Registry(index) => self.registries[index].machine.is_some(),
            Node::Router(index) | Node::Dns(index) => self.routers[index].machine.is_some(),
            Node::Workload(index) => self.workloads[index].alive,
            Node::Operator(_) => true,
        }
    }

    pub fn is_alive(&self, life: Life) -> bool {
        self.is_up(life.node) && self.life(life.node) == life
    }

    // --- calls

    pub fn call(&mut self, from: Node, to: Node, body: CallBody, awaits: Awaits) {
        let call = self.number();
        let life = self.life(from);
        self.waiting.insert(call, (life, awaits));
        self.later(
            CALL_TIMEOUT,
            Event::Replied {
                call,
                body: ReplyBody::Nothing,
            },
        );
        let (a, b) = (self.site(from), self.site(to));
        let arrivals = self.internet.fate(a, b, Travel::Stream, &mut self.tally);
        for delay in arrivals {
            // A caller whose first try seemed lost asks twice.
            if matches!(body, CallBody::Request(_))
                && self.internet.hit(Fault::Duplicate, 10, &mut self.tally)
            {
                let again = self.number();
                let event = Event::CallArrives {
                    call: again,
                    from: life,
                    to,
                    body: body.clone(),
                };
                self.later(delay + Duration::from_millis(2), event);
            }
            self.later(
                delay,
                Event::CallArrives {
                    call,
                    from: life,
                    to,
                    body: body.clone(),
                },
            );
        }
    }

    fn call_arrives(
        &mut self,
        call: u64,
        from: Life,
        to: Node,
        body: CallBody,
    ) -> Result<(), Broken> {
        self.callers.insert(call, from);
        if !self.is_up(to) {
            self.answer(to, call, ReplyBody::Nothing);
            return Ok(());
        }
        let peer = self.id(from.node);
        match to {
            Node::Registry(index) => self.serve_registry(index, call, peer, body),
            Node::Router(index) => self.serve_router(index, call, peer, body),
            Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => Ok(()),
        }
    }

    /// The server's answer starts on its way back.
    pub fn answer(&mut self, from: Node, call: u64, body: ReplyBody) {
        let Some(to) = self.callers.remove(&call) else {
            return;
        };
        let (a, b) = (self.site(from), self.site(to.node));
        if a != b && self.internet.hit(Fault::LostReply, 40, &mut self.tally) {
            return;
        }
        let arrivals = self.internet.fate(a, b, Travel::Stream, &mut self.tally);
        for delay in arrivals {
            self.later(
                delay,
                Event::Replied {
                    call,
                    body: body.clone(),
                },
            );
        }
    }

    fn replied(&mut self, call: u64, body: ReplyBody) -> Result<(), Broken> {
        let Some((life, awaits)) = self.waiting.remove(&call) else {
            return Ok(());
        };
        if !self.is_alive(life) {
            return Ok(());
        }
        match life.node {
            Node::Router(index) => self.router_answered(index, awaits, body),
            Node::Workload(index) => self.workload_answered(index, body),
            Node::Dns(_) | Node::Registry(_) | Node::Operator(_) => Ok(()),
        }
    }

    // --- streams

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
    pub fn accept_pipe(&mut self, number: u64, answer: Option<vl3_core::router::RoutesOpen>) {
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

    fn pipe_opens(&mut self, pipe: u64) -> Result<(), Broken> {
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

    fn pipe_ready(
        &mut self,
        pipe: u64,
        answer: Option<vl3_core::router::RoutesOpen>,
    ) -> Result<(), Broken> {
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

    fn pipe_fails(&mut self, pipe: u64) -> Result<(), Broken> {
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

    fn pipe_data(&mut self, pipe: u64, side: usize, body: PipeBody) -> Result<(), Broken> {
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

    fn pipe_closes(&mut self, pipe: u64, side: usize) -> Result<(), Broken> {
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

    fn synced(&mut self, to: Life, ticket: vl3_core::Ticket) -> Result<(), Broken> {
        if !self.is_alive(to) {
            return Ok(());
        }
        match to.node {
            Node::Registry(index) => self.registry_synced(index, ticket),
            Node::Router(index) => self.router_synced(index, ticket),
            Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => Ok(()),
        }
    }
}
