//! A domain's registry process: the machine, its disk, what it does to the world.

use core::time::Duration;
use std::collections::BTreeMap;

use ipnet::IpNet;
use vl3_core::document::Chain;
use vl3_core::federation::StreamId;
use vl3_core::machine::Ticket;
use vl3_core::registry::{Boot, Config, Effect, Input, Record, RegistryMachine, rewritten};
use vl3_core::{Mono, Outbox};

use super::cast::{Network, domain_name, registry_id};
use super::faults::Fault;
use super::world::{Event, Step, World};
use crate::broken::Broken;
use crate::disk::Disk;

pub(super) const RENEW_AFTER: Duration = Duration::from_secs(15);
pub(super) const ENDPOINT_LIFETIME: Duration = Duration::from_secs(30);
/// Routers renew about every 25 seconds; some are silent for longer than this.
pub(super) const LEASE_LIFETIME: Duration = Duration::from_secs(40);
const NAME_LIFETIME: Duration = Duration::from_secs(20);
const STALE_GRACE: Duration = Duration::from_secs(40);
pub(super) const REMOTE_MAX: usize = 12;

/// Records on the virtual disk that are worth the merging.
const DISK_LONG: usize = 200;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) life: u64,
    pub(super) machine: Option<RegistryMachine>,
    pub(super) disk: Disk<Record>,
    disk_long: usize,
    /// No append is under way.
    pub(super) idle: bool,
    pub(super) clock_offset: i64,
    pub(super) restored: bool,
    pub(super) started: Mono,
    /// Documents of its configuration.
    pub(super) documents: Vec<Chain>,
    pub(super) streams: BTreeMap<StreamId, (u64, usize)>,
    pub(super) wakes_at: Option<Mono>,
    pub(super) lie: Option<Fault>,
    pub(super) slow: bool,
    /// It stops while its next append is under way.
    pub(super) doomed: bool,
    /// Its next write fails; it failed.
    pub(super) disk_fails: bool,
    pub(super) disk_failed: bool,
    /// Somebody there does not know what it lost: a backup would give it back.
    pub(super) somebody_lost: bool,
    /// By its operator, at the moment, in which network.
    pub(super) excluded: Option<(usize, IpNet)>,
    pub(super) syncs: u32,
}

impl Node {
    pub(super) fn new(domain: usize, networks: &[Network]) -> Self {
        let of = networks.iter().filter(|network| network.has(domain));
        Self {
            life: 0,
            machine: None,
            disk: Disk::default(),
            disk_long: DISK_LONG,
            idle: true,
            clock_offset: 0,
            restored: false,
            started: Mono::default(),
            documents: of.map(|network| network.chain.clone()).collect(),
            streams: BTreeMap::new(),
            wakes_at: None,
            lie: None,
            slow: false,
            doomed: false,
            disk_fails: false,
            disk_failed: false,
            somebody_lost: false,
            excluded: None,
            syncs: 0,
        }
    }

    /// The store keeps the last word on each object; what it kept before is merged at times.
    fn keep(&mut self, records: Vec<Record>) {
        let kept = self.disk.records();
        if kept.len() < self.disk_long {
            return self.disk.start_append(records);
        }
        let both = kept.iter().chain(&records);
        let journal = both.filter(|record| record.object_key().is_none());
        let journal = journal.cloned().collect();
        let all = rewritten(kept, &records, journal);
        self.disk_long = DISK_LONG.max(2 * all.len());
        self.disk.start_rewrite(all);
    }
}

impl World {
    pub(super) fn start(&mut self, node: usize) -> Step {
        let now = self.now_at(node);
        let seed = self.rng.next_u64();
        let of = &mut self.nodes[node];
        if of.machine.is_some() || of.documents.is_empty() {
            return Ok(());
        }
        of.life += 1;
        of.started = now.mono;
        of.streams.clear();
        of.idle = true;
        of.disk_failed = false;
        of.wakes_at = None;
        let mut epoch = [0; 16];
        epoch[..8].copy_from_slice(&seed.to_be_bytes());
        let mut config = Config::new(domain_name(node), registry_id(node), epoch, seed);
        config.allocator.renew_after = RENEW_AFTER;
        config.allocator.lifetime = LEASE_LIFETIME;
        config.endpoint_lifetime = ENDPOINT_LIFETIME;
        config.name_lifetime = NAME_LIFETIME;
        config.rewrite_after = 40;
        config.page_found_max = 3;
        config.page_looked_at_max = 5;
        config.federation.stale_grace = STALE_GRACE;
        config.federation.endpoints_max = REMOTE_MAX;
        let boot = Boot {
            documents: of.documents.clone(),
            records: of.disk.records().to_vec(),
            restored: of.restored,
            ..Boot::default()
        };
        let machine = RegistryMachine::boot(config, boot, now)
            .map_err(|error| Broken::new(2, format!("d{node} does not start: {error}")))?;
        of.machine = Some(machine);
        self.note(node, format_args!("starts"));
        self.check_promises(node)?;
        self.arm(node);
        self.watch_again(node);
        Ok(())
    }

    /// The machine is gone, of the disk what was written is there.
    pub(super) fn crash(&mut self, node: usize, fault: Fault) -> Step {
        if self.nodes[node].idle {
            self.check_replay(node)?;
        }
        let of = &mut self.nodes[node];
        if of.machine.take().is_none() {
            return Ok(());
        }
        if self.now.saturating_since(of.started) > RENEW_AFTER * 3 {
            of.restored = false;
        }
        let torn = !of.disk.is_idle();
        of.disk.crash(&mut self.rng);
        if torn {
            self.count(Fault::TornAppend);
        }
        self.count(fault);
        self.note(node, format_args!("{fault:?}"));
        self.truth_after_crash(node);
        let streams = core::mem::take(&mut self.nodes[node].streams);
        for (pipe, side) in streams.into_values() {
            self.end_pipe(pipe, side);
        }
        for watch in self.watches.values_mut().filter(|watch| watch.node == node) {
            watch.seen = None;
        }
        Ok(())
    }

    pub(super) fn effects(&mut self, node: usize, mut out: Outbox<Effect>) -> Step {
        for effect in out.take() {
            if self.trace.is_kept() {
                self.note(node, format_args!("-> {effect:?}"));
            }
            self.effect(node, effect)?;
        }
        self.arm(node);
        Ok(())
    }

    fn effect(&mut self, node: usize, effect: Effect) -> Step {
        match effect {
            Effect::Append { ticket, records } => {
                self.check_records(node, &records)?;
                self.nodes[node].keep(records);
                self.writes(node, ticket);
            }
            Effect::Rewrite {
                ticket,
                records,
                journal,
            } => {
                self.check_records(node, &records)?;
                let disk = &mut self.nodes[node].disk;
                disk.start_rewrite(rewritten(disk.records(), &records, journal));
                self.writes(node, ticket);
            }
            Effect::Reply { call, result } => return self.answered(node, call, result),
            Effect::Deliver {
                watcher,
                events,
                rest,
            } => {
                self.told(watcher, events)?;
                if rest {
                    if let Some(watch) = self.watches.get_mut(&watcher) {
                        watch.has_rest = true;
                    }
                    let (life, after) = (self.nodes[node].life, self.millis(1, 300));
                    let event = Event::WatchRest {
                        node,
                        life,
                        watcher,
                    };
                    self.later(after, event);
                }
            }
            Effect::EndWatch { watcher, .. } => self.watch_ended(watcher),
            Effect::Dial { stream, domain, .. } => self.dial(node, stream, &domain),
            Effect::Send { stream, messages } => return self.send(node, stream, messages),
            Effect::CloseStream { stream, .. } => self.close(node, stream),
            Effect::Alarm(alarm) => return self.alarmed(node, &alarm),
            Effect::DocumentChanged { .. } => {}
        }
        Ok(())
    }

    fn writes(&mut self, node: usize, ticket: Ticket) {
        self.nodes[node].idle = false;
        let life = self.nodes[node].life;
        let took = Duration::from_micros(300 + self.rng.below(8_000));
        if core::mem::take(&mut self.nodes[node].disk_fails) {
            return self.later(took, Event::DiskFails { node, life, ticket });
        }
        self.later(took, Event::Synced { node, life, ticket });
        if core::mem::take(&mut self.nodes[node].doomed) {
            let before = Duration::from_micros(self.rng.below(300));
            self.later(before, Event::Crash { node, life });
        }
    }

    /// A registry that cannot write stops.
    pub(super) fn disk_fails(&mut self, node: usize, ticket: Ticket) -> Step {
        self.nodes[node].disk.fail();
        self.nodes[node].disk_failed = true;
        let reason = "no space is left".to_owned();
        self.input(node, Input::AppendFailed { ticket, reason })?;
        self.crash(node, Fault::DiskFailed)?;
        let after = self.millis(200, 12_000);
        self.later(after, Event::Start(node));
        Ok(())
    }

    /// What the disk holds gives the state that ran.
    pub(super) fn check_replay(&self, node: usize) -> Step {
        let of = &self.nodes[node];
        let Some(machine) = of.machine.as_ref().filter(|_| of.idle) else {
            return Ok(());
        };
        let boot = Boot {
            records: of.disk.records().to_vec(),
            ..Boot::default()
        };
        let config = Config::new(domain_name(node), registry_id(node), [0; 16], 0);
        let replayed = RegistryMachine::boot(config, boot, self.now_at(node))
            .map_err(|error| Broken::new(2, format!("d{node} would not start: {error}")))?;
        let (ran, replayed) = (machine.snapshot(), replayed.snapshot());
        if ran == replayed {
            return Ok(());
        }
        let ran_only = ran.iter().find(|record| !replayed.contains(record));
        let disk_only = replayed.iter().find(|record| !ran.contains(record));
        let what = format!("d{node} holds {ran_only:?}, its disk {disk_only:?}");
        Err(Broken::new(2, what))
    }

    pub(super) fn check_replay_sometimes(&mut self, node: usize) -> Step {
        self.nodes[node].syncs += 1;
        if self.nodes[node].syncs.is_multiple_of(16) {
            return self.check_replay(node);
        }
        Ok(())
    }
}
