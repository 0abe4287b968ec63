//! The admin endpoint: /metrics, /healthz, /readyz (also as /health, /ready), /status, and commands on the unix socket.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::{IncomingStream, Listener as AxumListener};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::{Retry, RoleContext};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A machine that cannot say its status within this is reported as busy.
const HOOK_LIMIT: Duration = Duration::from_secs(2);
/// Commands such as `leave` talk to other processes.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// More scrapers than this wait.
const CONNECTIONS_MAX: usize = 64;
/// Between two tries to accept where that fails: out of descriptors, mostly.
const ACCEPT_RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// One connection's whole life: nobody holds a place by silence.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);

/// Serves `run_dir/admin.sock` and, where configured, TCP, for the life of the role.
pub(crate) async fn start(ctx: &RoleContext) -> anyhow::Result<()> {
    let refused = Counter::default();
    ctx.metrics.register(|registry| {
        registry.register(
            "admin_connections_refused",
            "Connections to the admin endpoint that brought no HTTP request or could not be accepted",
            refused.clone(),
        );
    });
    let path = ctx.run_path("admin.sock");
    let unix = bind_unix(&path)?;
    let local = routes(ctx)
        .route("/command/{name}", post(command))
        .with_state(ctx.clone());
    spawn(ctx, "admin.sock", unix, local, refused.clone());
    if let Some(address) = ctx.common.admin_listen {
        let tcp = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address} (admin_listen)"))?;
        tracing::info!(address = %tcp.local_addr()?, "admin endpoint listens");
        spawn(
            ctx,
            "admin",
            tcp,
            routes(ctx).with_state(ctx.clone()),
            refused,
        );
    }
    Ok(())
}

fn routes(_: &RoleContext) -> Router<RoleContext> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        // As CoreDNS has them.
        .route("/health", get(healthz))
        .route("/ready", get(readyz))
        .route("/status", get(status))
}

fn spawn<L>(ctx: &RoleContext, name: &'static str, listener: L, router: Router, refused: Counter)
where
    L: Accept,
{
    let limited = Limited {
        inner: listener,
        permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        retry: Retry::new(ACCEPT_RETRY.0, ACCEPT_RETRY.1),
        refused,
    };
    let service = router
        .layer(middleware::from_fn(note_request))
        .into_make_service_with_connect_info::<Served>();
    ctx.tasks.spawn(name, async move {
        axum::serve(limited, service)
            .await
            .context("serve the admin endpoint")
    });
}

fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    crate::rundir::claim_socket(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    // Commands change the role: its own user only.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}

async fn metrics(State(ctx): State<RoleContext>) -> Response {
    ([(header::CONTENT_TYPE, OPENMETRICS)], ctx.metrics.encode()).into_response()
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(ctx): State<RoleContext>) -> Response {
    let waiting = ctx.readiness.waiting_for();
    if waiting.is_empty() && !ctx.shutdown.is_cancelled() {
        "ready\n".into_response()
    } else if waiting.is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for {}\n", waiting.join(", ")),
        )
            .into_response()
    }
}

async fn status(State(ctx): State<RoleContext>) -> Response {
    let hook = ctx
        .hooks
        .status
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let role = match hook {
        None => Value::Null,
        Some(hook) => tokio::time::timeout(HOOK_LIMIT, hook())
            .await
            .unwrap_or_else(|_| json!("busy")),
    };
    let identity = ctx.identity.current();
    let status = json!({
        "role": ctx.common.role,
        "name": ctx.common.name,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": ctx.readiness.is_ready(),
        "waiting_for": ctx.readiness.waiting_for(),
        "ephemeral": ctx.common.state_dir.is_none(),
        "identity": {
            "id": identity.id.as_str(),
            "expires_in_seconds": identity.not_after.remaining(crate::clock::wall()).as_secs(),
        },
        ctx.common.role: role,
    });
    answer(StatusCode::OK, &status)
}

async fn command(
    State(ctx): State<RoleContext>,
    UrlPath(name): UrlPath<String>,
    body: axum::body::Bytes,
) -> Response {
    let Some(hook) = ctx.command_hook(&name) else {
        let error = format!("{} has no command {name}", ctx.common.role);
        return answer(StatusCode::NOT_FOUND, &json!({ "error": error }));
    };
    let arguments = if body.is_empty() {
        Ok(Value::Null)
    } else {
        serde_json::from_slice(&body)
    };
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => {
            let error = format!("arguments are no JSON: {error}");
            return answer(StatusCode::BAD_REQUEST, &json!({ "error": error }));
        }
    };
    match tokio::time::timeout(COMMAND_LIMIT, hook(arguments)).await {
        Ok(Ok(value)) => answer(StatusCode::OK, &value),
        Ok(Err(error)) => answer(StatusCode::CONFLICT, &json!({ "error": error })),
        Err(_) => answer(
            StatusCode::GATEWAY_TIMEOUT,
            &json!({ "error": "no answer within 30 s" }),
        ),
    }
}

fn answer(status: StatusCode, value: &Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        format!("{value}\n"),
    )
        .into_response()
}

/// A listener whose failures are seen; axum's own hide them.
trait Accept: Send + Sync + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Io = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// A listener with a bound on its connections and on the life of each.
struct Limited<L> {
    inner: L,
    retry: Retry,
    permits: Arc<Semaphore>,
    refused: Counter,
}

/// Whether a connection brought a request.
#[derive(Clone, Debug, Default)]
struct Served(Arc<AtomicBool>);

impl<L: Accept> Connected<IncomingStream<'_, Limited<L>>> for Served {
    fn connect_info(stream: IncomingStream<'_, Limited<L>>) -> Self {
        stream.io().served.clone()
    }
}

async fn note_request(
    ConnectInfo(Served(served)): ConnectInfo<Served>,
    request: Request,
    next: Next,
) -> Response {
    served.store(true, Ordering::Relaxed);
    next.run(request).await
}

impl<L: Accept> AxumListener for Limited<L> {
    type Io = Bounded<L::Io>;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let io = loop {
            match self.inner.accept().await {
                Ok(io) => break io,
                Err(error) => {
                    self.refused.inc();
                    tracing::debug!(%error, "accepting an admin connection failed");
                    self.retry.pause().await;
                }
            }
        };
        self.retry.reset();
        let end = Box::pin(tokio::time::sleep(CONNECTION_LIMIT));
        (
            Bounded {
                io,
                end,
                read: false,
                served: Served::default(),
                refused: self.refused.clone(),
                _permit: permit.ok(),
            },
            (),
        )
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Bounded<S> {
    io: S,
    end: Pin<Box<Sleep>>,
    /// Whether anything came at all.
    read: bool,
    served: Served,
    refused: Counter,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> Drop for Bounded<S> {
    fn drop(&mut self) {
        if self.read && !self.served.0.load(Ordering::Relaxed) {
            self.refused.inc();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.read |= buf.filled().len() > before;
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
