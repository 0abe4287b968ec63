//! Two hundred and fifty domains for an hour: what many changes cost in time and memory, and
//! whether each one is everywhere soon after the last fault.
//!
//! Every domain has a real registry that produces. Of those that hear, a few hold everything
//! in their machines; the others keep, for each remote domain, how much there is and a hash
//! over names and rounds, so that one process can hold the world. Endpoints are shared.

use core::fmt;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use vl3_core::federation::{StreamId, SyncMessage};
use vl3_core::ids::{Generation, NetworkUid};
use vl3_core::registry::{
    Boot, CallId, Command, Config, Effect, Endpoint, Input, Peer, Record, RegistryMachine,
};
use vl3_core::{Machine as _, Mono, Now, Outbox, Rng, Wall};

use super::cast::{Network, domain_name, registry_id, spiffe};
use super::pipes::router_endpoint;
use super::world::below;
use crate::broken::Broken;
use crate::queue::Queue;

/// One step of the clock: changes of one domain are apart by as much.
const SECOND: Duration = Duration::from_secs(1);
/// Longest way there and back.
const RTT_MAX: Duration = Duration::from_millis(200);
/// Ways of one direction; a pair of domains has one of them.
const WAYS: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(60),
    Duration::from_millis(100),
];
/// After the last fault streams stand again within this: silence, back-off, the second dial.
const RECOVERY_NANOS: u64 = 60_000_000_000;
/// What goes wrong in the middle of the time; each kind must.
pub const FAULTS: [&str; 5] = ["OneWay", "Partition", "StreamLost", "SlowDomain", "Crash"];
/// The shortest time in which the world grows, everything goes wrong, and calm returns.
const MINUTES_MIN: u64 = 8;
/// What the endpoints of other domains may take in one registry: each, those of one domain, all.
const ENDPOINT_BYTES_MAX: usize = 8 * 1024;
const DOMAIN_BYTES_MAX: usize = 1024 * 1024;
const REMOTE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Endpoints that a domain registers in each of the first seconds.
const WARM_UP: usize = 10;

mod examine;
mod streams;

#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub domains: usize,
    pub endpoints: usize,
    pub observers: usize,
    /// Virtual time.
    pub minutes: u64,
    pub seed: u64,
    /// What the process may take.
    pub rss_max_mib: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            domains: 250,
            endpoints: 1000,
            observers: 8,
            minutes: 60,
            seed: 1,
            rss_max_mib: 6 * 1024,
        }
    }
}

/// What one run came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub changes: u64,
    pub messages: u64,
    pub events: u64,
    /// Longest time from a change to somebody who heard of it, with and without faults.
    pub latest: Duration,
    pub latest_after_faults: Duration,
    pub queue_max: usize,
    pub in_flight_max: u64,
    pub remote_bytes_max: usize,
    /// Of one remote domain in one registry, and of one endpoint there on average.
    pub domain_bytes_max: usize,
    pub endpoint_bytes_max: usize,
    pub rss_max_mib: u64,
    /// Removals among the changes that were heard one by one, and changes that came with a
    /// snapshot instead.
    pub removals_heard: u64,
    pub caught_up: u64,
    /// The most endpoints that the smallest domain ever had.
    pub grown_to: u32,
    /// Streams that ended when nothing went wrong any more.
    pub lost_after_faults: u64,
    pub took: Duration,
    pub faults: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} changes, {} messages, {} events in {:.0?}",
            self.changes, self.messages, self.events, self.took
        )?;
        writeln!(
            f,
            "latest hearing {:.0?}, after the last fault {:.0?} (at most RTT {RTT_MAX:?} + 1 s)",
            self.latest, self.latest_after_faults
        )?;
        writeln!(
            f,
            "{} removals heard, {} changes caught up with by snapshots, every domain grew to {} endpoints",
            self.removals_heard, self.caught_up, self.grown_to
        )?;
        writeln!(
            f,
            "at most {} events queued, {} messages under way, {} KiB for remote endpoints in one registry ({} KiB of one domain, {} bytes each), {} MiB resident",
            self.queue_max,
            self.in_flight_max,
            self.remote_bytes_max / 1024,
            self.domain_bytes_max / 1024,
            self.endpoint_bytes_max,
            self.rss_max_mib
        )?;
        writeln!(f, "faults injected:")?;
        FAULTS.iter().try_for_each(|fault| {
            let times = self.faults.get(fault).copied().unwrap_or_default();
            writeln!(f, "  {fault:<20}{times:>10}")
        })
    }
}

/// What a domain without a full view knows of another one.
#[derive(Clone, Copy, Debug, Default)]
struct Digest {
    sequence: u64,
    count: u32,
    hash: u64,
    in_snapshot: bool,
    /// The change that is heard next, once the snapshot is whole.
    next: usize,
    /// How many changes were heard of, also by snapshots.
    known: usize,
}

/// One change of a domain: of which endpoint, which round it had before.
#[derive(Clone, Copy, Debug)]
struct Change {
    slot: u32,
    before: Option<u64>,
    at: Mono,
}

#[derive(Debug)]
struct Domain {
    machine: Option<RegistryMachine>,
    life: u64,
    /// As its disk has it while it is down.
    disk: Vec<Record>,
    /// To whom, under which name there, by which pipe.
    streams: BTreeMap<StreamId, (usize, StreamId, u64)>,
    wakes_at: Option<Mono>,
    /// The round of each endpoint; None while it is not registered.
    slots: Vec<Option<u64>>,
    changes: Vec<Change>,
    hash: u64,
    count: u32,
    count_max: u32,
    slow: bool,
    /// When the last parcel of each way arrives.
    last: [Mono; WAYS.len()],
}

/// What one domain says on one of its streams.
#[derive(Debug)]
struct Parcel {
    to: usize,
    stream: StreamId,
    pipe: u64,
    messages: Vec<SyncMessage>,
}

#[derive(Debug)]
enum Event {
    Wake(usize, u64),
    Change(usize),
    Dialled {
        from: usize,
        life: u64,
        stream: StreamId,
        to: usize,
    },
    Parcels(usize, Vec<Parcel>),
    Closed {
        domain: usize,
        life: u64,
        stream: StreamId,
    },
    Start(usize),
    Fault,
    Heal(usize, usize),
    Fast(usize),
    Minute,
}

#[derive(Debug)]
pub struct World {
    size: Size,
    now: Mono,
    queue: Queue<Event>,
    rng: Rng,
    uid: NetworkUid,
    network: Network,
    domains: Vec<Domain>,
    /// By who heard, then who said.
    digests: Vec<Vec<Digest>>,
    cut: std::collections::BTreeSet<(usize, usize)>,
    /// How many changes a domain had made when it greeted on a pipe.
    greeted: BTreeMap<(u64, usize), usize>,
    quiet_from: Mono,
    in_flight: u64,
    next: u64,
    report: Report,
}

fn mix(slot: u32, round: u64) -> u64 {
    let mut value = (u64::from(slot) << 40) ^ round;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn slot_of(name: &str) -> Option<u32> {
    name.rsplit_once("-e")?.1.parse().ok()
}

impl World {
    pub fn new(size: Size) -> Self {
        let network = Network::new("red", 0, 0..size.domains);
        let domain = |_| Domain {
            machine: None,
            life: 0,
            disk: Vec::new(),
            streams: BTreeMap::new(),
            wakes_at: None,
            slots: vec![None; size.endpoints],
            changes: Vec::new(),
            hash: 0,
            count: 0,
            count_max: 0,
            slow: false,
            last: [Mono::default(); WAYS.len()],
        };
        let end = Mono::from_secs(size.minutes * 60);
        let quiet = Duration::from_secs(60.max(size.minutes * 6));
        let mut world = Self {
            size,
            now: Mono::default(),
            queue: Queue::default(),
            rng: Rng::new(size.seed),
            uid: network.uid,
            network,
            domains: (0..size.domains).map(domain).collect(),
            digests: vec![vec![Digest::default(); size.domains]; size.domains],
            cut: std::collections::BTreeSet::new(),
            greeted: BTreeMap::new(),
            quiet_from: Mono(
                end.0
                    .saturating_sub(u64::try_from(quiet.as_nanos()).unwrap_or(0)),
            ),
            in_flight: 0,
            next: 0,
            report: Report::default(),
        };
        for domain in 0..size.domains {
            world.queue.push(Mono(1), Event::Start(domain));
            let first = Duration::from_secs(30) + world.millis(0, 999);
            world.later(first, Event::Change(domain));
        }
        world.later(Duration::from_secs(180), Event::Fault);
        world.later(Duration::from_secs(60), Event::Minute);
        world
    }

    fn later(&mut self, after: Duration, event: Event) {
        self.queue.push(self.now + after, event);
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.rng.below(to - from + 1))
    }

    fn now(&self) -> Now {
        let wall = Wall(Wall::from_unix_secs(1_800_000_000).0 + self.now.0);
        Now {
            mono: self.now,
            wall,
        }
    }

    /// What a stream says to a domain without a full view goes no further than its digest.
    const fn observes(&self, domain: usize) -> bool {
        domain < self.size.observers
    }

    /// Plays the time; `tell` hears of every minute.
    pub fn play(mut self, mut tell: impl FnMut(&str)) -> Result<Report, Broken> {
        let begun = Instant::now();
        let end = Mono::from_secs(self.size.minutes * 60);
        while self.queue.next_at().is_some_and(|at| at <= end)
            && let Some((at, event)) = self.queue.pop()
        {
            self.now = at;
            self.report.events += 1;
            self.report.queue_max = self.report.queue_max.max(self.queue.len());
            if matches!(event, Event::Minute) {
                self.minute(begun, &mut tell)?;
            } else {
                self.step(event)?;
            }
        }
        self.settle()?;
        self.weigh(resident_mib())?;
        let grown = self.domains.iter().map(|domain| domain.count_max).min();
        self.report.grown_to = grown.unwrap_or_default();
        self.report.proves(&self.size)?;
        self.examine()?;
        self.report.took = begun.elapsed();
        Ok(self.report)
    }

    fn step(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            // Another one, earlier or later, took the place of what is not armed any more.
            Event::Wake(domain, life)
                if self.domains[domain].life == life
                    && self.domains[domain].wakes_at == Some(self.now) =>
            {
                self.domains[domain].wakes_at = None;
                let now = self.now();
                let mut out = Outbox::default();
                if let Some(machine) = self.domains[domain].machine.as_mut() {
                    machine.wake(now, &mut out);
                }
                self.effects(domain, out);
            }
            Event::Change(domain) => {
                self.later(SECOND, Event::Change(domain));
                self.change(domain);
            }
            Event::Dialled {
                from,
                life,
                stream,
                to,
            } => self.dialled(from, life, stream, to),
            Event::Parcels(from, parcels) => {
                for parcel in parcels {
                    self.in_flight -= parcel.messages.len() as u64;
                    self.hear(from, parcel)?;
                }
            }
            Event::Closed {
                domain,
                life,
                stream,
            } if self.domains[domain].life == life => {
                let reason = "closed".to_owned();
                self.input(domain, Input::SyncClosed { stream, reason });
            }
            Event::Start(domain) => self.start(domain),
            Event::Fault => self.fault(),
            Event::Heal(a, b) => {
                // What was lost meanwhile does not come again on the same stream.
                self.break_between(a, b);
                self.cut.remove(&(a, b));
                self.cut.remove(&(b, a));
            }
            Event::Fast(domain) => self.domains[domain].slow = false,
            Event::Wake(..) | Event::Closed { .. } | Event::Minute => {}
        }
        Ok(())
    }

    fn start(&mut self, domain: usize) {
        let mut config = Config::new(
            domain_name(domain),
            registry_id(domain),
            [1; 16],
            domain as u64,
        );
        // Nothing ends by time here: what is measured are changes, not refreshes.
        config.endpoint_lifetime = Duration::from_secs(1_000_000);
        config.rewrite_after = usize::MAX / 4;
        let records = core::mem::take(&mut self.domains[domain].disk);
        let boot = Boot {
            documents: vec![self.network.chain.clone()],
            records,
            ..Boot::default()
        };
        let machine = RegistryMachine::boot(config, boot, self.now()).expect("its own records");
        let of = &mut self.domains[domain];
        of.machine = Some(machine);
        of.life += 1;
        of.streams.clear();
        of.wakes_at = None;
        self.arm(domain);
    }

    fn arm(&mut self, domain: usize) {
        let of = &mut self.domains[domain];
        let Some((at, _)) = of.machine.as_ref().and_then(vl3_core::Machine::next_wake) else {
            return;
        };
        let at = at.max(self.now);
        if of.wakes_at.is_none_or(|armed| at < armed) {
            of.wakes_at = Some(at);
            let life = of.life;
            self.queue.push(at, Event::Wake(domain, life));
        }
    }

    fn input(&mut self, domain: usize, input: Input) {
        let now = self.now();
        let mut out = Outbox::default();
        if let Some(machine) = self.domains[domain].machine.as_mut() {
            machine.handle(input, now, &mut out);
        }
        self.effects(domain, out);
    }

    /// One endpoint is registered, changed or withdrawn; many in the first minutes.
    fn change(&mut self, domain: usize) {
        if self.domains[domain].machine.is_none() {
            return;
        }
        let warm = self.domains[domain].slots.iter().position(Option::is_none);
        let first = self.domains[domain].changes.len() < self.size.endpoints;
        if let Some(slot) = warm.filter(|_| first) {
            let last = (slot + WARM_UP).min(self.size.endpoints);
            return (slot..last).for_each(|slot| self.register(domain, slot));
        }
        let slot = below(&mut self.rng, self.size.endpoints);
        if self.domains[domain].slots[slot].is_some() && self.rng.one_in(10) {
            self.unregister(domain, slot);
        } else {
            self.register(domain, slot);
        }
    }

    fn register(&mut self, domain: usize, slot: usize) {
        let round = self.took_place(domain, slot, true);
        let name = format!("red-d{domain}-e{slot}");
        let mut endpoint = router_endpoint(domain, self.uid, "red", &name, Generation(round), 1);
        endpoint.registered = None;
        self.call(
            domain,
            Command::RegisterEndpoint {
                endpoint,
                lifetime: None,
            },
        );
    }

    fn unregister(&mut self, domain: usize, slot: usize) {
        self.took_place(domain, slot, false);
        let name = format!("red-d{domain}-e{slot}");
        self.call(domain, Command::UnregisterEndpoint { name });
    }

    /// The number of the change is the round of the endpoint.
    fn took_place(&mut self, domain: usize, slot: usize, is_there: bool) -> u64 {
        let at = self.now;
        let of = &mut self.domains[domain];
        let round = of.changes.len() as u64;
        let number = u32::try_from(slot).unwrap_or(u32::MAX);
        let after = is_there.then_some(round);
        let before = core::mem::replace(&mut of.slots[slot], after);
        of.changes.push(Change {
            slot: number,
            before,
            at,
        });
        (of.hash, of.count) = exchange(of.hash, of.count, number, before, after);
        of.count_max = of.count_max.max(of.count);
        self.report.changes += 1;
        round
    }

    fn call(&mut self, domain: usize, command: Command) {
        self.next += 1;
        let (call, peer) = (CallId(self.next), Peer::own(spiffe(domain, "vl3/router/r")));
        self.input(
            domain,
            Input::Call {
                call,
                peer,
                command,
            },
        );
    }
}

fn round_of(endpoint: &Arc<Endpoint>) -> Option<u64> {
    let labels = endpoint.labels.values().next()?;
    labels.get("vl3/gen")?.parse().ok()
}

fn exchange(
    mut hash: u64,
    mut count: u32,
    slot: u32,
    before: Option<u64>,
    after: Option<u64>,
) -> (u64, u32) {
    if let Some(before) = before {
        hash ^= mix(slot, before);
        count = count.saturating_sub(1);
    }
    if let Some(after) = after {
        hash ^= mix(slot, after);
        count += 1;
    }
    (hash, count)
}

/// Of this process; None where the kernel does not say.
fn resident_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| {
        line.trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    Some(kib? / 1024)
}
