//! One attachment: its machine, and the task that moves bytes and time for it.

mod calls;
mod install;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use vl3_core::heal::{
    AttachmentConfig, AttachmentMachine, Effect, Failure, Input, MonitorEvent, State, Timing,
};
use vl3_core::time::Mono;
use vl3_core::{Machine, Outbox, Ticket};
use vl3_net::Netlink;
use vl3_proto::connection::Connection;
use vl3_runtime::grpc;
use vl3_runtime::{ReadyItem, Tasks, clock};

use crate::answer::Accepted;
use crate::config::{Attach, Mechanism};
use crate::control::{Control, Outcome};
use crate::host::HostHandle;
use crate::probe::{Prober, Reply};
use crate::request::Template;
use crate::status::{Counters, Status};
use crate::tun::Tun;
use crate::wireguard::Wireguard;

/// Answers that wait for the task; more senders wait.
const INBOX: usize = 64;
/// A network waits this long for those before it in the configuration, so that it can ask for
/// other addresses than theirs.
const EARLIER_LIMIT: Duration = Duration::from_secs(1);

/// What comes back from the calls and tasks of an attachment.
#[derive(Debug)]
pub(crate) enum Event {
    Machine(Input),
    Answered {
        ticket: Ticket,
        url: String,
        outcome: Outcome,
    },
    Replied(Reply),
    /// The descriptor's way to the router ended; counted, so that an old end is told apart.
    PathEnded(u64),
    /// A worker of the data plane died: the process must end.
    Broken(String),
}

/// Everything an attachment is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) position: usize,
    pub(crate) attach: Attach,
    pub(crate) interface: String,
    pub(crate) template: Template,
    pub(crate) control: Control,
    pub(crate) host: HostHandle,
    pub(crate) netlink: Netlink,
    pub(crate) exclude: Vec<IpNet>,
    pub(crate) key: [u8; 32],
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) counters: Counters,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) ready: ReadyItem,
    pub(crate) shutdown: CancellationToken,
}

enum Shell {
    Tun(Tun),
    Wireguard(Box<Wireguard>),
}

pub(crate) struct Attachment {
    parts: Parts,
    machine: AttachmentMachine,
    out: Outbox<Effect>,
    inbox: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
    shell: Shell,
    /// As last answered, by whom, and over what.
    last: Option<(String, Connection)>,
    server_id: watch::Sender<String>,
    via: Option<(String, grpc::Connection)>,
    accepted: Option<Accepted>,
    prober: Option<Prober>,
    last_probe: Option<Mono>,
    last_reply: Option<Mono>,
    followers: Vec<AbortHandle>,
    path_epoch: u64,
    first_dial: Option<Mono>,
}

impl Attachment {
    /// Opens what the mechanism needs before the first Request.
    pub(crate) fn new(parts: Parts) -> anyhow::Result<Self> {
        let (events, inbox) = mpsc::channel(INBOX);
        let shell = match parts.attach.mechanism {
            Mechanism::Tun => Shell::Tun(Tun::default()),
            Mechanism::Wireguard => {
                let events = events.clone();
                let plane = Wireguard::start(
                    parts.key,
                    parts.attach.udp_listen,
                    parts.attach.workers,
                    move |event| {
                        if let vl3_dataplane::Event::WorkerDied { worker } = event {
                            // Full: the task is about to find out by silence.
                            let _full = events.try_send(Event::Broken(format!(
                                "data-plane worker {worker} died"
                            )));
                        }
                    },
                )?;
                Shell::Wireguard(Box::new(plane))
            }
        };
        let machine = AttachmentMachine::new(AttachmentConfig {
            candidates: parts
                .attach
                .connect_to
                .iter()
                .map(crate::config::ConnectTo::candidate)
                .collect(),
            timing: Timing::default(),
            seed: rand::random(),
        });
        Ok(Self {
            parts,
            machine,
            out: Outbox::default(),
            inbox,
            events,
            shell,
            last: None,
            server_id: watch::Sender::new(String::new()),
            via: None,
            accepted: None,
            prober: None,
            last_probe: None,
            last_reply: None,
            followers: Vec::new(),
            path_epoch: 0,
            first_dial: None,
        })
    }

    /// Runs until the shutdown has closed the connection and taken the interface away.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        self.machine
            .handle(Input::Start, clock::now(), &mut self.out);
        loop {
            // An install is answered inline, which may call for more.
            while !self.out.is_empty() {
                self.execute().await;
            }
            self.publish();
            if self.machine.state() == State::Stopped {
                return Ok(());
            }
            let deadline = self.machine.next_wake().map(|(at, _)| at);
            let stopping = self.machine.state() == State::Stopping;
            tokio::select! {
                biased;
                () = self.parts.shutdown.cancelled(), if !stopping => {
                    self.machine.handle(Input::Stop, clock::now(), &mut self.out);
                }
                event = self.inbox.recv() => {
                    // The task holds a sender itself, so the channel never ends.
                    if let Some(event) = event {
                        self.take(event)?;
                    }
                }
                () = clock::sleep_until(deadline) => {
                    self.machine.wake(clock::now(), &mut self.out);
                }
            }
        }
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        let input = match event {
            Event::Machine(input) => {
                if let Input::Monitor {
                    event: MonitorEvent::Ended,
                    ..
                } = input
                {
                    // Dialled anew rather than found broken by the next call.
                    self.via = None;
                }
                input
            }
            Event::Answered {
                ticket,
                url,
                outcome,
            } => Input::Answered {
                ticket,
                result: self.answered(url, outcome),
            },
            Event::Replied(reply) => {
                let first = self.last_reply.is_none();
                self.replied(reply);
                if first {
                    // The machine stops hurrying at once.
                    self.sample();
                }
                return Ok(());
            }
            Event::PathEnded(epoch) if epoch == self.path_epoch => {
                tracing::info!(network = %self.parts.template.network, "the router's end of the descriptor is gone");
                Input::DataPathLost
            }
            Event::PathEnded(_) => return Ok(()),
            Event::Broken(reason) => anyhow::bail!(reason),
        };
        self.machine.handle(input, clock::now(), &mut self.out);
        Ok(())
    }

    fn answered(
        &mut self,
        url: String,
        outcome: Outcome,
    ) -> Result<vl3_core::heal::Answer, Failure> {
        let network = self.parts.template.network.as_str();
        match outcome {
            Outcome::Accepted {
                connection,
                accepted,
                via,
            } => {
                if let Err(taken) = self
                    .parts
                    .host
                    .reserve(self.parts.position, &accepted.addresses)
                {
                    tracing::warn!(
                        network,
                        "context.ip_context.src_ip_addrs: {taken} is not allowed: \
                         an address that no other network of this client uses; the answer is closed"
                    );
                    return self.answered(url, Outcome::Bad { connection, via });
                }
                self.parts.counters.request(network, "accepted");
                let summary = accepted.summary();
                self.server_id.send_replace(server_id(&connection));
                self.last = Some((url.clone(), *connection));
                self.via = Some((url, via));
                self.accepted = Some(*accepted);
                Ok(summary)
            }
            Outcome::Bad { connection, via } => {
                self.parts.counters.request(network, "bad_answer");
                self.last = Some((url.clone(), *connection));
                self.via = Some((url, via));
                Err(Failure::BadAnswer)
            }
            Outcome::Failed(failure) => {
                self.parts.counters.request(
                    network,
                    if failure == Failure::Unreachable {
                        "unreachable"
                    } else {
                        "refused"
                    },
                );
                if failure == Failure::Unreachable {
                    self.via = None;
                }
                Err(failure)
            }
        }
    }

    fn replied(&mut self, reply: Reply) {
        self.last_reply = Some(reply.at);
        let first_dial = self.first_dial;
        self.parts.status.send_modify(|status| {
            status.rtt = Some(reply.rtt);
            status.last_receipt = Some(reply.at);
            if status.attached_after.is_none() {
                status.attached_after = first_dial.map(|start| reply.at.saturating_since(start));
            }
        });
    }

    async fn execute(&mut self) {
        for effect in self.out.take() {
            match effect {
                Effect::Find { ticket } => self.find(ticket),
                Effect::Request { ticket, url, kind } => self.request(ticket, url, kind).await,
                Effect::Install { ticket } => self.install(ticket).await,
                Effect::Close { ticket, url } => self.close(ticket, url),
                Effect::Uninstall => self.uninstall().await,
                Effect::Monitor { ticket, url } => self.monitor(ticket, &url),
                Effect::StopMonitor => self.stop_followers(),
                Effect::Sample => self.sample(),
                Effect::Probe => {
                    if let Some(prober) = &mut self.prober {
                        self.last_probe = prober.probe().or(self.last_probe);
                    }
                }
            }
        }
    }

    fn sample(&mut self) {
        let (last_send, last_receipt) = match &self.shell {
            Shell::Wireguard(plane) => {
                let (sent, received) = plane.traffic();
                (sent.max(self.last_probe), received.max(self.last_reply))
            }
            Shell::Tun(_) => (self.last_probe, self.last_reply),
        };
        let drops = match &self.shell {
            Shell::Wireguard(plane) => plane.drops(),
            Shell::Tun(_) => Vec::new(),
        };
        self.parts.status.send_modify(|status| {
            status.last_receipt = last_receipt;
            status.drops = drops;
        });
        self.machine.handle(
            Input::Traffic {
                last_send,
                last_receipt,
            },
            clock::now(),
            &mut self.out,
        );
    }

    /// Publishes what changed.
    fn publish(&self) {
        let state = self.machine.state();
        let accepted = self.accepted.as_ref();
        let held = self.machine.held();
        let document_version = self.parts.control.documents.current().version;
        self.parts.ready.set(matches!(
            state,
            State::Up | State::Healing { data: true, .. }
        ));
        self.parts.status.send_if_modified(|status| {
            let was = status.state;
            let url = held.map(|(url, _)| url.to_owned());
            let addresses = accepted.map(|accepted| accepted.addresses.clone()).unwrap_or_default();
            let changed = was != state
                || status.url != url
                || status.addresses != addresses
                || status.document_version != document_version;
            if !changed {
                return false;
            }
            if was != state {
                tracing::info!(network = status.network, interface = status.interface, ?was, is = ?state, "attachment");
                self.parts.counters.state(&status.network, was, state);
            }
            status.state = state;
            status.url = url;
            status.router = held.map(|(_, answer)| answer.router.name.to_string());
            status.generation = held.and_then(|(_, answer)| answer.router.generation.map(|generation| generation.0));
            status.addresses = addresses;
            status.router_addresses = accepted
                .map(|accepted| accepted.router_addresses.clone())
                .unwrap_or_default();
            status.routes = accepted.map(|accepted| accepted.routes.clone()).unwrap_or_default();
            status.mtu = accepted.map(|accepted| accepted.mtu);
            status.dns_servers = accepted.map(|accepted| accepted.dns_servers.clone()).unwrap_or_default();
            status.search = accepted.map(|accepted| accepted.search.clone()).unwrap_or_default();
            status.document_version = document_version;
            true
        });
    }
}

/// The id of the segment after our own.
fn server_id(connection: &Connection) -> String {
    let next = connection
        .path
        .as_ref()
        .and_then(|path| path.path_segments.get(1));
    next.map(|segment| segment.id.clone()).unwrap_or_default()
}
