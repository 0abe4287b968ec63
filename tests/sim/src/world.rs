//! The world of one run: processes, the network between them, virtual time.

use core::fmt;
use core::time::Duration;
use std::collections::BTreeMap;
use std::net::IpAddr;

use vl3_core::ids::SpiffeId;
use vl3_core::{Machine as _, Mono, Now, Rng, Wall};

use crate::broken::Broken;
use crate::cast::{self, Cast};
use crate::event::{Awaits, CallBody, Direction, Event, Life, Node, Pipe, ReplyBody};
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
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(3);
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
    pub(crate) queue: Queue<Event>,
    pub(crate) pipes: BTreeMap<u64, Pipe>,
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
            Event::WatchRest { to, watcher } => match to.node {
                Node::Registry(index) if self.is_alive(to) => self.watch_rest(index, watcher),
                _ => Ok(()),
            },
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
