//! Sockets at the router's own address: the router binds them, in a namespace or table of its
//! own, and passes them by `fd.sock`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcp, UdpSocket as StdUdp};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::socket::{Backlog, SockType, getsockopt, listen, sockopt};
use prost::Message as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use vl3_core::names::Upstream;
use vl3_core::{Backoff, Rng};
use vl3_net::fdpass::Connection;
use vl3_proto::vl3::router::v1::{FdDial, FdListen, FdReply, FdRequest, fd_request::Body};
use vl3_runtime::{CancellationToken, Retry, Said};

/// A local call; longer means that the router hangs.
const REPLY_LIMIT: Duration = Duration::from_secs(2);
/// Connections that wait for `accept`.
const BACKLOG: i32 = 256;
/// Dials that wait for the router; more fail at once.
const DIALS_MAX: usize = 256;

/// What clients' questions arrive on.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) udp: Vec<StdUdp>,
    pub(crate) tcp: Vec<TcpListener>,
}

/// Makes sockets towards upstreams. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Dial {
    Router(mpsc::Sender<DialRequest>),
    /// From this process's own addresses.
    Direct,
}

/// Who dials whom: servers of the network from the router's address, others from this host's.
#[derive(Clone, Debug)]
pub(crate) struct Dials {
    pub(crate) overlay: Dial,
}

impl Dials {
    pub(crate) fn to(&self, upstream: &Upstream) -> &Dial {
        match upstream.owner {
            Some(_) => &self.overlay,
            None => &Dial::Direct,
        }
    }
}

#[derive(Debug)]
pub(crate) struct DialRequest {
    wanted: FdDial,
    reply: oneshot::Sender<io::Result<OwnedFd>>,
}

impl Dial {
    /// A UDP socket connected to `server`, on a port of its own; `None` when somebody else must
    /// make it: see [`Self::udp`].
    pub(crate) fn udp_now(&self, server: SocketAddr) -> Option<io::Result<StdUdp>> {
        match self {
            Self::Direct => {
                let socket = StdUdp::bind(unspecified(server));
                Some(socket.and_then(|socket| connected(socket, server)))
            }
            Self::Router(_) => None,
        }
    }

    /// As [`Self::udp_now`], by the router.
    pub(crate) async fn udp(&self, server: SocketAddr) -> io::Result<StdUdp> {
        match self {
            Self::Direct => connected(StdUdp::bind(unspecified(server))?, server),
            Self::Router(requests) => {
                connected(StdUdp::from(ask(requests, server, false).await?), server)
            }
        }
    }

    pub(crate) async fn tcp(&self, server: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Self::Direct => TcpStream::connect(server).await,
            Self::Router(requests) => {
                let socket = StdTcp::from(ask(requests, server, true).await?);
                socket.set_nonblocking(true)?;
                TcpSocket::from_std_stream(socket).connect(server).await
            }
        }
    }
}

fn connected(socket: StdUdp, server: SocketAddr) -> io::Result<StdUdp> {
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}

async fn ask(
    requests: &mpsc::Sender<DialRequest>,
    server: SocketAddr,
    tcp: bool,
) -> io::Result<OwnedFd> {
    let (reply, answer) = oneshot::channel();
    let request = DialRequest {
        wanted: FdDial {
            ipv6: server.is_ipv6(),
            tcp,
            ticket: Vec::new(),
        },
        reply,
    };
    requests
        .try_send(request)
        .map_err(|_| io::Error::other("too many dials wait for the router"))?;
    answer
        .await
        .map_err(|_| io::Error::other("the router's fd.sock is gone"))?
}

fn unspecified(server: SocketAddr) -> SocketAddr {
    let address: IpAddr = if server.is_ipv6() {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(address, 0)
}

/// What the router's state says of sockets at its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnAddress {
    pub(crate) addresses: Vec<IpAddr>,
    /// Shown with every request; empty for a router that asks for none.
    pub(crate) ticket: Vec<u8>,
}

/// Why a request on `fd.sock` gave nothing.
#[derive(Debug, thiserror::Error)]
enum FdError {
    /// The router says no; it may say yes later, on the same connection.
    #[error("the router refused: {0}")]
    Refused(String),
    /// The connection is of no more use.
    #[error(transparent)]
    Broken(#[from] anyhow::Error),
}

/// One end of the task that owns the connection to `fd.sock`.
pub(crate) struct RouterSockets {
    path: PathBuf,
    requests: mpsc::Receiver<DialRequest>,
    /// As its state names them; other addresses ask for new listeners, and another ticket may
    /// be believed where the one before was not.
    own: watch::Receiver<OwnAddress>,
    listeners: mpsc::Sender<Listeners>,
    /// Counts connections to the router: sockets dialled through an older one may be dead.
    epoch: watch::Sender<u64>,
}

impl RouterSockets {
    pub(crate) fn new(
        run_dir: &Path,
        own: watch::Receiver<OwnAddress>,
        listeners: mpsc::Sender<Listeners>,
    ) -> (Self, Dial, watch::Receiver<u64>) {
        let (sender, requests) = mpsc::channel(DIALS_MAX);
        let (epoch, epochs) = watch::channel(0);
        (
            Self {
                path: run_dir.join("fd.sock"),
                requests,
                own,
                listeners,
                epoch,
            },
            Dial::Router(sender),
            epochs,
        )
    }

    /// Connects for ever. While there is no router dials fail at once, and what was bound before
    /// serves on.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut retry = Retry::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut said = Said::default();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                error = self.connected(&mut retry) => {
                    let error = format!("{error:#}");
                    if let Some(unsaid) = said.say(&error) {
                        tracing::info!(path = %self.path.display(), error, unsaid, "no sockets from the router; trying again");
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = retry.pause() => {}
                () = refuse(&mut self.requests) => {}
            }
        }
    }

    /// One life of the connection; returns why it ended. Listeners that the router cannot bind
    /// (it has no address yet) are asked for again, while dials go on.
    async fn connected(&mut self, retry: &mut Retry) -> anyhow::Error {
        let connection = match Connection::connect(&self.path).context("connect to fd.sock") {
            Ok(connection) => connection,
            Err(error) => return error,
        };
        self.epoch.send_modify(|epoch| *epoch += 1);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut rng = Rng::new(rand::random());
        let mut listen_at = Instant::now();
        let mut bound = None;
        let mut said = Said::default();
        loop {
            if bound.is_none() && Instant::now() >= listen_at {
                match self.listen(&connection).await {
                    Ok(addresses) => {
                        retry.reset();
                        backoff.reset();
                        bound = Some(addresses);
                    }
                    Err(FdError::Refused(reason)) => {
                        listen_at = Instant::now() + backoff.next(&mut rng);
                        if let Some(unsaid) = said.say(&reason) {
                            tracing::info!(
                                reason,
                                unsaid,
                                "the router passes no listeners; asking again"
                            );
                        }
                    }
                    Err(FdError::Broken(error)) => return error,
                }
            }
            tokio::select! {
                request = self.requests.recv() => {
                    let Some(request) = request else { return anyhow::anyhow!("nobody dials") };
                    let wanted = FdDial { ticket: self.ticket(), ..request.wanted };
                    let dialled = dial(&connection, wanted).await;
                    let (answer, broken) = match dialled {
                        Ok(descriptor) => (Ok(descriptor), None),
                        Err(FdError::Refused(reason)) => (Err(io::Error::other(reason)), None),
                        Err(FdError::Broken(error)) => (Err(io::Error::other(format!("{error:#}"))), Some(error)),
                    };
                    // Nobody waits: the descriptor closes.
                    let _gone = request.reply.send(answer);
                    if let Some(error) = broken {
                        return error;
                    }
                }
                changed = self.own.changed() => {
                    if changed.is_err() {
                        return anyhow::anyhow!("nobody watches the router");
                    }
                    let own: BTreeSet<IpAddr> =
                        self.own.borrow_and_update().addresses.iter().copied().collect();
                    bound = bound.filter(|bound| *bound == own);
                    listen_at = Instant::now();
                }
                () = tokio::time::sleep_until(listen_at), if bound.is_none() => {}
                end = connection.recv() => return match end {
                    Ok(None) => anyhow::anyhow!("the router closed fd.sock"),
                    Ok(Some(_)) => anyhow::anyhow!("the router sent what nobody asked for"),
                    Err(error) => anyhow::Error::new(error).context("read fd.sock"),
                },
            }
        }
    }

    fn ticket(&self) -> Vec<u8> {
        self.own.borrow().ticket.clone()
    }

    /// Asks for listeners, hands them over, and says where they are bound.
    async fn listen(&self, connection: &Connection) -> Result<BTreeSet<IpAddr>, FdError> {
        let ticket = self.ticket();
        let descriptors = exchange(connection, Body::Listen(FdListen { ticket })).await?;
        let listeners = adopt(descriptors)?;
        let bound: io::Result<BTreeSet<IpAddr>> = listeners
            .udp
            .iter()
            .map(|socket| Ok(socket.local_addr()?.ip()))
            .collect();
        let bound = bound.context("look at a passed socket")?;
        if bound.is_empty() {
            return Err(FdError::Refused("it passed no listening socket".to_owned()));
        }
        let stopped = |_| FdError::Broken(anyhow::anyhow!("the server stopped"));
        self.listeners.send(listeners).await.map_err(stopped)?;
        Ok(bound)
    }
}

/// Fails dials while there is no router, so that no question waits for it.
async fn refuse(requests: &mut mpsc::Receiver<DialRequest>) {
    while let Some(request) = requests.recv().await {
        let _gone = request.reply.send(Err(io::Error::other(
            "no connection to the router's fd.sock",
        )));
    }
    std::future::pending().await
}

async fn dial(connection: &Connection, wanted: FdDial) -> Result<OwnedFd, FdError> {
    let mut descriptors = exchange(connection, Body::Dial(wanted)).await?;
    match (descriptors.pop(), descriptors.len()) {
        (Some(descriptor), 0) => Ok(descriptor),
        (_, others) => Err(FdError::Refused(format!(
            "it passed {others} more descriptors than one"
        ))),
    }
}

async fn exchange(connection: &Connection, body: Body) -> Result<Vec<OwnedFd>, FdError> {
    let request = FdRequest { body: Some(body) }.encode_to_vec();
    let exchange = async {
        connection
            .send(&request, &[])
            .await
            .context("write fd.sock")?;
        connection
            .recv()
            .await
            .context("read fd.sock")?
            .context("the router closed fd.sock")
    };
    let (message, descriptors) = tokio::time::timeout(REPLY_LIMIT, exchange)
        .await
        .context("the router did not answer on fd.sock")??;
    let reply = FdReply::decode(message.as_slice()).context("read the router's answer")?;
    if reply.ok {
        Ok(descriptors)
    } else {
        Err(FdError::Refused(reply.reason))
    }
}

fn adopt(descriptors: Vec<OwnedFd>) -> anyhow::Result<Listeners> {
    let mut listeners = Listeners {
        udp: Vec::new(),
        tcp: Vec::new(),
    };
    for descriptor in descriptors {
        match getsockopt(&descriptor, sockopt::SockType).context("look at a passed descriptor")? {
            SockType::Datagram => {
                let socket = StdUdp::from(descriptor);
                socket.set_nonblocking(true)?;
                listeners.udp.push(socket);
            }
            SockType::Stream => {
                // Harmless when the router listens already.
                listen(&descriptor, Backlog::new(BACKLOG)?).context("listen on a passed socket")?;
                let listener = std::net::TcpListener::from(descriptor);
                listener.set_nonblocking(true)?;
                listeners.tcp.push(TcpListener::from_std(listener)?);
            }
            other => bail!("the router passed a socket of type {other:?}"),
        }
    }
    Ok(listeners)
}

/// Binds addresses of this process, UDP and TCP on the same port.
pub(crate) async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Listeners> {
    let mut listeners = Listeners {
        udp: Vec::new(),
        tcp: Vec::new(),
    };
    for address in addresses {
        let context = || format!("listen on {address}");
        let tcp = TcpListener::bind(address).await.with_context(context)?;
        // Port 0: both get what TCP got.
        let bound = tcp.local_addr().with_context(context)?;
        let udp = StdUdp::bind(bound).with_context(context)?;
        udp.set_nonblocking(true).with_context(context)?;
        listeners.udp.push(udp);
        listeners.tcp.push(tcp);
    }
    Ok(listeners)
}

/// Where sockets listen, those on every address spelled out as far as it matters: this host.
pub(crate) fn own_addresses<'a>(
    listeners: impl Iterator<Item = &'a Listeners>,
) -> anyhow::Result<Vec<SocketAddr>> {
    let mut own = Vec::new();
    for socket in listeners.flat_map(|listeners| &listeners.udp) {
        let address = socket.local_addr().context("look at a listener")?;
        if address.ip().is_unspecified() {
            let mut everywhere: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
                .context("list this host's addresses")?
                .filter_map(|interface| ip_of(&interface.address?))
                .collect();
            everywhere.push(address.ip());
            own.extend(
                everywhere
                    .into_iter()
                    .map(|ip| SocketAddr::new(ip, address.port())),
            );
        } else {
            own.push(address);
        }
    }
    Ok(own)
}

fn ip_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    address.as_sockaddr_in6().map(|v6| v6.ip().into())
}
