//! The layer before the services: here, or at the active replica.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Mutex, Semaphore, watch};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Layer, Service};
use vl3_identity::PeerIdentity;
use vl3_runtime::Metrics;
use vl3_runtime::grpc::{DialUrl, Dialer, Expect};

use super::caller::{self, ForwardedBy};
use super::{Replicas, Role, Standing};
use crate::store::Candidate;

/// How long a call waits for somebody to be active: a claim lapses after 3 s.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Calls that wait for it; beyond that they are refused at once.
const WAITING_MAX: usize = 4096;
/// How long an answer waits until this replica shows what the answer is about.
const READ_YOUR_WRITES_MAX: Duration = Duration::from_secs(1);
/// To the active replica, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The store's revision behind an answer, from one replica to another.
const REVISION: &str = "vl3-revision";

/// What every replica answers from its own copy.
const READS: [&str; 3] = [
    "/registry.NetworkServiceRegistry/Find",
    "/registry.NetworkServiceEndpointRegistry/Find",
    "/vl3.network.v1.Network/Watch",
];

/// Wraps the services. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    replicas: Replicas,
    ways: Arc<Ways>,
}

/// The connection to the active replica.
#[derive(Debug)]
struct Ways {
    dialer: Dialer,
    current: Mutex<Option<(Candidate, Channel)>>,
    waiting: Semaphore,
    metrics: ForwardMetrics,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ForwardMetrics {
    forwarded: Counter,
    unanswered: Counter,
    forged: Counter,
    behind: Counter,
}

impl ForwardMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        let registered = own.clone();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("registry");
            registry.register(
                "calls_forwarded",
                "Calls handed to the active replica",
                registered.forwarded,
            );
            registry.register(
                "calls_without_active",
                "Calls refused because no replica was active, or it did not answer",
                registered.unanswered,
            );
            registry.register(
                "callers_forged",
                "Calls that spoke for another caller and came from no replica",
                registered.forged,
            );
            registry.register(
                "answers_ahead",
                "Answers of the active replica that this one could not show in time",
                registered.behind,
            );
        });
        own
    }
}

/// One service behind the layer.
#[derive(Clone, Debug)]
pub(crate) struct Forwarding<S> {
    forward: Forward,
    inner: S,
}

impl Forward {
    pub(crate) fn new(replicas: Replicas, dialer: Dialer, metrics: ForwardMetrics) -> Self {
        let ways = Ways {
            dialer: dialer.connect_limit(CONNECT_LIMIT),
            current: Mutex::new(None),
            waiting: Semaphore::new(WAITING_MAX),
            metrics,
        };
        Self {
            replicas,
            ways: Arc::new(ways),
        }
    }
}

impl<S> Layer<S> for Forward {
    type Service = Forwarding<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Forwarding {
            forward: self.clone(),
            inner,
        }
    }
}

impl<S, B, R> Service<http::Request<B>> for Forwarding<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError>,
    R: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    R::Error: Into<tonic::codegen::StdError>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        // The one that is ready goes, its clone stays.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let forward = self.forward.clone();
        Box::pin(async move {
            let mut request = request;
            let by_replica = match forward.ways.take_caller(&forward.replicas, &mut request) {
                Ok(by_replica) => by_replica,
                Err(status) => return Ok(status.into_http()),
            };
            if READS.contains(&request.uri().path()) {
                let response = inner.call(request).await?;
                return Ok(response.map(Body::new));
            }
            match forward.place(by_replica).await {
                Err(status) => Ok(status.into_http()),
                Ok(Some(active)) => {
                    let request = request.map(Body::new);
                    let response = forward.send(&active, request).await;
                    Ok(response.unwrap_or_else(|status| status.into_http()))
                }
                Ok(None) => {
                    let mut response = inner.call(request).await?.map(Body::new);
                    if let Some(shared) = forward.replicas.shared.as_ref().filter(|_| by_replica) {
                        response
                            .headers_mut()
                            .insert(REVISION, shared.written().into());
                    }
                    Ok(response)
                }
            }
        })
    }
}

impl Forward {
    /// Where a call that decides something goes: None is here. Waits while nobody is active.
    async fn place(&self, by_replica: bool) -> Result<Option<Candidate>, Status> {
        let here_or_there = |standing: &Standing| match standing.place() {
            // Never twice: who sent it to us will hear who is active as well.
            Some(Some(_)) if by_replica => None,
            place => place,
        };
        let standing = self.replicas.standing.clone();
        if let Some(place) = here_or_there(&standing.borrow()) {
            return Ok(place);
        }
        let waits = self.ways.waiting.try_acquire();
        let place = match waits {
            Ok(_waits) => first(standing, here_or_there).await,
            Err(_) => None,
        };
        place.ok_or_else(|| {
            self.ways.metrics.unanswered.inc();
            nobody()
        })
    }

    async fn send(
        &self,
        active: &Candidate,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        let Some(caller) = request.extensions().get::<PeerIdentity>().cloned() else {
            return Err(Status::unauthenticated("the call has no TLS identity"));
        };
        caller::write(request.headers_mut(), &caller);
        request.extensions_mut().clear();
        let mut standing = self.replicas.standing.clone();
        let left = |standing: &Standing| !matches!(&standing.role, Role::Following { active: Some(now) } if now == active);
        let answer = async {
            let mut channel = self.ways.channel(&self.replicas.standing, active).await?;
            std::future::poll_fn(|context| channel.poll_ready(context))
                .await
                .map_err(|error| error.to_string())?;
            channel
                .call(request)
                .await
                .map_err(|error| error.to_string())
        };
        let response = tokio::select! {
            response = answer => response,
            _ = standing.wait_for(left) => Err("it is active no longer".to_owned()),
        };
        self.ways.metrics.forwarded.inc();
        let mut response = match response {
            Ok(response) => response,
            Err(reason) => {
                self.ways.forget(active).await;
                self.ways.metrics.unanswered.inc();
                return Err(Status::unavailable(format!(
                    "the active replica {} does not answer: {reason}",
                    active.name
                )));
            }
        };
        let revision = response.headers_mut().remove(REVISION);
        let revision = revision.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let Some(revision) = revision {
            self.shown(revision, standing).await;
        }
        Ok(response)
    }

    /// Waits until this replica shows what it is about to say.
    async fn shown(&self, revision: u64, mut standing: watch::Receiver<Standing>) {
        let shown = standing.wait_for(|standing| {
            standing.revision >= revision || !matches!(standing.role, Role::Following { .. })
        });
        if tokio::time::timeout(READ_YOUR_WRITES_MAX, shown)
            .await
            .is_err()
        {
            self.ways.metrics.behind.inc();
        }
    }
}

/// The first place that is known within [`WAIT_MAX`].
async fn first<T>(
    mut standing: watch::Receiver<Standing>,
    place: impl Fn(&Standing) -> Option<T>,
) -> Option<T> {
    let known = standing.wait_for(|standing| place(standing).is_some());
    let standing = tokio::time::timeout(WAIT_MAX, known).await.ok()?.ok()?;
    place(&standing)
}

fn nobody() -> Status {
    Status::unavailable(
        "no replica of this registry is active at the moment, or none can write: try again",
    )
}

impl Replicas {
    /// For what is not handed on: fails unless this replica decides, or will within
    /// [`WAIT_MAX`].
    pub(crate) async fn decide_here(&self) -> Result<(), Status> {
        match first(self.standing.clone(), Standing::place).await {
            Some(None) => Ok(()),
            Some(Some(active)) => Err(Status::unavailable(format!(
                "this replica of the registry follows: {} at {} is the active one",
                active.name, active.address
            ))),
            None => Err(nobody()),
        }
    }
}

impl Ways {
    /// Believes another replica for whom it speaks, and nobody else. True: it was one.
    fn take_caller<B>(
        &self,
        replicas: &Replicas,
        request: &mut http::Request<B>,
    ) -> Result<bool, Status> {
        let Some(bytes) = caller::strip(request.headers_mut()) else {
            return Ok(false);
        };
        let speaker = request.extensions().get::<PeerIdentity>();
        let speaker = speaker.map(|peer| (peer.id.clone(), peer.scopes.to_vec()));
        let believed = speaker.filter(|(id, scopes)| {
            let standing = replicas.standing.borrow();
            standing.role != Role::Sole && standing.is_replica(id, scopes)
        });
        let Some((id, _)) = believed else {
            self.metrics.forged.inc();
            return Ok(false);
        };
        let caller = caller::read(&bytes)?;
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(ForwardedBy(id));
        Ok(true)
    }

    async fn channel(
        &self,
        standing: &watch::Receiver<Standing>,
        active: &Candidate,
    ) -> Result<Channel, String> {
        let mut current = self.current.lock().await;
        if let Some((to, channel)) = &*current
            && to == active
        {
            return Ok(channel.clone());
        }
        let url: DialUrl = active
            .address
            .parse()
            .map_err(|error| format!("its address {}: {error}", active.address))?;
        let standing = standing.clone();
        let expect = Expect::new("a registry of the own domain", move |peer| {
            standing.borrow().is_replica(&peer.id, &peer.scopes)
        });
        let connection = self
            .dialer
            .dial(&url, expect)
            .await
            .map_err(|error| error.to_string())?;
        let channel = connection.plain();
        *current = Some((active.clone(), channel.clone()));
        Ok(channel)
    }

    async fn forget(&self, active: &Candidate) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|(to, _)| to == active) {
            *current = None;
        }
    }
}
