//! `fd.sock`: descriptors come from workloads with a ticket, and go to the DNS server.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tokio::sync::{oneshot, watch};
use vl3_core::ids::SpiffeId;
use vl3_core::router::{FdEvent, FdSession};
use vl3_net::fdpass::{Connection, Listener};
use vl3_proto::vl3::router::v1::{FdReply, FdRequest, fd_request::Body};
use vl3_runtime::{CancellationToken, Retry, Tasks};

use crate::actor::{Command, Handle};
use crate::own::OwnSockets;
use crate::tickets::Tickets;

/// Connections at once: each workload by TUN holds one.
const SESSIONS_MAX: usize = 4096;

/// Between two tries to accept where that fails.
const ACCEPT_RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// What `fd.sock` needs of its router.
pub(crate) struct Socket {
    pub(crate) path: PathBuf,
    pub(crate) handle: Handle,
    pub(crate) own: watch::Receiver<Option<OwnSockets>>,
    pub(crate) tickets: Tickets,
    /// Counts what is refused.
    pub(crate) refused: Counter,
}

impl Socket {
    /// Serves until shutdown. Anybody may connect: every request shows a ticket.
    pub(crate) async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let path = &self.path;
        let listener =
            Listener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
            .with_context(|| format!("open {} to every user", path.display()))?;
        self.take(|| listener.accept(), &shutdown).await;
        Ok(())
    }

    /// A session for each connection, until shutdown. A failure to accept ends nothing.
    async fn take<A>(&self, accept: impl Fn() -> A, shutdown: &CancellationToken)
    where
        A: Future<Output = std::io::Result<Connection>>,
    {
        let tasks = Tasks::new("fd.sock");
        let mut retry = Retry::new(ACCEPT_RETRY.0, ACCEPT_RETRY.1);
        let room = Arc::new(tokio::sync::Semaphore::new(SESSIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = accept() => accepted,
            };
            let connection = match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    // Out of descriptors, mostly: who is attached stays, the others wait.
                    self.refused.inc();
                    tracing::warn!(%error, "accepting on fd.sock failed");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = retry.pause() => continue,
                    }
                }
            };
            retry.reset();
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                self.refused.inc();
                tracing::warn!(
                    limit = SESSIONS_MAX,
                    "fd.sock is full; a client is turned away"
                );
                continue;
            };
            let session = self.session(connection);
            tasks.spawn_detached("fd session", async move {
                let _permit = permit;
                session.run().await;
            });
        }
    }

    fn session(&self, connection: Connection) -> Session {
        Session {
            id: FdSession(self.handle.number()),
            handle: self.handle.clone(),
            own: self.own.clone(),
            tickets: self.tickets.clone(),
            dns: None,
            refused: self.refused.clone(),
            connection,
        }
    }
}

struct Session {
    id: FdSession,
    handle: Handle,
    own: watch::Receiver<Option<OwnSockets>>,
    tickets: Tickets,
    /// The DNS server whose ticket was shown here; it stays good for this session, so that a
    /// server whose identity is late to be renewed keeps asking other domains.
    dns: Option<SpiffeId>,
    refused: Counter,
    connection: Connection,
}

/// Sockets that go back, with their addresses.
type Passed = Vec<(Option<SocketAddr>, OwnedFd)>;

impl Session {
    async fn run(mut self) {
        loop {
            let (message, descriptors) = match self.connection.recv().await {
                Ok(Some(received)) => received,
                Ok(None) => break,
                // Any other error on a local socket means that the other end is gone.
                Err(error) => {
                    if error.kind() == std::io::ErrorKind::InvalidData {
                        self.refused.inc();
                    }
                    break;
                }
            };
            let result = match FdRequest::decode(message.as_slice()) {
                Ok(FdRequest { body: Some(body) }) => self.request(body, descriptors).await,
                Ok(FdRequest { body: None }) | Err(_) => Err("no FdRequest with a body".to_owned()),
            };
            if result.is_err() {
                self.refused.inc();
            }
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

    async fn request(&mut self, body: Body, descriptors: Vec<OwnedFd>) -> Result<Passed, String> {
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
            Body::Listen(listen) => {
                let sockets = self
                    .own_sockets(&listen.ticket)?
                    .listeners()
                    .map_err(|error| format!("{error:#}"))?;
                Ok(sockets
                    .into_iter()
                    .map(|(at, socket)| (Some(at), socket))
                    .collect())
            }
            Body::Dial(dial) => {
                let (at, socket) = self
                    .own_sockets(&dial.ticket)?
                    .outgoing(dial.ipv6, dial.tcp)
                    .map_err(|error| format!("{error:#}"))?;
                Ok(vec![(Some(at), socket)])
            }
        }
    }

    /// The sockets at the own address are for this domain's DNS server alone.
    fn own_sockets(&mut self, shown: &[u8]) -> Result<OwnSockets, String> {
        if !shown.is_empty() {
            let holder = self.tickets.holder(&ticket(shown)?);
            self.dns =
                Some(holder.ok_or_else(|| "ticket: unknown, or its stream has ended".to_owned())?);
        }
        let Some(dns) = &self.dns else {
            return Err(
                "ticket: unset is not allowed: the fd_ticket that the router's Resolver stream \
                 sends the DNS server"
                    .to_owned(),
            );
        };
        if !self.tickets.grants(dns) {
            return Err(format!("{dns} is no DNS server of this domain any more"));
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use vl3_proto::vl3::router::v1::{FdDial, FdListen};

    use super::*;

    /// A session at the loopback address; the switch revokes the DNS server.
    struct Rig {
        tickets: Tickets,
        granted: Arc<AtomicBool>,
        socket: Socket,
        commands: crate::actor::Commands,
    }

    fn dns() -> SpiffeId {
        SpiffeId::new("spiffe://east.test/vl3/dns/red-east").unwrap()
    }

    fn rig() -> Rig {
        let (handle, commands) = Handle::new();
        let granted = Arc::new(AtomicBool::new(true));
        let tickets = Tickets::new({
            let granted = Arc::clone(&granted);
            move |_| granted.load(Ordering::Relaxed)
        });
        let own = OwnSockets::at(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        let socket = Socket {
            path: PathBuf::new(),
            handle,
            own: watch::channel(Some(own)).1,
            tickets: tickets.clone(),
            refused: Counter::default(),
        };
        Rig {
            tickets,
            granted,
            socket,
            commands,
        }
    }

    impl Rig {
        fn connect(&self) -> Connection {
            let (client, served) = Connection::pair().unwrap();
            tokio::spawn(self.socket.session(served).run());
            client
        }
    }

    async fn ask(client: &Connection, body: Body) -> (FdReply, usize) {
        let request = FdRequest { body: Some(body) };
        client.send(&request.encode_to_vec(), &[]).await.unwrap();
        let (message, passed) = client.recv().await.unwrap().expect("the session lives");
        (FdReply::decode(message.as_slice()).unwrap(), passed.len())
    }

    fn dial(ticket: &[u8]) -> Body {
        Body::Dial(FdDial {
            ticket: ticket.to_vec(),
            ..FdDial::default()
        })
    }

    #[tokio::test]
    async fn a_process_of_the_routers_user_gets_no_socket_at_its_address() {
        let rig = rig();
        let client = rig.connect();
        for ticket in [&[][..], &[0; 16], &[0; 3]] {
            let listen = Body::Listen(FdListen {
                ticket: ticket.to_vec(),
            });
            for body in [listen, dial(ticket)] {
                let (reply, passed) = ask(&client, body).await;
                assert!(!reply.ok && passed == 0);
                assert!(reply.reason.contains("ticket"), "{}", reply.reason);
            }
        }
    }

    #[tokio::test]
    async fn a_ticket_opens_its_session_until_the_document_drops_the_server() {
        let rig = rig();
        let (client, other) = (rig.connect(), rig.connect());
        let ticket = rig.tickets.issue(&dns()).unwrap();
        let secret = *ticket.secret();
        assert_eq!(ask(&client, dial(&secret)).await.1, 1);
        drop(ticket);
        // Its stream has ended: good here, nowhere else.
        assert_eq!(ask(&client, dial(&[])).await.1, 1);
        assert!(!ask(&other, dial(&secret)).await.0.ok);
        rig.granted.store(false, Ordering::Relaxed);
        let (reply, _) = ask(&client, dial(&[])).await;
        assert!(reply.reason.contains("no DNS server"), "{}", reply.reason);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_session_stays() {
        let mut rig = rig();
        let client = rig.connect();
        let ticket = rig.tickets.issue(&dns()).unwrap();
        assert_eq!(ask(&client, dial(ticket.secret())).await.1, 1);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(ask(&client, dial(&[])).await.1, 1);
        assert!(
            rig.commands.try_recv().is_err(),
            "the session has not ended"
        );
    }

    #[tokio::test]
    async fn a_process_out_of_descriptors_goes_on_when_it_has_some() {
        let rig = rig();
        let (client, served) = Connection::pair().unwrap();
        let served = std::sync::Mutex::new(Some(served));
        let tries = AtomicUsize::new(0);
        let accept = || {
            let failing = tries.fetch_add(1, Ordering::Relaxed) < 3;
            let taken = (!failing).then(|| served.lock().unwrap().take()).flatten();
            async move {
                match (failing, taken) {
                    (true, _) => Err(std::io::Error::from_raw_os_error(24)),
                    (false, Some(connection)) => Ok(connection),
                    (false, None) => std::future::pending().await,
                }
            }
        };
        let shutdown = CancellationToken::new();
        let ticket = rig.tickets.issue(&dns()).unwrap();
        tokio::select! {
            () = rig.socket.take(accept, &shutdown) => panic!("fd.sock ended"),
            (reply, _) = ask(&client, dial(ticket.secret())) => assert!(reply.ok),
        }
        assert_eq!(rig.socket.refused.get(), 3);
    }

    #[tokio::test]
    async fn every_user_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fd.sock");
        let shutdown = CancellationToken::new();
        let socket = Socket {
            path: path.clone(),
            ..rig().socket
        };
        let serving = tokio::spawn(socket.serve(shutdown.clone()));
        tokio::task::yield_now().await;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }
}
