//! This router as a client of its domain's registry: lease, names, registration, watch,
//! document. Everything is tried for ever; nothing here stops a packet.
//!
//! With prefix servers the registry is a stock one: it registers and finds, knows neither names
//! nor documents, and prefixes come from stock IPAMs.

mod keep;
mod prefixes;

use core::time::Duration;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nsm_chain::registry_path::RegistryPath;
use tokio::sync::{Mutex, watch};
use tonic::{Code, Request, Status};
use vl3_core::allocator::Lease;
use vl3_core::document::Role;
use vl3_core::ids::{DomainName, Generation, InstanceId, RouterName, SpiffeId, WorkloadName};
use vl3_core::machine::Ticket;
use vl3_core::router::{Input, LeaseAnswer, LeaseFailure, NameAnswer, Registration};
use vl3_proto::FieldError;
use vl3_proto::registry::NetworkServiceEndpoint;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vl3_proto::vl3::ipam::v1 as ipam;
use vl3_proto::vl3::ipam::v1::ipam_client::IpamClient;
use vl3_proto::vl3::registry::v1 as names;
use vl3_proto::vl3::registry::v1::names_client::NamesClient;
use vl3_runtime::grpc::{Connection, DialError, DialUrl, Dialer, NsmChannel};
use vl3_runtime::{Documents, Tasks};

use crate::actor::Handle;
pub(crate) use prefixes::Prefixes;

const VERSION: u32 = 1;
const CALL_WITHIN: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    url: DialUrl,
    /// Where the prefixes come from, where the registry is a stock one.
    prefixes: Option<Prefixes>,
    dialer: Dialer,
    documents: Documents,
    domain: DomainName,
    router: RouterName,
    instance: InstanceId,
    handle: Handle,
    /// The transport reconnects by itself, to whom the newest document allows.
    connection: Arc<Mutex<Option<Connection>>>,
    registration: Arc<watch::Sender<Option<Registration>>>,
}

/// What a registry client needs to know of its router.
pub(crate) struct About {
    pub(crate) url: DialUrl,
    pub(crate) prefixes: Option<Prefixes>,
    pub(crate) domain: DomainName,
    pub(crate) router: RouterName,
    pub(crate) instance: InstanceId,
}

impl Registry {
    pub(crate) fn new(about: About, dialer: Dialer, documents: Documents, handle: Handle) -> Self {
        let About {
            url,
            prefixes,
            domain,
            router,
            instance,
        } = about;
        Self {
            url,
            // Stock servers end connections that ping them.
            dialer: match &prefixes {
                Some(_) => dialer.without_keepalive(),
                None => dialer,
            },
            prefixes,
            documents,
            domain,
            router,
            instance,
            handle,
            connection: Arc::default(),
            registration: Arc::default(),
        }
    }

    async fn connection(&self) -> Result<Connection, DialError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held
            .as_ref()
            .filter(|held| self.is_registry(&held.peer().id))
        {
            return Ok(connection.clone());
        }
        *held = None;
        let expect = self.documents.expect_of(&self.domain, Role::Registry);
        let connection = self.dialer.dial(&self.url, expect).await?;
        Ok(held.insert(connection).clone())
    }

    /// For NSM's calls; a stock registry asks for a path where ours takes the token alone.
    fn nsm(&self, connection: &Connection) -> NsmChannel {
        match &self.prefixes {
            Some(_) => connection.registry(|token| RegistryPath::start(token).to_header()),
            None => connection.nsm(),
        }
    }

    fn is_registry(&self, id: &SpiffeId) -> bool {
        self.documents.grants(&self.domain, Role::Registry, id)
    }

    /// Waits until the document no longer calls the other end the domain's registry.
    async fn disowned(&self, connection: &Connection) -> SpiffeId {
        let mut versions = self.documents.subscribe();
        loop {
            let peer = connection.peer().id.clone();
            if !self.is_registry(&peer) {
                return peer;
            }
            if versions.changed().await.is_err() {
                // Unreachable while this router holds its documents.
                core::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn acquire(
        &self,
        tasks: &Tasks,
        ticket: Ticket,
        held: Option<Lease>,
        prefix_len4: u8,
        exclusions: Vec<IpNet>,
    ) {
        let registry = self.clone();
        tasks.spawn_detached("acquire", async move {
            if let Some(prefixes) = &registry.prefixes {
                let result = prefixes.lease(held).await;
                registry.handle.tell(Input::Lease { ticket, result }).await;
                return;
            }
            let message = ipam::AcquireRequest {
                version: VERSION,
                uid: registry.documents.uid().0.to_vec(),
                router: registry.router.to_string(),
                instance: registry.instance.0.to_vec(),
                held: held.as_ref().map(lease_message),
                prefix_len4: u32::from(prefix_len4),
                exclusions: exclusions.iter().map(ToString::to_string).collect(),
            };
            let result = registry
                .lease(|client, message| client.acquire_boxed(message), message)
                .await;
            registry.handle.tell(Input::Lease { ticket, result }).await;
        });
    }

    pub(crate) fn renew(&self, tasks: &Tasks, ticket: Ticket, lease: Lease) {
        let registry = self.clone();
        tasks.spawn_detached("renew", async move {
            if let Some(prefixes) = &registry.prefixes {
                let result = prefixes.lease(Some(lease)).await;
                registry.handle.tell(Input::Lease { ticket, result }).await;
                return;
            }
            let message = ipam::RenewRequest {
                version: VERSION,
                lease: Some(lease_message(&lease)),
            };
            let result = registry
                .lease(|client, message| client.renew_boxed(message), message)
                .await;
            registry.handle.tell(Input::Lease { ticket, result }).await;
        });
    }

    pub(crate) fn release(&self, tasks: &Tasks, lease: Lease) {
        let registry = self.clone();
        tasks.spawn_detached("release", async move {
            if let Some(prefixes) = &registry.prefixes {
                prefixes.release().await;
                return;
            }
            let message = ipam::ReleaseRequest { version: VERSION, lease: Some(lease_message(&lease)) };
            let released = match registry.connection().await {
                Ok(connection) => {
                    IpamClient::new(connection.plain()).release(limited(message)).await.map(drop)
                }
                Err(error) => Err(Status::unavailable(error.to_string())),
            };
            if let Err(status) = released {
                tracing::warn!(status = %status.message(), "the lease could not be given back; it ends by silence");
            }
        });
    }

    pub(crate) fn claim(
        &self,
        tasks: &Tasks,
        ticket: Ticket,
        name: WorkloadName,
        workload: SpiffeId,
        addresses: Vec<IpAddr>,
    ) {
        let registry = self.clone();
        tasks.spawn_detached("claim", async move {
            // A stock registry knows no names: who attached here with one has it.
            if registry.prefixes.is_some() {
                let answer = NameAnswer::Granted;
                registry.handle.tell(Input::Name { ticket, answer }).await;
                return;
            }
            let message = names::ClaimRequest {
                version: VERSION,
                uid: registry.documents.uid().0.to_vec(),
                name: name.to_string(),
                workload: workload.to_string(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                router: registry.router.to_string(),
            };
            let answer = match registry.connection().await {
                Ok(connection) => {
                    NamesClient::new(connection.plain())
                        .claim(limited(message))
                        .await
                }
                Err(error) => Err(Status::unavailable(error.to_string())),
            };
            let answer = match answer.map(tonic::Response::into_inner) {
                Ok(reply) if reply.granted => NameAnswer::Granted,
                Ok(reply) => NameAnswer::Held { by: reply.held_by },
                Err(status) => {
                    tracing::debug!(%name, status = %status.message(), "claiming a name");
                    NameAnswer::Unreachable
                }
            };
            registry.handle.tell(Input::Name { ticket, answer }).await;
        });
    }

    pub(crate) fn release_name(&self, tasks: &Tasks, name: WorkloadName, workload: SpiffeId) {
        if self.prefixes.is_some() {
            return;
        }
        let registry = self.clone();
        tasks.spawn_detached("release name", async move {
            let message = names::ReleaseRequest {
                version: VERSION,
                uid: registry.documents.uid().0.to_vec(),
                name: name.to_string(),
                workload: workload.to_string(),
            };
            let Ok(connection) = registry.connection().await else {
                return;
            };
            if let Err(status) = NamesClient::new(connection.plain())
                .release(limited(message))
                .await
            {
                tracing::debug!(%name, status = %status.message(), "giving back a name");
            }
        });
    }

    /// Takes the registration away, and what stands at the registry with it.
    pub(crate) fn unregister(&self, tasks: &Tasks) {
        self.register(None);
        let registry = self.clone();
        tasks.spawn_detached("unregister", async move {
            let endpoint = NetworkServiceEndpoint {
                name: registry.router.to_string(),
                ..NetworkServiceEndpoint::default()
            };
            let Ok(connection) = registry.connection().await else {
                return;
            };
            let mut endpoints = NetworkServiceEndpointRegistryClient::new(registry.nsm(&connection));
            if let Err(status) = endpoints.unregister(limited(endpoint)).await {
                tracing::debug!(status = %status.message(), "unregistering; the registration ends by itself");
            }
        });
    }

    /// From now on, until changed; unset: nothing.
    pub(crate) fn register(&self, registration: Option<Registration>) {
        self.registration.send_replace(registration);
    }

    pub(crate) fn registration(&self) -> watch::Receiver<Option<Registration>> {
        self.registration.subscribe()
    }

    async fn lease<M>(
        &self,
        call: impl FnOnce(IpamCalls, Request<M>) -> LeaseCall,
        message: M,
    ) -> Result<LeaseAnswer, LeaseFailure> {
        let connection = self.connection().await.map_err(|error| {
            LeaseFailure::Unreachable(format!("{:#}", anyhow::Error::from(error)))
        })?;
        let reply = call(
            IpamCalls(IpamClient::new(connection.plain())),
            limited(message),
        )
        .await
        .map_err(|status| {
            let text = status.message().to_owned();
            match status.code() {
                Code::FailedPrecondition => LeaseFailure::Fenced(text),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                    LeaseFailure::Unreachable(text)
                }
                _ => LeaseFailure::Refused(text),
            }
        })?;
        let reply = reply.into_inner();
        let lease = reply
            .lease
            .ok_or_else(|| LeaseFailure::Refused("the registry's answer has no lease".to_owned()))
            .and_then(|lease| {
                read_lease(&lease).map_err(|error| LeaseFailure::Refused(error.to_string()))
            })?;
        Ok(LeaseAnswer {
            lease,
            renew_after: Duration::from_secs(u64::from(reply.renew_after_seconds.max(1))),
        })
    }
}

type LeaseCall = nsm_chain::BoxFuture<'static, Result<tonic::Response<ipam::LeaseReply>, Status>>;

/// The two lease calls with one shape.
struct IpamCalls(IpamClient<tonic::transport::Channel>);

impl IpamCalls {
    fn acquire_boxed(mut self, message: Request<ipam::AcquireRequest>) -> LeaseCall {
        Box::pin(async move { self.0.acquire(message).await })
    }

    fn renew_boxed(mut self, message: Request<ipam::RenewRequest>) -> LeaseCall {
        Box::pin(async move { self.0.renew(message).await })
    }
}

fn limited<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_WITHIN);
    request
}

fn lease_message(lease: &Lease) -> ipam::Lease {
    ipam::Lease {
        uid: lease.uid.0.to_vec(),
        router: lease.router.to_string(),
        instance: lease.instance.0.to_vec(),
        generation: lease.generation.0,
        prefix4: lease
            .prefix4
            .map(|prefix| prefix.to_string())
            .unwrap_or_default(),
        prefix6: lease.prefix6.to_string(),
    }
}

fn read_lease(lease: &ipam::Lease) -> Result<Lease, FieldError> {
    let bad = |field: &str, value: &str, allowed| FieldError::new(field, value, allowed);
    let prefix4 = match lease.prefix4.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| bad("lease.prefix4", text, "an IPv4 prefix"))?,
        ),
    };
    let prefix6 = &lease.prefix6;
    Ok(Lease {
        uid: vl3_proto::network_uid("lease.uid", &lease.uid)?,
        router: RouterName::new(&lease.router)
            .map_err(|error| bad("lease.router", &error.value, error.allowed))?,
        instance: vl3_proto::instance_id("lease.instance", &lease.instance)?,
        generation: Generation(lease.generation),
        prefix4,
        prefix6: prefix6
            .parse()
            .map_err(|_| bad("lease.prefix6", prefix6, "an IPv6 prefix"))?,
    })
}
