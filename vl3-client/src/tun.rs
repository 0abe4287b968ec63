//! Mechanism TUN: a descriptor handed to a router on the same machine.
//!
//! The client makes the interface in its own namespace, passes the descriptor over the router's
//! `fd.sock` and keeps a duplicate, so that the interface survives the router; the router keeps
//! its copy, so that the interface survives a restart of the client. An open `fd.sock` is each
//! side's sign that the other one lives.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use prost::Message as _;
use tokio::task::AbortHandle;
use vl3_net::fdpass::Connection;
use vl3_proto::TunAnswer;
use vl3_proto::connection::Mechanism;
use vl3_proto::vl3::router::v1::{FdAttach, FdReattach, FdReply, FdRequest, fd_request};
use vl3_runtime::Tasks;

/// The router answers from memory.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The interface of one attachment and its way to the router.
#[derive(Debug, Default)]
pub(crate) struct Tun {
    descriptor: Option<OwnedFd>,
    attached: Option<Attached>,
}

#[derive(Debug)]
struct Attached {
    socket: Arc<Connection>,
    watcher: AbortHandle,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Tun {
    pub(crate) fn preference(interface: &str) -> Mechanism {
        Mechanism {
            cls: vl3_proto::LOCAL.to_owned(),
            r#type: vl3_proto::TUN.to_owned(),
            parameters: [("name".to_owned(), interface.to_owned())].into(),
        }
    }

    /// Whether the router holds the descriptor and lives.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached
            .as_ref()
            .is_some_and(|attached| !attached.watcher.is_finished())
    }

    /// Hands the descriptor over, unless the router has it. `on_end` is called when the router
    /// goes.
    pub(crate) async fn install(
        &mut self,
        interface: &str,
        answer: Option<&TunAnswer>,
        tasks: &Tasks,
        on_end: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<()> {
        if self.is_attached() {
            return Ok(());
        }
        self.attached = None;
        let Some(answer) = answer else {
            bail!("the answer has no fdTicket, and no descriptor is attached")
        };
        let socket = Connection::connect(&answer.socket)
            .with_context(|| format!("connect to {}", answer.socket.display()))?;
        match &self.descriptor {
            Some(descriptor) => attach(&socket, answer, descriptor).await?,
            None => self.descriptor = Some(first(&socket, answer, interface).await?),
        }
        let socket = Arc::new(socket);
        let watched = Arc::clone(&socket);
        let watcher = tasks.spawn_detached("fd.sock", async move {
            // Nothing is said any more; a message or an error ends it like the end itself.
            let _end = watched.recv().await;
            on_end();
        });
        self.attached = Some(Attached { socket, watcher });
        Ok(())
    }

    /// The interface goes once the router has dropped its copy, too.
    pub(crate) fn remove(&mut self) {
        if let Some(attached) = self.attached.take() {
            tracing::debug!(socket = ?attached.socket.as_fd(), "leaving fd.sock");
        }
        self.descriptor = None;
    }
}

/// The first descriptor of this run: a new interface, or, where its name is busy, the one that
/// the router kept from an earlier run.
async fn first(
    socket: &Connection,
    answer: &TunAnswer,
    interface: &str,
) -> anyhow::Result<OwnedFd> {
    match create(interface) {
        Ok(descriptor) => {
            attach(socket, answer, &descriptor).await?;
            Ok(descriptor)
        }
        Err(error) if is_busy(&error) => {
            let body = fd_request::Body::Reattach(FdReattach {
                ticket: answer.ticket.to_vec(),
            });
            let mut descriptors = ask(socket, body, None).await.with_context(|| {
                format!("interface {interface} exists and the router does not hold it; remove it or set another name")
            })?;
            descriptors
                .pop()
                .context("the router's answer to Reattach holds no descriptor")
        }
        Err(error) => Err(error),
    }
}

async fn attach(
    socket: &Connection,
    answer: &TunAnswer,
    descriptor: &OwnedFd,
) -> anyhow::Result<()> {
    let body = fd_request::Body::Attach(FdAttach {
        ticket: answer.ticket.to_vec(),
    });
    ask(socket, body, Some(descriptor)).await.map(drop)
}

async fn ask(
    socket: &Connection,
    body: fd_request::Body,
    descriptor: Option<&OwnedFd>,
) -> anyhow::Result<Vec<OwnedFd>> {
    let message = FdRequest { body: Some(body) }.encode_to_vec();
    let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
    let exchange = async {
        socket
            .send(&message, &descriptors)
            .await
            .context("send to fd.sock")?;
        socket.recv().await.context("read fd.sock")
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, exchange)
        .await
        .context("fd.sock does not answer")??;
    let Some((bytes, descriptors)) = answer else {
        bail!("the router closed fd.sock")
    };
    let reply = FdReply::decode(bytes.as_slice()).context("decode the answer of fd.sock")?;
    if !reply.ok {
        bail!("the router refused the descriptor: {}", reply.reason);
    }
    Ok(descriptors)
}

/// A TUN with vnet headers in this process's namespace, without the link-local chatter that
/// the overlay does not carry.
pub(crate) fn create(interface: &str) -> anyhow::Result<OwnedFd> {
    let (descriptor, name) = vl3_net::tun::create(interface, false)?;
    vl3_net::sysctl::quiet_ipv6(&name)?;
    Ok(descriptor)
}

fn is_busy(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<vl3_net::Error>()
        .and_then(vl3_net::Error::errno)
        .is_some_and(|errno| errno == nix::errno::Errno::EBUSY as i32)
}
