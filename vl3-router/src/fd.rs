//! `fd.sock`: descriptors come from workloads with a ticket, and go to the DNS server.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::Context as _;
use prost::Message as _;
use tokio::sync::{oneshot, watch};
use vl3_core::router::{FdEvent, FdSession};
use vl3_net::fdpass::{Connection, Listener};
use vl3_proto::vl3::router::v1::{FdReply, FdRequest, fd_request::Body};
use vl3_runtime::{CancellationToken, Tasks};

use crate::actor::{Command, Handle};
use crate::own::OwnSockets;

/// Connections at once: each workload by TUN holds one.
const SESSIONS_MAX: usize = 4096;

/// Serves until shutdown.
pub(crate) async fn serve(
    path: &Path,
    handle: Handle,
    own: watch::Receiver<Option<OwnSockets>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = Listener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    let tasks = Tasks::new("fd.sock");
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(SESSIONS_MAX));
    loop {
        let connection = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted.context("accept on fd.sock")?,
        };
        let Ok(permit) = std::sync::Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!(
                limit = SESSIONS_MAX,
                "fd.sock is full; a client is turned away"
            );
            continue;
        };
        let session = Session {
            id: FdSession(handle.number()),
            handle: handle.clone(),
            own: own.clone(),
            connection,
        };
        tasks.spawn_detached("fd session", async move {
            let _permit = permit;
            session.run().await;
        });
    }
}

struct Session {
    id: FdSession,
    handle: Handle,
    own: watch::Receiver<Option<OwnSockets>>,
    connection: Connection,
}

/// Sockets that go back, with their addresses.
type Passed = Vec<(Option<SocketAddr>, OwnedFd)>;

impl Session {
    async fn run(self) {
        // An error on a local socket means that the other end is gone.
        while let Ok(Some((message, descriptors))) = self.connection.recv().await {
            let result = match FdRequest::decode(message.as_slice()) {
                Ok(FdRequest { body: Some(body) }) => self.request(body, descriptors).await,
                Ok(FdRequest { body: None }) | Err(_) => Err("no FdRequest with a body".to_owned()),
            };
            if self.reply(result).await.is_err() {
                break;
            }
        }
        let closed = Command::Fd {
            session: self.id,
            event: FdEvent::Closed,
            descriptor: None,
            reply: None,
        };
        self.handle.send(closed).await;
    }

    async fn request(&self, body: Body, descriptors: Vec<OwnedFd>) -> Result<Passed, String> {
        match body {
            Body::Attach(attach) => {
                let secret = ticket(&attach.ticket)?;
                let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|found| {
                    format!("Attach carries one descriptor, not {}", found.len())
                })?;
                self.ask(FdEvent::Attach { secret }, Some(descriptor)).await
            }
            Body::Reattach(reattach) => {
                self.ask(
                    FdEvent::Reattach {
                        secret: ticket(&reattach.ticket)?,
                    },
                    None,
                )
                .await
            }
            Body::Listen(_) => {
                let sockets = self
                    .own_sockets()?
                    .listeners()
                    .map_err(|error| format!("{error:#}"))?;
                Ok(sockets
                    .into_iter()
                    .map(|(at, socket)| (Some(at), socket))
                    .collect())
            }
            Body::Dial(dial) => {
                let (at, socket) = self
                    .own_sockets()?
                    .outgoing(dial.ipv6, dial.tcp)
                    .map_err(|error| format!("{error:#}"))?;
                Ok(vec![(Some(at), socket)])
            }
        }
    }

    /// The sockets at the own address are for the router's own user (the DNS server) alone.
    fn own_sockets(&self) -> Result<OwnSockets, String> {
        let peer = self.connection.peer().map_err(|error| error.to_string())?;
        let own = nix::unistd::geteuid().as_raw();
        if peer.uid != own && peer.uid != 0 {
            return Err(format!(
                "user {} may not use the router's address; user {own} may",
                peer.uid
            ));
        }
        self.own
            .borrow()
            .clone()
            .ok_or_else(|| "the router has no address yet".to_owned())
    }

    async fn ask(&self, event: FdEvent, descriptor: Option<OwnedFd>) -> Result<Passed, String> {
        let (reply, answer) = oneshot::channel();
        self.handle
            .send(Command::Fd {
                session: self.id,
                event,
                descriptor,
                reply: Some(reply),
            })
            .await;
        let passed = answer
            .await
            .map_err(|_| "the router is stopping".to_owned())??;
        Ok(passed
            .into_iter()
            .map(|descriptor| (None, descriptor))
            .collect())
    }

    async fn reply(&self, result: Result<Passed, String>) -> std::io::Result<()> {
        let (reply, passed) = match result {
            Ok(passed) => {
                let addresses = passed
                    .iter()
                    .filter_map(|(at, _)| at.map(|at| at.to_string()))
                    .collect();
                (
                    FdReply {
                        ok: true,
                        reason: String::new(),
                        addresses,
                    },
                    passed,
                )
            }
            Err(reason) => (
                FdReply {
                    ok: false,
                    reason,
                    addresses: Vec::new(),
                },
                Vec::new(),
            ),
        };
        let descriptors: Vec<BorrowedFd<'_>> = passed
            .iter()
            .map(|(_, descriptor)| descriptor.as_fd())
            .collect();
        self.connection
            .send(&reply.encode_to_vec(), &descriptors)
            .await
    }
}

fn ticket(bytes: &[u8]) -> Result<[u8; 16], String> {
    bytes
        .try_into()
        .map_err(|_| format!("ticket: {} bytes are not allowed: 16", bytes.len()))
}
