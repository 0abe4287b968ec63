//! Serving one set of services on several listeners.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use vl3_identity::tls::{self, Authorise};
use vl3_identity::{Source, Trust};

use super::Listen;
use super::accept::{Live, Secured, Socket};
use super::shares::{NoShare, Shares};
use crate::{Metrics, Readiness, Retry, Tasks};

/// A peer that says nothing must not hold a handshake for longer.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Stock nsmgr and forwarders open one connection per NSM connection: many are normal.
const CONNECTIONS_MAX: usize = 4096;
/// Of one identity: a node's nsmgr has many, nobody has all.
const CONNECTIONS_PER_IDENTITY_MAX: usize = 1024;
/// Token metadata and registry paths need about 0.5 KiB per hop; hyper's default is 16 KiB.
const HEADER_LIST_MAX: u32 = 64 * 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams per connection: a registry holds one watch per registered object.
const STREAMS_MAX: u32 = 8192;
/// Between two tries to accept where that fails: out of descriptors, mostly.
const ACCEPT_RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// How long open calls may last after shutdown began.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// How to serve. Made by [`crate::RoleContext::serve_options`].
#[derive(Clone)]
pub struct ServeOptions {
    source: Source,
    trust: Trust,
    shutdown: CancellationToken,
    authorise: Authorise,
    readiness: Option<Readiness>,
    services: Vec<&'static str>,
    connections_max: usize,
    connections_per_identity_max: usize,
    counters: Counters,
}

impl std::fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeOptions")
            .field("services", &self.services)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default)]
struct Counters {
    refused: Family<Refusal, Counter>,
    accepted: Counter,
    open: Gauge,
    calls: Family<Code, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: &'static str,
}

impl ServeOptions {
    pub fn new(source: Source, trust: Trust, shutdown: CancellationToken) -> Self {
        Self {
            source,
            trust,
            shutdown,
            authorise: tls::anybody(),
            readiness: None,
            services: Vec::new(),
            connections_max: CONNECTIONS_MAX,
            connections_per_identity_max: CONNECTIONS_PER_IDENTITY_MAX,
            counters: Counters::default(),
        }
    }

    /// grpc health follows this; SERVING at once without it.
    #[must_use]
    pub fn health(mut self, readiness: Readiness) -> Self {
        self.readiness = Some(readiness);
        self
    }

    /// Full service names that the health service knows beside "".
    #[must_use]
    pub fn services(mut self, names: &[&'static str]) -> Self {
        self.services = names.to_vec();
        self
    }

    /// Who may connect at all, checked within the handshake.
    #[must_use]
    pub fn authorise(mut self, authorise: Authorise) -> Self {
        self.authorise = authorise;
        self
    }

    #[must_use]
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.connections_max = connections;
        self
    }

    /// Further ones of an identity, or of all identities of another trust domain, are closed
    /// after their handshake. Other domains together have three quarters of all.
    #[must_use]
    pub fn connections_per_identity_max(mut self, connections: usize) -> Self {
        self.connections_per_identity_max = connections;
        self
    }

    #[must_use]
    pub fn metrics(self, metrics: &Metrics) -> Self {
        metrics.register(|registry| {
            let Counters {
                refused,
                accepted,
                open,
                calls,
            } = self.counters.clone();
            registry.register(
                "grpc_connections_refused",
                "Connections that ended before TLS was done",
                refused,
            );
            registry.register(
                "grpc_connections_accepted",
                "Authenticated connections",
                accepted,
            );
            registry.register(
                "grpc_connections_open",
                "Authenticated connections at the moment",
                open,
            );
            registry.register(
                "grpc_calls_refused",
                "Calls that were answered by an error, by its code",
                calls,
            );
        });
        self
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Bound listeners, not yet serving.
pub struct Server {
    listeners: Vec<Listener>,
    addresses: Vec<Listen>,
    sockets: Sockets,
    options: ServeOptions,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// Socket files, removed with the server.
struct Sockets(Vec<PathBuf>);

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in &self.0 {
            // Gone already: somebody cleaned up.
            let _gone = std::fs::remove_file(path);
        }
    }
}

impl Server {
    /// Binds every listener; a stale unix socket is replaced, a live one is an error.
    pub async fn bind(listen: &[Listen], options: ServeOptions) -> anyhow::Result<Self> {
        let mut server = Self {
            listeners: Vec::new(),
            addresses: Vec::new(),
            sockets: Sockets(Vec::new()),
            options,
        };
        for listen in listen {
            match listen {
                Listen::Tcp(address) => {
                    let listener = bind_tcp(*address)
                        .await
                        .with_context(|| format!("listen on {listen}"))?;
                    server.addresses.push(Listen::Tcp(listener.local_addr()?));
                    server.listeners.push(Listener::Tcp(listener));
                }
                Listen::Unix(path) => {
                    let listener = bind_unix(path)?;
                    server.sockets.0.push(path.clone());
                    server.addresses.push(listen.clone());
                    server.listeners.push(Listener::Unix(listener));
                }
            }
        }
        Ok(server)
    }

    /// Where it listens, with the ports that the kernel chose.
    pub fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// Serves until shutdown, then lets open calls end for a moment; what is open still is cut.
    pub async fn serve(self, routes: Routes) -> anyhow::Result<()> {
        let Self {
            listeners,
            sockets: _sockets,
            options,
            ..
        } = self;
        let tasks = Tasks::new("grpc");
        let tls = tls::server_config(
            &options.source,
            &options.trust,
            Arc::clone(&options.authorise),
        )?;
        let (sender, incoming) = mpsc::channel::<io::Result<Secured>>(64);
        let live = Arc::new(Live::new(options.source.clone()));
        let acceptor = Acceptor {
            tls: TlsAcceptor::from(Arc::new(tls)),
            trust: options.trust.clone(),
            live: Arc::clone(&live),
            permits: Arc::new(Semaphore::new(options.connections_max)),
            shares: Shares::new(
                options.source.current().id.trust_domain(),
                options.connections_per_identity_max,
                options.connections_max,
            ),
            counters: options.counters.clone(),
            sender,
        };
        for listener in listeners {
            let (acceptor, shutdown) = (acceptor.clone(), options.shutdown.clone());
            tasks.spawn("accept", async move {
                tokio::select! {
                    () = shutdown.cancelled() => Ok(()),
                    () = acceptor.accept(listener) => Ok(()),
                }
            });
        }
        drop(acceptor);
        let (watched, trust) = (Arc::downgrade(&live), options.trust.clone());
        tasks.spawn("trust", async move {
            Live::follow(watched, trust).await;
            Ok(())
        });
        let (reporter, health) = tonic_health::server::health_reporter();
        let (readiness, services) = (options.readiness.clone(), options.services.clone());
        tasks.spawn("health", async move {
            report_health(reporter, readiness, services).await;
            Ok(())
        });
        let (shutdown, calls) = (options.shutdown.clone(), options.counters.calls.clone());
        let serve = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(HEADER_LIST_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .layer(tower::util::MapResponseLayer::new(move |response| {
                note_refusal(&calls, &response);
                response
            }))
            .add_routes(routes)
            .add_service(health)
            .serve_with_incoming_shutdown(
                ReceiverStream::new(incoming),
                options.shutdown.cancelled(),
            );
        tokio::select! {
            served = serve => served.context("serve gRPC"),
            error = tasks.failed() => Err(error),
            () = async {
                shutdown.cancelled().await;
                tokio::time::sleep(DRAIN_LIMIT).await;
            } => {
                live.cut();
                Ok(())
            }
        }
    }
}

#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    trust: Trust,
    live: Arc<Live>,
    permits: Arc<Semaphore>,
    shares: Shares,
    counters: Counters,
    sender: mpsc::Sender<io::Result<Secured>>,
}

impl Acceptor {
    async fn accept(self, listener: Listener) {
        let handshakes = Tasks::new("handshake");
        let mut retry = Retry::new(ACCEPT_RETRY.0, ACCEPT_RETRY.1);
        loop {
            // At the limit new connections wait in the kernel's backlog.
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                return;
            };
            let accepted = match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // Requests are small; a failure costs latency only.
                    let _latency = stream.set_nodelay(true);
                    Socket::Tcp(stream)
                }),
                Listener::Unix(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Socket::Unix(stream)),
            };
            let socket = match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    // Out of descriptors or a connection that was reset: go on, not too fast.
                    self.refuse("accept", &error.to_string());
                    retry.pause().await;
                    continue;
                }
            };
            retry.reset();
            let acceptor = self.clone();
            handshakes.spawn_detached("handshake", async move {
                acceptor.handshake(socket, permit).await;
            });
        }
    }

    async fn handshake(&self, socket: Socket, permit: tokio::sync::OwnedSemaphorePermit) {
        // Renewed during the handshake: the connection is taken for the former's and closed.
        let own = self.live.own();
        let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, self.tls.accept(socket)).await {
            Err(_) => return self.refuse("timeout", "no TLS handshake within 5 s"),
            Ok(Err(error)) => return self.refuse("tls", &error.to_string()),
            Ok(Ok(stream)) => stream,
        };
        match Secured::new(stream.into(), &own, &self.trust, &self.live, Some(permit)) {
            Err(reason) => self.refuse("identity", &reason),
            Ok(connection) => {
                let id = &connection.peer().id;
                let share = match self.shares.take(id) {
                    Ok(share) => share,
                    Err(NoShare::Caller) => {
                        return self.refuse("identity_limit", &format!("{id} has too many"));
                    }
                    Err(NoShare::Foreign) => {
                        let detail = format!("{id}: other domains have too many");
                        return self.refuse("foreign_limit", &detail);
                    }
                };
                tracing::debug!(peer = %id, "connection accepted");
                self.counters.accepted.inc();
                let connection = connection.counted(self.counters.open.clone(), share);
                // The receiver ends with the server.
                let _ended = self.sender.send(Ok(connection)).await;
            }
        }
    }

    fn refuse(&self, reason: &'static str, detail: &str) {
        self.counters
            .refused
            .get_or_create(&Refusal { reason })
            .inc();
        tracing::debug!(reason, detail, "connection refused");
    }
}

/// Whoever refused it, be it before a service saw the call: an error that is known before the
/// first answer is in the headers.
fn note_refusal<B>(calls: &Family<Code, Counter>, response: &http::Response<B>) {
    let Some(status) = tonic::Status::from_header_map(response.headers()) else {
        return;
    };
    let code = match status.code() {
        tonic::Code::Ok => return,
        tonic::Code::Cancelled => "cancelled",
        tonic::Code::Unknown => "unknown",
        tonic::Code::InvalidArgument => "invalid_argument",
        tonic::Code::DeadlineExceeded => "deadline_exceeded",
        tonic::Code::NotFound => "not_found",
        tonic::Code::AlreadyExists => "already_exists",
        tonic::Code::PermissionDenied => "permission_denied",
        tonic::Code::ResourceExhausted => "resource_exhausted",
        tonic::Code::FailedPrecondition => "failed_precondition",
        tonic::Code::Aborted => "aborted",
        tonic::Code::OutOfRange => "out_of_range",
        tonic::Code::Unimplemented => "unimplemented",
        tonic::Code::Internal => "internal",
        tonic::Code::Unavailable => "unavailable",
        tonic::Code::DataLoss => "data_loss",
        tonic::Code::Unauthenticated => "unauthenticated",
    };
    calls.get_or_create(&Code { code }).inc();
}

async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    readiness: Option<Readiness>,
    services: Vec<&'static str>,
) {
    let mut ready = readiness.map(|readiness| readiness.watch());
    loop {
        let is_ready = ready
            .as_mut()
            .is_none_or(|ready| *ready.borrow_and_update());
        let status = if is_ready {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        for name in services.iter().copied().chain([""]) {
            reporter.set_service_status(name, status).await;
        }
        match &mut ready {
            Some(ready) => {
                if ready.changed().await.is_err() {
                    return;
                }
            }
            None => return,
        }
    }
}

/// `[::]` means both families; on a machine without IPv6 it means IPv4.
async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && matches!(error.raw_os_error(), Some(97 | 99)) =>
        {
            TcpListener::bind(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                address.port(),
            ))
            .await
        }
        other => other,
    }
}

fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    crate::rundir::claim_socket(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on unix://{}", path.display()))?;
    // TLS decides who may speak, as at every NSM socket.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}
