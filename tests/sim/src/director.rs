//! The run's course: start, storm, settling, examination, farewell; and the faults.

use core::time::Duration;

use vl3_core::Mono;
use vl3_core::forward::{PortClass, PortId};

use crate::broken::Broken;
use crate::cast::DOMAINS;
use crate::event::{Chore, Data, Direction, Event, Life, Node, Packet, Payload};
use crate::faults::Fault;
use crate::truth::{Asked, Wanted};
use crate::world::World;

const STORM_BEGINS: u64 = 20;
const STORM_ENDS: u64 = 80;
/// Within that the world is whole again after the last fault (invariant 7).
const SETTLED_AFTER: u64 = 100;

impl World {
    /// The whole run. What it breaks, if anything.
    pub fn play(&mut self) -> Result<(), Broken> {
        for domain in 0..self.cast.domains {
            if self.cast.late != Some(domain) {
                let at = 1 + self.rng.below(2);
                self.direct_at(at, Direction::Start(Node::Registry(domain)));
            }
        }
        for index in 0..self.routers.len() {
            if self.cast.late != Some(self.site(Node::Router(index))) {
                let at = 1 + self.rng.below(4);
                self.direct_at(at, Direction::Start(Node::Router(index)));
            }
        }
        for index in 0..self.workloads.len() {
            if self.cast.late != Some(self.cast.workloads[index].domain) {
                let at = 2 + self.rng.below(6);
                self.direct_at(at, Direction::Start(Node::Workload(index)));
            }
        }
        self.direct_at(10, Direction::Traffic);
        self.direct_at(STORM_BEGINS, Direction::StormBegins);
        if self.cast.late.is_some() {
            let at = 25 + self.rng.below(30);
            self.direct_at(at, Direction::LateJoin);
        }
        self.direct_at(STORM_ENDS, Direction::StormEnds);
        let settled = STORM_ENDS + SETTLED_AFTER;
        self.direct_at(settled, Direction::TryAll);
        self.direct_at(settled + 8, Direction::Examine);
        self.direct_at(settled + 9, Direction::CloseAll);
        self.direct_at(settled + 40, Direction::ExamineEmpty);
        self.run(Mono::from_secs(settled + 41))
    }

    pub fn direct(&mut self, direction: Direction) -> Result<(), Broken> {
        self.note(&"director", format_args!("{direction:?}"));
        match direction {
            Direction::Start(Node::Registry(index)) => self.start_registry(index),
            Direction::Start(Node::Router(index)) => self.start_router(index),
            Direction::Start(Node::Workload(index)) => {
                self.start_workload(index);
                Ok(())
            }
            Direction::Start(Node::Operator(_) | Node::Dns(_)) => Ok(()),
            Direction::StormBegins => {
                self.internet.set_storm(true);
                self.strike_again();
                Ok(())
            }
            Direction::Strike => {
                self.strike()?;
                self.strike_again();
                Ok(())
            }
            Direction::Heal { a, b } => {
                self.internet.heal(a, b);
                Ok(())
            }
            Direction::LateJoin => self.late_join(),
            Direction::StormEnds => self.storm_ends(),
            Direction::Traffic => {
                self.traffic();
                if self.now < Mono::from_secs(STORM_ENDS + SETTLED_AFTER) {
                    self.later(
                        Duration::from_millis(600),
                        Event::Direct(Direction::Traffic),
                    );
                }
                Ok(())
            }
            Direction::TryAll => {
                self.try_all();
                Ok(())
            }
            Direction::Examine => self.examine(),
            Direction::CloseAll => {
                for index in 0..self.workloads.len() {
                    if self.workloads[index].alive {
                        self.close_workload(index);
                    }
                }
                Ok(())
            }
            Direction::ExamineEmpty => self.examine_empty(),
        }
    }

    pub fn chore(&mut self, to: Life, chore: Chore) -> Result<(), Broken> {
        match to.node {
            Node::Router(index) => self.router_chore(index, chore),
            Node::Workload(index) => self.workload_chore(index, &chore),
            Node::Registry(_) | Node::Dns(_) | Node::Operator(_) => {}
        }
        Ok(())
    }

    fn late_join(&mut self) -> Result<(), Broken> {
        let Some(late) = self.cast.late else {
            return Ok(());
        };
        // Handed to one registry; the others hear of it from each other.
        let chain = self.cast.networks[0].newest().clone();
        let first = usize::try_from(self.rng.below(late as u64)).unwrap_or(0);
        self.publish(first, chain.clone());
        self.truth.published = Some((first, chain));
        self.later(
            Duration::from_secs(3),
            Event::Direct(Direction::Start(Node::Registry(late))),
        );
        for index in 0..self.routers.len() {
            if self.site(Node::Router(index)) == late {
                self.later(
                    Duration::from_secs(4),
                    Event::Direct(Direction::Start(Node::Router(index))),
                );
            }
        }
        for index in 0..self.workloads.len() {
            if self.cast.workloads[index].domain == late {
                self.later(
                    Duration::from_secs(6),
                    Event::Direct(Direction::Start(Node::Workload(index))),
                );
            }
        }
        Ok(())
    }

    fn strike_again(&mut self) {
        let after = Duration::from_millis(800 + self.rng.below(2_400));
        if self.now + after < Mono::from_secs(STORM_ENDS) {
            self.later(after, Event::Direct(Direction::Strike));
        }
    }

    fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.rng.below(count as u64)).unwrap_or(0)
    }

    fn strike(&mut self) -> Result<(), Broken> {
        const STRIKES: [Fault; 12] = [
            Fault::Partition,
            Fault::RegistryCrash,
            Fault::RouterCrash,
            Fault::WorkloadDies,
            Fault::RegistryLosesDisk,
            Fault::StaleRestore,
            Fault::RouterLosesDisk,
            Fault::TwoInstances,
            Fault::ClockStep,
            Fault::ForeignPrefix,
            Fault::ForeignName,
            Fault::ForgedPacket,
        ];
        let fault = STRIKES[self.pick(STRIKES.len())];
        if !self.profile.injects(fault) {
            return Ok(());
        }
        self.note(&"director", format_args!("{fault:?}"));
        match fault {
            Fault::Partition => self.partition(),
            Fault::RegistryCrash | Fault::RegistryLosesDisk | Fault::StaleRestore => {
                self.strike_registry(fault)
            }
            Fault::RouterCrash | Fault::RouterLosesDisk => self.strike_router(fault),
            Fault::TwoInstances => return self.second_instance(),
            Fault::WorkloadDies => self.strike_workload(),
            Fault::ClockStep => self.step_clock(),
            Fault::ForeignPrefix => {
                let index = self.pick(self.routers.len());
                self.routers[index].lies = true;
                // Its streams start over, so that the lie is told at once.
                let life = self.life(Node::Router(index));
                self.break_pipes_of(life);
            }
            Fault::ForeignName => {
                let index = self.pick(self.registries.len());
                self.registries[index].lies = true;
                let life = self.life(Node::Registry(index));
                self.break_pipes_of(life);
            }
            Fault::ForgedPacket => self.strike_packets(),
            Fault::Drop | Fault::Delay | Fault::Reorder | Fault::Duplicate | Fault::LostReply => {}
        }
        Ok(())
    }

    fn partition(&mut self) {
        let (a, b) = (self.pick(self.cast.domains), self.pick(self.cast.domains));
        if a != b {
            self.tally.count(Fault::Partition);
            self.internet.cut(a, b);
            self.break_pipes_between(a, b);
            let lasts = Duration::from_secs(3 + self.rng.below(25));
            self.later(lasts, Event::Direct(Direction::Heal { a, b }));
        }
    }

    fn strike_registry(&mut self, fault: Fault) {
        let index = self.pick(self.registries.len());
        if self.registries[index].machine.is_none() {
            return;
        }
        let truth_kept = fault == Fault::RegistryCrash;
        self.crash_registry(index);
        let registry = &mut self.registries[index];
        match fault {
            Fault::RegistryLosesDisk => {
                registry.disk.lose();
                registry.restored = true;
            }
            Fault::StaleRestore => {
                if !registry.disk.restore() {
                    // Nothing to restore yet: the operator makes a backup for another day.
                    registry.disk.back_up();
                }
                registry.restored = true;
            }
            _ => {}
        }
        if truth_kept && self.rng.one_in(2) {
            self.registries[index].disk.back_up();
        }
        self.tally.count(fault);
        let down = Duration::from_millis(200 + self.rng.below(12_000));
        self.later(down, Event::Direct(Direction::Start(Node::Registry(index))));
    }

    fn strike_router(&mut self, fault: Fault) {
        let index = self.pick(self.routers.len());
        if self.routers[index].machine.is_none() {
            return;
        }
        self.crash_router(index);
        if fault == Fault::RouterLosesDisk {
            self.lose_router_disk(index);
        }
        self.tally.count(fault);
        let down = Duration::from_millis(100 + self.rng.below(10_000));
        self.later(down, Event::Direct(Direction::Start(Node::Router(index))));
    }

    /// A new state directory: another instance, another key, nothing remembered.
    fn lose_router_disk(&mut self, index: usize) {
        self.routers[index].forget_everything();
        self.truth.granted.remove(&index);
        self.truth
            .consumed
            .retain(|(consumer, _), _| *consumer != index);
        for workload in 0..self.workloads.len() {
            if self.workloads[workload].router == Some(index) {
                self.workloads[workload].answer = None;
            }
        }
    }

    fn second_instance(&mut self) -> Result<(), Broken> {
        if self.routers.len() > self.cast.routers.len() {
            return Ok(());
        }
        let role = self.pick(self.cast.routers.len());
        if self.process_of(role).is_none() {
            return Ok(());
        }
        self.tally.count(Fault::TwoInstances);
        let Node::Router(index) = self.add_router(role, 1) else {
            return Ok(());
        };
        self.start_router(index)
    }

    fn strike_workload(&mut self) {
        let index = self.pick(self.workloads.len());
        if !self.workloads[index].alive {
            return;
        }
        self.tally.count(Fault::WorkloadDies);
        self.kill_workload(index);
        if self.rng.one_in(3) && self.truth.dead.len() < 2 {
            self.truth.dead.insert(index);
        } else {
            let after = Duration::from_secs(1 + self.rng.below(20));
            self.later(
                after,
                Event::Direct(Direction::Start(Node::Workload(index))),
            );
        }
    }

    fn step_clock(&mut self) {
        let hours = i64::try_from(self.rng.below(48)).unwrap_or(0) - 24;
        let offset = hours * 3_600 * 1_000_000_000;
        if self.rng.one_in(2) {
            let index = self.pick(self.registries.len());
            self.registries[index].clock_offset = offset;
        } else {
            let index = self.pick(self.routers.len());
            self.routers[index].clock_offset = offset;
        }
        self.tally.count(Fault::ClockStep);
    }

    /// Somebody else's source from a workload; a router that sends what it must not.
    fn strike_packets(&mut self) {
        let count = self.workloads.len();
        let (from, to, victim) = (self.pick(count), self.pick(count), self.pick(count));
        let network = |world: &Self, index: usize| world.cast.workloads[index].network;
        let same = network(self, from) == network(self, to)
            && network(self, from) == network(self, victim);
        if from != victim && same && self.workloads[from].alive {
            self.forge(from, to, victim);
        }
        for _ in 0..8 {
            self.stray();
        }
    }

    /// A router sends its member's packet by a port where it does not belong.
    fn stray(&mut self) {
        let index = self.pick(self.routers.len());
        let ports = self.routers[index].plane.ports.iter();
        let peers: Vec<PortId> = ports
            .filter(|(_, port)| port.class != PortClass::Member)
            .map(|(port, _)| *port)
            .collect();
        if peers.is_empty() || self.routers[index].machine.is_none() {
            return;
        }
        let port = peers[self.pick(peers.len())];
        let target = self.pick(self.workloads.len());
        let network = self.cast.routers[self.routers[index].role].network;
        let source = self.routers[index]
            .plane
            .own
            .iter()
            .copied()
            .find(std::net::IpAddr::is_ipv6);
        let (Some(source), Some(destination)) = (source, self.workloads[target].address(true))
        else {
            return;
        };
        if self.cast.workloads[target].network != network {
            return;
        }
        let id = self.number();
        let payload = Payload::Echo;
        let data = Data {
            id,
            source,
            destination,
            payload,
            network,
            forged: false,
            crossed: vec![index],
        };
        self.out_by(index, port, Packet::Data(data));
    }

    fn storm_ends(&mut self) -> Result<(), Broken> {
        self.internet.set_storm(false);
        self.internet.heal_all();
        // Of two instances of one name an operator stops the one with the older lease.
        for older in 0..self.cast.routers.len() {
            let role = self.routers[older].role;
            let newer =
                (older + 1..self.routers.len()).find(|other| self.routers[*other].role == role);
            if let Some(newer) = newer {
                // A process that knows that it is fenced loses, else the older lease does.
                let rank = |index: usize| {
                    let router = &self.routers[index];
                    (!router.is_fenced(), router.round())
                };
                let retired = if rank(newer) < rank(older) {
                    newer
                } else {
                    older
                };
                self.crash_router(retired);
                self.routers[retired].retired = true;
            }
        }
        for index in 0..self.registries.len() {
            if core::mem::take(&mut self.registries[index].lies) {
                self.crash_registry(index);
            }
            self.start_registry(index)?;
        }
        for index in 0..self.routers.len() {
            if core::mem::take(&mut self.routers[index].lies) {
                self.crash_router(index);
            }
            if !self.routers[index].retired {
                self.start_router(index)?;
            }
        }
        for index in 0..self.workloads.len() {
            if !self.truth.dead.contains(&index) {
                self.start_workload(index);
            }
        }
        if let Some((domain, chain)) = self.truth.published.clone() {
            self.publish(domain, chain);
        }
        Ok(())
    }

    fn traffic(&mut self) {
        let pairs = self.pairs();
        if pairs.is_empty() {
            return;
        }
        let (from, to) = pairs[self.pick(pairs.len())];
        let v6 = self.rng.one_in(2);
        self.echo(from, to, v6);
        if self.rng.one_in(2) {
            let wanted = if self.rng.one_in(2) {
                Wanted::Canonical(to)
            } else {
                Wanted::Shared(to)
            };
            self.ask(from, wanted);
        }
    }

    fn ask(&mut self, asker: usize, wanted: Wanted) {
        let role = &self.cast.workloads[asker];
        let zone = self.cast.networks[role.network]
            .newest()
            .document()
            .zone
            .clone();
        let (name, live) = match wanted {
            Wanted::Canonical(target) => {
                let other = &self.cast.workloads[target];
                (
                    format!("{}.{}.{zone}", other.name, DOMAINS[other.domain]),
                    self.name_is_live(asker, target),
                )
            }
            Wanted::Shared(target) => (
                format!("{}.{zone}", self.cast.workloads[target].name),
                self.name_is_live(asker, target),
            ),
            Wanted::Nobody => (format!("nobody.{}.{zone}", DOMAINS[role.domain]), None),
            Wanted::OtherNetwork(target) => {
                (format!("{}.{zone}", self.cast.workloads[target].name), None)
            }
        };
        let at = self.now;
        self.ask_name(
            asker,
            &name,
            Asked {
                asker,
                wanted,
                at,
                live,
            },
        );
    }

    fn try_all(&mut self) {
        self.truth.reached.clear();
        self.truth.resolved.clear();
        self.truth.denied.clear();
        for (from, to) in self.pairs() {
            for v6 in [false, true] {
                self.echo(from, to, v6);
            }
            self.ask(from, Wanted::Canonical(to));
        }
        let live: Vec<usize> = (0..self.workloads.len())
            .filter(|index| self.workloads[*index].alive)
            .collect();
        for index in live {
            self.ask(index, Wanted::Nobody);
            let network = self.cast.workloads[index].network;
            for dead in self.truth.dead.clone() {
                if self.cast.workloads[dead].network == network {
                    self.ask(index, Wanted::Canonical(dead));
                }
            }
            let foreign = (0..self.workloads.len())
                .find(|other| self.cast.workloads[*other].network != network);
            if let Some(foreign) = foreign {
                self.ask(index, Wanted::OtherNetwork(foreign));
            }
        }
    }
}
