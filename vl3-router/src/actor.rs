//! The one owner of the machine: takes inputs in order, runs effects, wakes it in time.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use vl3_core::ids::SpiffeId;
use vl3_core::router::{
    Answer, CallId, ConnectionId, Effect, FdEvent, FdGrant, FdSession, Input, Refusal, Request,
    RouterMachine, RoutesEvent, RoutesMessage, RoutesOpen, StreamId,
};
use vl3_core::{Machine as _, Outbox, Ticket};
use vl3_runtime::CancellationToken;
use vl3_runtime::{Documents, ReadyItem, Tasks, clock};

use crate::dial::Dials;
use crate::metrics::Shared;
use crate::narrate::{Line, Narrator};
use crate::own::{Own, OwnSockets};
use crate::plane::Plane;
use crate::registry::Registry;
use crate::resolver::Resolvers;
use crate::routes::Writer;
use crate::service::Closer;
use crate::store::Store;

/// Inputs that wait; senders wait for room, callbacks of the data plane drop and count.
const INPUTS_MAX: usize = 4096;
/// Inputs that share one derived table; more make a batch of their own.
const BATCH_MAX: usize = 64;
/// What is given back when the router leaves has this long to arrive.
const LEAVE_WITHIN: core::time::Duration = core::time::Duration::from_secs(3);

/// Netlink answers at once or not at all.
const OWN_WITHIN: core::time::Duration = core::time::Duration::from_secs(5);

/// What reaches the actor.
pub(crate) enum Command {
    Input(Input),
    Request {
        request: Box<Request>,
        reply: oneshot::Sender<Result<Answer, Refusal>>,
    },
    Close {
        connection: ConnectionId,
        peer: SpiffeId,
        reply: oneshot::Sender<Result<Answer, Refusal>>,
    },
    Leave {
        reply: oneshot::Sender<Result<Answer, Refusal>>,
    },
    Fd {
        session: FdSession,
        event: FdEvent,
        descriptor: Option<OwnedFd>,
        reply: FdReplySender,
    },
    RoutesOpened {
        stream: StreamId,
        writer: Writer,
        event: RoutesEvent,
    },
    Status {
        reply: oneshot::Sender<Value>,
    },
    RoutesOpen {
        reply: oneshot::Sender<RoutesOpen>,
    },
}

/// The grant, and the descriptor where one is passed back.
pub(crate) type FdReplySender = Option<oneshot::Sender<Result<Option<OwnedFd>, String>>>;

/// Talks to the actor. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    next: Arc<AtomicU64>,
}

pub(crate) type Commands = mpsc::Receiver<Command>;

impl Handle {
    pub(crate) fn new() -> (Self, Commands) {
        let (commands, receiver) = mpsc::channel(INPUTS_MAX);
        (
            Self {
                commands,
                next: Arc::default(),
            },
            receiver,
        )
    }

    /// A number for a session or stream, each once.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for room. After the actor's end inputs go nowhere: the process is stopping.
    pub(crate) async fn send(&self, command: Command) {
        let _stopping = self.commands.send(command).await;
    }

    pub(crate) async fn tell(&self, input: Input) {
        self.send(Command::Input(input)).await;
    }

    /// For callbacks that must not wait; false when the queue is full.
    pub(crate) fn try_tell(&self, input: Input) -> bool {
        self.commands.try_send(Command::Input(input)).is_ok()
    }

    pub(crate) async fn call(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<Answer, Refusal>>) -> Command,
    ) -> Result<Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await;
        answer.await.unwrap_or_else(|_| {
            Err(Refusal::Unavailable {
                reason: "the router is stopping".to_owned(),
            })
        })
    }

    /// What this router says first on a routes stream; unset while the router stops.
    pub(crate) async fn routes_open(&self) -> Option<RoutesOpen> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::RoutesOpen { reply }).await;
        answer.await.ok()
    }

    pub(crate) async fn status(&self) -> Value {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Status { reply }).await;
        answer.await.unwrap_or_default()
    }
}

/// What the effects work on.
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) plane: Plane,
    pub(crate) own: Arc<tokio::sync::Mutex<Own>>,
    /// Met while the own addresses are those of the lease.
    pub(crate) own_ready: ReadyItem,
    pub(crate) own_sockets: tokio::sync::watch::Sender<Option<OwnSockets>>,
    pub(crate) dials: Dials,
    pub(crate) registry: Registry,
    pub(crate) resolvers: Resolvers,
    pub(crate) closer: Closer,
    pub(crate) documents: Documents,
    pub(crate) metrics: Shared,
}

pub(crate) struct Actor {
    machine: RouterMachine,
    handle: Handle,
    parts: Parts,
    tasks: Tasks,
    calls: BTreeMap<CallId, oneshot::Sender<Result<Answer, Refusal>>>,
    next_call: u64,
    descriptors: BTreeMap<FdSession, OwnedFd>,
    fd_replies: BTreeMap<FdSession, oneshot::Sender<Result<Option<OwnedFd>, String>>>,
    streams: BTreeMap<StreamId, Writer>,
    ready: VecDeque<Input>,
    /// The call of an operator who takes this router out for good.
    leaving: Option<CallId>,
    left: bool,
    narrator: Narrator,
}

impl Actor {
    pub(crate) fn new(machine: RouterMachine, handle: Handle, parts: Parts) -> Self {
        Self {
            machine,
            handle,
            parts,
            tasks: Tasks::new("router"),
            calls: BTreeMap::new(),
            next_call: 0,
            descriptors: BTreeMap::new(),
            fd_replies: BTreeMap::new(),
            streams: BTreeMap::new(),
            ready: VecDeque::from([Input::Start]),
            leaving: None,
            left: false,
            narrator: Narrator::default(),
        }
    }

    /// Until shutdown: what is stored stays, so that traffic goes on at the next start.
    pub(crate) async fn run(
        mut self,
        mut commands: Commands,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut out = Outbox::default();
        loop {
            while !self.ready.is_empty() {
                let batch = self.ready.len().min(BATCH_MAX);
                self.machine
                    .handle_all(self.ready.drain(..batch), clock::now(), &mut out);
                self.effects(&mut out).await;
            }
            if self.left {
                shutdown.cancel();
            }
            let counts = self.machine.counts();
            self.parts.own_ready.set(counts.own_set);
            self.parts.metrics.set(counts);
            let deadline = self.machine.next_wake().map(|(deadline, _)| deadline);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                command = commands.recv() => match command {
                    Some(command) => {
                        self.command(command);
                        // What waits already is handled with it.
                        while self.ready.len() < BATCH_MAX
                            && let Ok(command) = commands.try_recv()
                        {
                            self.command(command);
                        }
                    }
                    None => return Ok(()),
                },
                () = clock::sleep_until(deadline) => {
                    self.machine.wake(clock::now(), &mut out);
                    self.effects(&mut out).await;
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Input(input) => {
                if let Input::Routes {
                    stream,
                    event: RoutesEvent::Ended,
                } = &input
                {
                    self.streams.remove(stream);
                    self.say(|narrator| narrator.stream_ended(*stream));
                }
                self.ready.push_back(input);
            }
            Command::Request { request, reply } => {
                let call = self.call(reply);
                self.ready.push_back(Input::Request { call, request });
            }
            Command::Close {
                connection,
                peer,
                reply,
            } => {
                let call = self.call(reply);
                self.ready.push_back(Input::Close {
                    call,
                    connection,
                    peer,
                });
            }
            Command::Leave { reply } => {
                let call = self.call(reply);
                self.leaving = Some(call);
                self.ready.push_back(Input::Leave { call });
            }
            Command::Fd {
                session,
                event,
                descriptor,
                reply,
            } => {
                if let Some(descriptor) = descriptor {
                    self.descriptors.insert(session, descriptor);
                }
                if let Some(reply) = reply {
                    self.fd_replies.insert(session, reply);
                }
                if event == FdEvent::Closed {
                    self.descriptors.remove(&session);
                    self.fd_replies.remove(&session);
                }
                self.ready.push_back(Input::Fd { session, event });
            }
            Command::RoutesOpened {
                stream,
                writer,
                event,
            } => {
                self.streams.insert(stream, writer);
                if let RoutesEvent::Started { open, .. } = &event {
                    self.say(|narrator| narrator.stream_started(stream, open.router.clone()));
                }
                self.ready.push_back(Input::Routes { stream, event });
            }
            Command::RoutesOpen { reply } => {
                let _gone = reply.send(self.machine.routes_open());
            }
            Command::Status { reply } => {
                let status = crate::status::of(&mut self.machine, &self.parts.plane);
                // Who asked has gone: nothing to do.
                let _gone = reply.send(status);
            }
        }
    }

    fn call(&mut self, reply: oneshot::Sender<Result<Answer, Refusal>>) -> CallId {
        self.next_call += 1;
        let call = CallId(self.next_call);
        self.calls.insert(call, reply);
        call
    }

    async fn effects(&mut self, out: &mut Outbox<Effect>) {
        for effect in out.take() {
            self.effect(effect).await;
        }
    }

    async fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Append { ticket, records } => {
                let (store, handle) = (Arc::clone(&self.parts.store), self.handle.clone());
                let documents = self.parts.documents.clone();
                self.tasks.spawn_detached("append", async move {
                    let written = tokio::task::spawn_blocking(move || {
                        crate::documents::append(&store, &documents, &records)
                    })
                    .await;
                    let result = match written {
                        Ok(result) => result.map_err(|error| format!("{error:#}")),
                        Err(panic) => Err(panic.to_string()),
                    };
                    if let Err(error) = &result {
                        tracing::error!(error, "the state directory takes no records");
                    }
                    handle.tell(Input::Appended { ticket, result }).await;
                });
            }
            Effect::SetPeer { ticket, peer } => {
                let result = self.parts.plane.set_peer(peer);
                self.ready.push_back(Input::Installed { ticket, result });
            }
            Effect::SetTun {
                ticket,
                session,
                port,
                class,
                mtu,
            } => {
                let result = match self.descriptors.remove(&session) {
                    Some(descriptor) => self.parts.plane.set_tun(port, class, mtu, descriptor),
                    None => Err("the client went away".to_owned()),
                };
                self.ready.push_back(Input::Installed { ticket, result });
            }
            Effect::RemovePort { port } => self.parts.plane.remove(port),
            Effect::SetRoutes { routes } => self.parts.plane.handle().set_routes(routes),
            Effect::SetOwnAddresses {
                ticket,
                addresses,
                mtu,
            } => self.set_own(ticket, addresses, mtu),
            Effect::Answer { call, result } => {
                // A store that fails keeps what is held: then the operator is told, and may ask
                // again.
                if self.leaving == Some(call) && result.is_ok() {
                    // What is given back travels before the process ends.
                    self.tasks.drain(LEAVE_WITHIN).await;
                    self.left = true;
                }
                if let Some(reply) = self.calls.remove(&call) {
                    let _gone = reply.send(result);
                }
            }
            Effect::ConnectionClosed { connection, reason } => {
                tracing::info!(%connection, reason, "connection closed");
                let closer = self.parts.closer.clone();
                self.tasks
                    .spawn_detached("close", async move { closer.close(&connection).await });
            }
            Effect::Dial { ticket, dial } => self.parts.dials.dial(&self.tasks, ticket, *dial),
            Effect::CloseDial { dial } => self.parts.dials.close(&self.tasks, dial),
            Effect::OpenRoutes { dial, open } => {
                self.parts.dials.open_routes(&self.tasks, dial, open)
            }
            Effect::SendRoutes { stream, messages } => self.send_routes(stream, messages),
            Effect::CloseRoutes { stream, reason } => {
                tracing::debug!(stream = stream.0, reason, "closing a routes stream");
                if self.streams.remove(&stream).is_some() {
                    self.say(|narrator| narrator.stream_ended(stream));
                    self.ready.push_back(Input::Routes {
                        stream,
                        event: RoutesEvent::Ended,
                    });
                }
            }
            Effect::AnswerFd { session, result } => self.answer_fd(session, result),
            Effect::AcquireLease {
                ticket,
                held,
                prefix_len4,
                exclusions,
            } => {
                self.parts
                    .registry
                    .acquire(&self.tasks, ticket, held, prefix_len4, exclusions);
            }
            Effect::RenewLease { ticket, lease } => {
                self.parts.registry.renew(&self.tasks, ticket, lease)
            }
            Effect::ReleaseLease { lease } => self.parts.registry.release(&self.tasks, lease),
            Effect::ClaimName {
                ticket,
                name,
                workload,
                addresses,
            } => {
                self.parts
                    .registry
                    .claim(&self.tasks, ticket, name, workload, addresses);
            }
            Effect::ReleaseName { name, workload } => {
                self.parts
                    .registry
                    .release_name(&self.tasks, name, workload);
            }
            Effect::Register { registration } => self.parts.registry.register(Some(registration)),
            Effect::Unregister => self.parts.registry.unregister(&self.tasks),
            Effect::CedeRegistration => self.parts.registry.register(None),
            Effect::Probe {
                port,
                source,
                destination,
            } => self.parts.plane.probe(port, source, destination),
            Effect::ReadPorts => {
                let samples = self.parts.plane.samples();
                self.ready.push_back(Input::Ports(samples));
            }
            Effect::Publish { view } => {
                self.say(|narrator| narrator.published(&view));
                self.parts.resolvers.publish(*view);
            }
        }
    }

    fn say<L: IntoIterator<Item = Line>>(&mut self, change: impl FnOnce(&mut Narrator) -> L) {
        for line in change(&mut self.narrator) {
            line.log();
        }
    }

    /// The kernel is asked beside the machine: Requests do not wait for it.
    fn set_own(&self, ticket: Ticket, addresses: Vec<ipnet::IpNet>, mtu: u16) {
        let (own, plane) = (Arc::clone(&self.parts.own), self.parts.plane.handle());
        let (sockets, handle) = (self.parts.own_sockets.clone(), self.handle.clone());
        self.tasks.spawn_detached("own addresses", async move {
            let mut own = own.lock().await;
            let set = own.set_addresses(&addresses, mtu);
            let result = match tokio::time::timeout(OWN_WITHIN, set).await {
                Ok(result) => result.map_err(|error| format!("{error:#}")),
                Err(_) => Err(format!("the kernel has not answered within {OWN_WITHIN:?}")),
            };
            match &result {
                Ok(()) => {
                    if !addresses.is_empty() {
                        tracing::info!(?addresses, "prefix leased, own addresses set");
                    }
                    plane.set_own_addresses(addresses.iter().map(ipnet::IpNet::addr).collect());
                    sockets.send_replace(Some(own.sockets()));
                }
                Err(error) => tracing::error!(error, "the own addresses cannot be set"),
            }
            handle.tell(Input::Installed { ticket, result }).await;
        });
    }

    /// A reader that falls behind loses its stream and starts over with a snapshot.
    fn send_routes(&mut self, stream: StreamId, messages: Vec<RoutesMessage>) {
        let Some(writer) = self.streams.get(&stream) else {
            return;
        };
        let sent = messages.into_iter().all(|message| writer.send(message));
        if !sent {
            tracing::warn!(
                stream = stream.0,
                "a routes stream is cut: its reader falls behind"
            );
            self.streams.remove(&stream);
            self.say(|narrator| narrator.stream_ended(stream));
            self.ready.push_back(Input::Routes {
                stream,
                event: RoutesEvent::Ended,
            });
        }
    }

    fn answer_fd(&mut self, session: FdSession, result: Result<FdGrant, String>) {
        let Some(reply) = self.fd_replies.remove(&session) else {
            return;
        };
        let result = result.and_then(|grant| match grant {
            FdGrant::Attached => Ok(None),
            FdGrant::Reattached { port } => self
                .parts
                .plane
                .descriptor(port)
                .map(Some)
                .ok_or_else(|| "this router holds no descriptor of the connection".to_owned()),
        });
        // A descriptor that nobody was told to use goes.
        self.descriptors.remove(&session);
        let _gone = reply.send(result);
    }
}
