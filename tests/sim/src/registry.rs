//! A domain's registry process: the machine, its disk, its streams.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use vl3_core::document::Chain;
use vl3_core::federation::StreamId;
use vl3_core::ids::SpiffeId;
use vl3_core::machine::Ticket;
use vl3_core::registry::{
    Boot, CallId, Command, Config, Effect, Input, Peer, Record, RegistryMachine, WatcherId,
    rewritten,
};
use vl3_core::{Machine as _, Mono, Outbox};

use crate::broken::Broken;
use crate::cast::{Cast, domain_name, registry_id, trust_domain};
use crate::disk::Disk;
use crate::event::{CallBody, Event, Node, PipeBody, PipeKind, ReplyBody};
use crate::faults::Fault;
use crate::world::World;

const RENEW_AFTER: Duration = Duration::from_secs(15);

/// How long a watcher takes for a page of its snapshot.
const READS_WITHIN: Duration = Duration::from_millis(1);
/// A name that nobody claims again is free after that.
const NAME_LIFETIME: Duration = Duration::from_secs(20);

const DISK_LONG: usize = 1000;

#[derive(Debug)]
pub struct Registry {
    pub domain: usize,
    pub lives: u32,
    pub machine: Option<RegistryMachine>,
    pub disk: Disk<Record>,
    pub clock_offset: i64,
    /// The journal is from a backup, or is empty where something had been. An operator takes
    /// that word back once every router had the time to present its lease.
    pub restored: bool,
    pub started: Mono,
    /// It says things that are not so.
    pub lies: bool,
    /// Nothing that was promised is on its way to the disk.
    pub idle: bool,
    pub documents: Vec<Chain>,
    /// Records on the disk at which objects are looked at again.
    disk_long: usize,
    streams: BTreeMap<StreamId, (u64, usize)>,
}

impl Registry {
    pub fn new(domain: usize, cast: &Cast) -> Self {
        let late = cast.late == Some(domain);
        let documents = cast
            .networks
            .iter()
            .map(|network| {
                if late {
                    network.newest()
                } else {
                    &network.versions[0]
                }
            })
            .filter(|chain| chain.document().members.contains_key(&domain_name(domain)))
            .cloned()
            .collect();
        Self {
            domain,
            lives: 0,
            machine: None,
            disk: Disk::default(),
            clock_offset: 0,
            restored: false,
            started: Mono::default(),
            lies: false,
            idle: true,
            documents,
            disk_long: DISK_LONG,
            streams: BTreeMap::new(),
        }
    }

    /// Appends. As in a store, objects that were replaced do not add up.
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
    pub fn start_registry(&mut self, index: usize) -> Result<(), Broken> {
        let node = Node::Registry(index);
        let now = self.now_at(node);
        let seed = self.rng.next_u64();
        let registry = &mut self.registries[index];
        if registry.machine.is_some() {
            return Ok(());
        }
        registry.lives += 1;
        registry.started = now.mono;
        registry.streams.clear();
        registry.idle = true;
        let mut epoch = [0; 16];
        epoch[..8].copy_from_slice(&seed.to_be_bytes());
        let boot = Boot {
            documents: registry.documents.clone(),
            records: registry.disk.records().to_vec(),
            restored: registry.restored,
            ..Boot::default()
        };
        let mut config = Config::new(domain_name(index), registry_id(index), epoch, seed);
        config.allocator.renew_after = RENEW_AFTER;
        config.rewrite_after = 200;
        config.name_lifetime = NAME_LIFETIME;
        let machine = RegistryMachine::boot(config, boot, now).map_err(|error| {
            Broken::new(
                2,
                format!("{node} does not start from its own journal: {error}"),
            )
        })?;
        registry.machine = Some(machine);
        self.note(&node, format_args!("starts"));
        self.wake_registry(index)?;
        self.check_replay(index)
    }

    pub fn crash_registry(&mut self, index: usize) {
        let life = self.life(Node::Registry(index));
        let now = self.now;
        let registry = &mut self.registries[index];
        if registry.machine.take().is_none() {
            return;
        }
        if now.saturating_since(registry.started) > RENEW_AFTER * 3 {
            registry.restored = false;
        }
        registry.disk.crash(&mut self.rng);
        self.note(&life.node, format_args!("crashes"));
        self.break_pipes_of(life);
    }

    fn registry_input(&mut self, index: usize, input: Input) -> Result<(), Broken> {
        let node = Node::Registry(index);
        let now = self.now_at(node);
        self.note(&node, format_args!("<- {input:?}"));
        let Some(machine) = self.registries[index].machine.as_mut() else {
            return Ok(());
        };
        let mut out = Outbox::default();
        machine.handle(input, now, &mut out);
        self.registry_effects(index, out)
    }

    pub fn wake_registry(&mut self, index: usize) -> Result<(), Broken> {
        let now = self.now_at(Node::Registry(index));
        let Some(machine) = self.registries[index].machine.as_mut() else {
            return Ok(());
        };
        let mut out = Outbox::default();
        machine.wake(now, &mut out);
        self.registry_effects(index, out)
    }

    fn registry_effects(&mut self, index: usize, mut out: Outbox<Effect>) -> Result<(), Broken> {
        for effect in out.take() {
            self.note(&Node::Registry(index), format_args!("-> {effect:?}"));
            self.registry_effect(index, effect);
        }
        self.check_registry(index)
    }

    fn registry_effect(&mut self, index: usize, effect: Effect) {
        let node = Node::Registry(index);
        match effect {
            Effect::Append { ticket, records } => {
                self.registries[index].keep(records);
                self.registry_writes(index, ticket);
            }
            Effect::Rewrite {
                ticket,
                records,
                journal,
            } => {
                let disk = &mut self.registries[index].disk;
                disk.start_rewrite(rewritten(disk.records(), &records, journal));
                self.registry_writes(index, ticket);
            }
            Effect::Reply { call, result } => {
                self.answer(node, call.0, ReplyBody::Registry(result))
            }
            Effect::Deliver {
                watcher,
                events,
                rest,
            } => {
                self.send(watcher.0, 1, PipeBody::Watch(events));
                if rest {
                    let to = self.life(node);
                    self.later(READS_WITHIN, Event::WatchRest { to, watcher });
                }
            }
            Effect::EndWatch { watcher, .. } => self.close_pipe(watcher.0, 1),
            Effect::Dial {
                stream, contacts, ..
            } => {
                let to = contacts
                    .iter()
                    .filter_map(|contact| contact.parse::<std::net::SocketAddr>().ok())
                    .find_map(|address| self.at_address(address.ip()));
                if let Some(to) = to {
                    let pipe = self.open_pipe(node, to, PipeKind::Sync { stream });
                    self.registries[index].streams.insert(stream, (pipe, 0));
                }
            }
            Effect::Send { stream, messages } => {
                if let Some((pipe, side)) = self.registries[index].streams.get(&stream).copied() {
                    for message in messages {
                        let message = self.tell_truth_or_lie(index, message);
                        self.send(pipe, side, PipeBody::Sync(message));
                    }
                }
            }
            Effect::CloseStream { stream, .. } => {
                if let Some((pipe, side)) = self.registries[index].streams.remove(&stream) {
                    self.close_pipe(pipe, side);
                }
            }
            Effect::DocumentChanged { .. } | Effect::Alarm(_) => {}
        }
    }

    /// The watcher took a page of its snapshot.
    pub fn watch_rest(&mut self, index: usize, watcher: WatcherId) -> Result<(), Broken> {
        self.registry_input(index, Input::WatchRest { watcher })
    }

    fn registry_writes(&mut self, index: usize, ticket: Ticket) {
        let to = self.life(Node::Registry(index));
        self.registries[index].idle = false;
        let took = Duration::from_micros(300 + self.rng.below(4_000));
        self.later(took, Event::Synced { to, ticket });
    }

    pub fn registry_synced(&mut self, index: usize, ticket: Ticket) -> Result<(), Broken> {
        let registry = &mut self.registries[index];
        registry.disk.sync_first();
        registry.idle = true;
        self.registry_input(index, Input::Appended { ticket })?;
        self.check_replay(index)
    }

    pub fn serve_registry(
        &mut self,
        index: usize,
        call: u64,
        peer: SpiffeId,
        body: CallBody,
    ) -> Result<(), Broken> {
        let CallBody::Registry(command) = body else {
            return Ok(());
        };
        let input = Input::Call {
            call: CallId(call),
            peer: self.peer(index, peer),
            command: *command,
        };
        self.registry_input(index, input)
    }

    pub fn registry_accepts(
        &mut self,
        index: usize,
        pipe: u64,
        peer: SpiffeId,
        kind: PipeKind,
    ) -> Result<(), Broken> {
        self.accept_pipe(pipe, None);
        match kind {
            PipeKind::Watch { query } => {
                let input = Input::Watch {
                    watcher: WatcherId(pipe),
                    peer: self.peer(index, peer),
                    query,
                };
                self.registry_input(index, input)
            }
            PipeKind::Sync { .. } => {
                let stream = StreamId::Accepted(pipe);
                self.registries[index].streams.insert(stream, (pipe, 1));
                let peer = self.peer(index, peer);
                self.registry_input(index, Input::SyncOpened { stream, peer })
            }
            PipeKind::Routes { .. } | PipeKind::Monitor { .. } => Ok(()),
        }
    }

    pub fn registry_pipe_ready(
        &mut self,
        index: usize,
        _pipe: u64,
        peer: SpiffeId,
        kind: &PipeKind,
    ) -> Result<(), Broken> {
        match kind {
            PipeKind::Sync { stream } => {
                let peer = self.peer(index, peer);
                self.registry_input(
                    index,
                    Input::SyncOpened {
                        stream: *stream,
                        peer,
                    },
                )
            }
            PipeKind::Watch { .. } | PipeKind::Routes { .. } | PipeKind::Monitor { .. } => Ok(()),
        }
    }

    pub fn registry_pipe_data(
        &mut self,
        index: usize,
        pipe: u64,
        side: usize,
        kind: &PipeKind,
        body: PipeBody,
    ) -> Result<(), Broken> {
        let (PipeKind::Sync { stream }, PipeBody::Sync(message)) = (kind, body) else {
            return Ok(());
        };
        let stream = if side == 0 {
            *stream
        } else {
            StreamId::Accepted(pipe)
        };
        self.registry_input(index, Input::SyncReceived { stream, message })
    }

    pub fn registry_pipe_ended(
        &mut self,
        index: usize,
        pipe: u64,
        side: usize,
        kind: &PipeKind,
    ) -> Result<(), Broken> {
        match kind {
            PipeKind::Watch { .. } if side == 1 => self.registry_input(
                index,
                Input::Unwatch {
                    watcher: WatcherId(pipe),
                },
            ),
            PipeKind::Sync { stream } => {
                let stream = if side == 0 {
                    *stream
                } else {
                    StreamId::Accepted(pipe)
                };
                self.registries[index].streams.remove(&stream);
                self.registry_input(
                    index,
                    Input::SyncClosed {
                        stream,
                        reason: "the stream broke".to_owned(),
                    },
                )
            }
            PipeKind::Watch { .. } | PipeKind::Routes { .. } | PipeKind::Monitor { .. } => Ok(()),
        }
    }

    /// What TLS says about a caller: the networks whose documents vouch for it.
    fn peer(&self, index: usize, id: SpiffeId) -> Peer {
        if id.trust_domain() == trust_domain(index) {
            return Peer::own(id);
        }
        let machine = self.registries[index].machine.as_ref();
        let vouching = machine
            .into_iter()
            .flat_map(RegistryMachine::documents)
            .filter(|chain| {
                chain
                    .document()
                    .members
                    .values()
                    .any(|member| member.trust_domain == id.trust_domain())
            });
        Peer::vouched(id.clone(), vouching.map(Chain::uid).collect())
    }

    /// A person hands a document to a registry.
    pub fn publish(&mut self, domain: usize, chain: Chain) {
        let body = CallBody::Registry(Box::new(Command::Publish { chain }));
        let (from, to) = (Node::Operator(domain), Node::Registry(domain));
        self.call(from, to, body, crate::event::Awaits::Nothing);
    }

    /// A lying registry says that its endpoints belong to another domain.
    fn tell_truth_or_lie(
        &mut self,
        index: usize,
        message: vl3_core::federation::SyncMessage,
    ) -> vl3_core::federation::SyncMessage {
        use vl3_core::federation::SyncMessage;
        use vl3_core::registry::LABEL_DOMAIN;
        if !self.registries[index].lies {
            return message;
        }
        let SyncMessage::Upsert {
            sequence,
            uid,
            endpoint,
            lifetime,
        } = message
        else {
            return message;
        };
        let victim = domain_name((index + 1) % self.cast.domains).to_string();
        let mut endpoint = Arc::unwrap_or_clone(endpoint);
        for labels in endpoint.labels.values_mut() {
            labels.insert(LABEL_DOMAIN.to_owned(), victim.clone());
        }
        self.tally.count(Fault::ForeignName);
        SyncMessage::Upsert {
            sequence,
            uid,
            endpoint: Arc::new(endpoint),
            lifetime,
        }
    }
}
