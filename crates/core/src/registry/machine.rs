//! The machine's state, its start from the journal, and the order of its effects.

use core::mem;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::api::{Command, Config, Effect, Input, Peer, Refusal};
use super::follow::Following;
use super::journal::Journal;
use super::names::Names;
use super::network::Network;
use super::object::Endpoint;
use super::objects::Objects;
use super::record::Record;
use super::remotes::RemoteSize;
use super::speakers::{Contradiction, Ended};
use super::watch::Watchers;
use crate::allocator::{Allocator, Lease, LeaseRecord};
use crate::document::{Chain, DocumentStore, Offer};
use crate::federation::{Federation, RemoteStatus};
use crate::ids::{DomainName, NetworkUid, RouterName};
use crate::machine::{Machine, Outbox};
use crate::rng::Rng;
use crate::time::{Mono, Now};

/// What only the active replica does.
const FOLLOWS: &str = "this replica follows another one, which is active";

/// Another one may be active by now.
const UNCONFIRMED: &str = "the store does not confirm that this replica is active";

/// One domain's registry.
#[derive(Debug)]
pub struct RegistryMachine {
    pub(super) config: Config,
    pub(super) networks: BTreeMap<NetworkUid, Network>,
    /// Networks of the journal that the configuration no longer names: kept, not served.
    pub(super) dormant: BTreeMap<NetworkUid, Network>,
    pub(super) objects: Objects,
    pub(super) watchers: Watchers,
    pub(super) federation: Federation,
    /// The served networks as the configuration orders them, the best first.
    pub(super) order: Vec<NetworkUid>,
    /// The identity behind each remote domain's stream.
    pub(super) speakers: BTreeMap<DomainName, Peer>,
    /// What networks say against better ones, as the operator was told.
    pub(super) contradictions: BTreeSet<Contradiction>,
    pub(super) ended: Ended,
    /// When a member's `not_after` passes next.
    pub(super) membership_check: Option<Mono>,
    /// Live members.
    pub(super) live: BTreeSet<(NetworkUid, DomainName)>,
    /// Set while another replica decides.
    pub(super) following: Option<Following>,
    /// Set while the store does not say that this replica is still the active one.
    pub(super) unconfirmed: bool,
    pub(super) journal: Journal,
    /// Set when the journal failed: nothing is promised any more.
    pub(super) halted: Option<String>,
}

/// What a registry starts from.
#[derive(Debug, Default)]
pub struct Boot {
    /// The documents of the configuration: these networks are served.
    pub documents: Vec<Chain>,
    /// The journal, in order.
    pub records: Vec<Record>,
    /// The journal was restored from a backup and may be older than what was granted.
    pub restored: bool,
    /// Another replica may be active: nothing is written before [`Input::Promoted`].
    pub following: bool,
}

/// How much a registry holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub leases: usize,
    pub names: usize,
    /// Own ones and those of other domains.
    pub endpoints: usize,
    /// What those of other domains cost in memory.
    pub remote_bytes: usize,
    /// Endpoints of other domains not taken for want of room, ever.
    pub remote_refused: u64,
    /// Streams of other domains that ended, or were not opened, because the domain changed too
    /// much too fast; and because too much waited for the disk.
    pub streams_too_fast: u64,
    pub streams_congested: u64,
    pub watchers: usize,
    pub domains_connected: usize,
}

/// The journal does not make sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "record {index} of the journal is of network {uid}, of which no document was recorded before"
)]
pub struct BootError {
    pub index: usize,
    pub uid: NetworkUid,
}

impl RegistryMachine {
    /// Replays the journal. What is due (a newer document of the configuration to append, a
    /// dial) comes out of the first [`Machine::wake`].
    pub fn boot(config: Config, boot: Boot, now: Now) -> Result<Self, BootError> {
        let mut rng = Rng::new(config.seed);
        let federation = Federation::new(
            config.domain.clone(),
            config.epoch,
            config.federation.clone(),
            rng.fork(),
        );
        let mut machine = Self {
            networks: BTreeMap::new(),
            dormant: BTreeMap::new(),
            objects: Objects::default(),
            watchers: Watchers::new(config.identity.trust_domain()),
            federation,
            order: Vec::new(),
            speakers: BTreeMap::new(),
            contradictions: BTreeSet::new(),
            ended: Ended::default(),
            membership_check: Some(now.mono),
            live: BTreeSet::new(),
            following: boot.following.then(|| Following::new(&boot)),
            unconfirmed: false,
            journal: Journal::of(&boot.records),
            halted: None,
            config,
        };
        for (index, record) in boot.records.into_iter().enumerate() {
            machine
                .replay(record, now.mono)
                .map_err(|uid| BootError { index, uid })?;
        }
        let mut journalled = mem::take(&mut machine.networks);
        for chain in boot.documents {
            let uid = chain.uid();
            if !machine.order.contains(&uid) {
                machine.order.push(uid);
            }
            if let Some(network) = journalled.remove(&uid) {
                let newer = matches!(network.store.decide(&chain), Offer::Newer(_));
                machine.networks.insert(uid, network);
                if newer && !boot.following {
                    let record = Record::Document { chain };
                    machine.apply(&record, now.mono);
                    machine.put_up(record);
                }
            } else if !machine.networks.contains_key(&uid) {
                let record = Record::Document { chain };
                machine.apply(&record, now.mono);
                match &mut machine.following {
                    Some(following) => following.unrecorded(uid),
                    None => machine.put_up(record),
                }
            }
        }
        machine.dormant = journalled;
        if boot.restored && !boot.following {
            for record in machine.restored() {
                machine.apply(&record, now.mono);
                machine.put_up(record);
            }
        }
        Ok(machine)
    }

    /// In every served network leases are only taken back from now on, for one period.
    pub(super) fn restored(&self) -> Vec<Record> {
        let of = |uid: &NetworkUid| Record::Lease {
            uid: *uid,
            record: LeaseRecord::Restored { floor: None },
        };
        self.networks.keys().map(of).collect()
    }

    fn replay(&mut self, record: Record, now: Mono) -> Result<(), NetworkUid> {
        #[cfg(feature = "plants")]
        let record = super::record::planted(record);
        let of_network = match &record {
            Record::Lease { uid, .. }
            | Record::Name { uid, .. }
            | Record::NameReleased { uid, .. } => Some(*uid),
            Record::Document { .. }
            | Record::Service { .. }
            | Record::ServiceRemoved { .. }
            | Record::Endpoint { .. }
            | Record::EndpointRemoved { .. }
            | Record::Remote { .. }
            | Record::RemoteRemoved { .. } => None,
        };
        if let Some(uid) = of_network.filter(|uid| !self.networks.contains_key(uid)) {
            return Err(uid);
        }
        self.apply(&record, now);
        Ok(())
    }

    /// Takes one record: when it is decided, replayed or followed.
    pub(super) fn apply(&mut self, record: &Record, now: Mono) {
        match record {
            Record::Document { chain } => {
                if let Some(network) = self.network_mut(chain.uid()) {
                    network.store.apply(chain.clone());
                } else {
                    let network = self.new_network(chain);
                    self.networks.insert(chain.uid(), network);
                }
            }
            Record::Lease { uid, record } => {
                if let Some(network) = self.network_mut(*uid) {
                    network.allocator.apply(record.clone(), now);
                }
            }
            Record::Name { uid, .. } | Record::NameReleased { uid, .. } => {
                let lifetime = self.config.name_lifetime;
                if let Some(network) = self.network_mut(*uid) {
                    network.names.apply(record, lifetime, now);
                }
            }
            Record::Service { .. }
            | Record::ServiceRemoved { .. }
            | Record::Endpoint { .. }
            | Record::EndpointRemoved { .. }
            | Record::Remote { .. }
            | Record::RemoteRemoved { .. } => {
                let (lifetime, grace) = (
                    self.config.endpoint_lifetime,
                    self.config.federation.stale_grace,
                );
                self.objects.apply(record, lifetime, grace, now);
            }
        }
    }

    /// Also one that is not served.
    fn network_mut(&mut self, uid: NetworkUid) -> Option<&mut Network> {
        self.networks
            .get_mut(&uid)
            .or_else(|| self.dormant.get_mut(&uid))
    }

    fn new_network(&self, chain: &Chain) -> Network {
        let (uid, domain) = (chain.uid(), self.config.domain.clone());
        Network {
            store: DocumentStore::new(chain.clone()),
            allocator: Allocator::new(uid, domain, self.config.allocator.clone()),
            names: Names::default(),
        }
    }

    /// A network of the journal that is not served: kept for those who serve it.
    pub(super) fn keep_dormant(&mut self, chain: &Chain) {
        let new = self.new_network(chain);
        let kept = self.dormant.entry(chain.uid()).or_insert(new);
        kept.store.apply(chain.clone());
    }

    /// The records that bring an empty registry to this state. Equal to that of a machine
    /// that replays the journal, whenever nothing is in flight.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut records = self.journal_snapshot();
        records.extend(self.objects.snapshot());
        records
    }

    /// Applies decided records, announces them, and puts them up for the next append. Not
    /// where another replica decides.
    pub(super) fn commit(&mut self, records: Vec<Record>, now: Now, out: &mut Outbox<Effect>) {
        if self.is_following() {
            return;
        }
        for record in records {
            let before = self.last_known(&record);
            self.apply(&record, now.mono);
            self.put_up(record.clone());
            self.announce(&record, before, now, out);
        }
    }

    /// Why a command is not even looked at.
    fn refuses(&self, command: &Command) -> Option<&'static str> {
        if self.halted.is_some() || self.is_congested() {
            Some("too much waits for the journal")
        } else if self.is_following() && !command.only_reads() {
            Some(FOLLOWS)
        } else if self.unconfirmed && !command.only_reads() {
            Some(UNCONFIRMED)
        } else {
            None
        }
    }

    /// The newest document of a served network.
    pub fn document(&self, uid: NetworkUid) -> Option<&Chain> {
        self.networks.get(&uid).map(|network| network.store.chain())
    }

    pub fn documents(&self) -> impl Iterator<Item = &Chain> + '_ {
        self.networks.values().map(|network| network.store.chain())
    }

    pub fn leases(&self) -> impl Iterator<Item = &Lease> + '_ {
        self.networks
            .values()
            .flat_map(|network| network.allocator.leases())
    }

    pub fn lease(&self, uid: NetworkUid, router: &RouterName) -> Option<&Lease> {
        self.networks.get(&uid)?.allocator.lease(router)
    }

    pub fn names(&self) -> impl Iterator<Item = (NetworkUid, &super::record::Claim)> + '_ {
        self.networks
            .iter()
            .flat_map(|(uid, network)| network.names.iter().map(move |claim| (*uid, claim)))
    }

    /// Every endpoint: of the own domain (None) or said by another one.
    pub fn endpoints(&self) -> impl Iterator<Item = (Option<&DomainName>, Arc<Endpoint>)> + '_ {
        let own = self.objects.owns();
        let own = own.map(|own| (None, own.endpoint.clone()));
        let remotes = self.objects.remotes.iter();
        own.chain(
            remotes.map(|(domain, remote)| (Some(&**domain), Arc::new(remote.packed.endpoint()))),
        )
    }

    /// How much a remote domain takes.
    pub fn remote_size(&self, domain: &DomainName) -> RemoteSize {
        self.objects.remotes.size(domain)
    }

    pub fn remotes(&self) -> Vec<RemoteStatus> {
        self.federation.status()
    }

    /// Sizes, for metrics.
    pub fn counts(&self) -> Counts {
        Counts {
            leases: self
                .networks
                .values()
                .map(|network| network.allocator.lease_count())
                .sum(),
            names: self
                .networks
                .values()
                .map(|network| network.names.len())
                .sum(),
            endpoints: self.objects.own_count() + self.objects.remotes.count(),
            remote_bytes: self.objects.remotes.bytes(),
            remote_refused: self.objects.remotes.refused(),
            streams_too_fast: self.ended.too_fast,
            streams_congested: self.ended.congested,
            watchers: self.watchers.len(),
            domains_connected: self.federation.connected_count(),
        }
    }

    /// Why nothing is promised any more.
    pub fn halted(&self) -> Option<&str> {
        self.halted.as_deref()
    }
}

impl Machine for RegistryMachine {
    type Input = Input;
    type Effect = Effect;

    fn handle(&mut self, input: Input, now: Now, out: &mut Outbox<Effect>) {
        match input {
            Input::Call {
                call,
                peer,
                command,
            } => {
                if let Some(reason) = self.refuses(&command) {
                    let reason = reason.to_owned();
                    out.push(Effect::Reply {
                        call,
                        result: Err(Refusal::Unavailable { reason }),
                    });
                } else {
                    let result = self.call(&peer, command, now, out);
                    self.say(Effect::Reply { call, result }, out);
                }
            }
            // Whoever restarts the process finds the state that is on disk.
            Input::SyncOpened { .. } | Input::SyncReceived { .. } | Input::SyncClosed { .. }
                if self.halted.is_some() => {}
            Input::SyncOpened { stream, .. } if self.is_following() => {
                let reason = FOLLOWS.to_owned();
                out.push(Effect::CloseStream { stream, reason });
            }
            Input::Watch {
                watcher,
                peer,
                query,
            } => self.watch(watcher, peer, query, now, out),
            Input::WatchRest { watcher } => self.watch_rest(watcher, now, out),
            Input::Unwatch { watcher } => self.watchers.remove(watcher),
            Input::Appended { ticket } => self.appended(ticket, out),
            Input::AppendFailed { reason, .. } => self.append_failed(reason, out),
            Input::SyncOpened { stream, peer } => self.sync_opened(stream, peer, now, out),
            Input::SyncReceived { stream, message }
                if message.changes() && self.is_congested_for_others() =>
            {
                self.end_congested(stream, now, out);
            }
            Input::SyncReceived { stream, message } => {
                self.federate(now, out, |federation, events| {
                    federation.received(stream, message, now.mono, events)
                });
            }
            Input::SyncClosed { stream, reason } => {
                self.federate(now, out, |federation, events| {
                    federation.closed(stream, &reason, now.mono, events)
                });
            }
            Input::Followed { records } => self.followed(records, now, out),
            Input::Reload { records } => self.reload(records, now, out),
            Input::Promoted { records } => self.promoted(records, now, out),
            Input::Unconfirmed => self.unconfirmed = !self.is_following(),
            Input::Confirmed => self.confirmed(now),
            Input::Deposed { reason } => self.deposed(reason, out),
        }
        self.flush(out);
    }

    fn wake(&mut self, now: Now, out: &mut Outbox<Effect>) {
        if self.halted.is_some() {
            return;
        }
        if self.is_following() {
            // Time ends nothing here but whom the documents trust.
            if self.membership_check.is_some_and(|at| at <= now.mono) {
                self.reconcile(now, out);
            }
            return;
        }
        self.end_what_is_due(now, out);
        if self.membership_check.is_some_and(|at| at <= now.mono) {
            self.reconcile(now, out);
        }
        self.federate(now, out, |federation, events| {
            federation.wake(now.mono, events)
        });
        self.flush(out);
    }

    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        if self.halted.is_some() {
            return None;
        }
        if self.is_following() {
            return self.membership_check.map(|at| (at, "membership"));
        }
        let members = self.membership_check.map(|at| (at, "membership"));
        let federation = self.federation.next_wake();
        let due = [self.next_expiry(), members, federation];
        due.into_iter().flatten().min()
    }
}
