//! This router as the NSM client of other routers: Request, refresh, monitor, Close, and the
//! routes stream of each link.

use core::time::Duration;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use ipnet::IpNet;
use nsm_chain::{SvidTokens, client};
use tokio::task::AbortHandle;
use tonic::{Code, Request};
use vl3_core::document::Role;
use vl3_core::ids::RouterName;
use vl3_core::machine::Ticket;
use vl3_core::router::{
    Dial, DialAnswer, DialEvent, DialFailure, DialId, Endpoint, Input, RoutesOpen,
};
use vl3_proto::connection::monitor_connection_client::MonitorConnectionClient;
use vl3_proto::connection::{Connection, MonitorScopeSelector, PathSegment};
use vl3_proto::connectioncontext::{ConnectionContext, IpContext, Route};
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_proto::networkservice::network_service_client::NetworkServiceClient;
use vl3_proto::{HELLO_KEY, Hello, WireguardParameters};
use vl3_runtime::grpc::{self, DialError, DialUrl, Dialer};
use vl3_runtime::{Documents, Retry, Tasks, clock};

use crate::actor::Handle;
use crate::routes;
use crate::wire::hello;

/// Stock's limit for one try.
const REQUEST_WITHIN: Duration = Duration::from_secs(15);
const CLOSE_WITHIN: Duration = Duration::from_secs(3);

/// All dialled connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Dials {
    dialer: Dialer,
    tokens: SvidTokens,
    documents: Documents,
    own: RouterName,
    advertise: Option<IpAddr>,
    handle: Handle,
    held: Arc<Mutex<BTreeMap<DialId, Held>>>,
}

/// One connection that stands.
#[derive(Debug)]
struct Held {
    transport: grpc::Connection,
    last: Connection,
    monitor: Option<AbortHandle>,
}

impl Dials {
    pub(crate) fn new(
        dialer: Dialer,
        tokens: SvidTokens,
        documents: Documents,
        own: RouterName,
        advertise: Option<IpAddr>,
        handle: Handle,
    ) -> Self {
        Self {
            dialer,
            tokens,
            documents,
            own,
            advertise,
            handle,
            held: Arc::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<DialId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn dial(&self, tasks: &Tasks, ticket: Ticket, dial: Dial) {
        let dials = self.clone();
        tasks.spawn_detached("dial", async move {
            let tried = tokio::time::timeout(REQUEST_WITHIN, dials.request(&dial)).await;
            let result = tried
                .unwrap_or_else(|_| Err(DialFailure::Unreachable(format!("no answer within {REQUEST_WITHIN:?}"))));
            if let Err(failure) = &result {
                tracing::info!(router = %dial.router, address = %dial.address, %failure, "dialling a router failed");
            }
            dials.handle.tell(Input::Dialled { ticket, result: result.map(Box::new) }).await;
        });
    }

    pub(crate) fn close(&self, tasks: &Tasks, dial: DialId) {
        let Some(held) = self.held().remove(&dial) else {
            return;
        };
        if let Some(monitor) = &held.monitor {
            monitor.abort();
        }
        tasks.spawn_detached("close dial", async move {
            let mut request = Request::new(held.last);
            request.set_timeout(CLOSE_WITHIN);
            let closed = NetworkServiceClient::new(held.transport.nsm())
                .close(request)
                .await;
            if let Err(status) = closed {
                tracing::debug!(status = %status.message(), "closing a link's connection");
            }
        });
    }

    pub(crate) fn open_routes(&self, tasks: &Tasks, dial: DialId, open: RoutesOpen) {
        let Some(transport) = self.held().get(&dial).map(|held| held.transport.clone()) else {
            let (handle, reason) = (self.handle.clone(), "the connection is closed".to_owned());
            tasks.spawn_detached("routes", async move {
                handle.tell(Input::RoutesFailed { dial, reason }).await
            });
            return;
        };
        let handle = self.handle.clone();
        tasks.spawn_detached("routes", async move {
            if let Err(error) = routes::open(&handle, &transport, open).await {
                let reason = format!("{error:#}");
                tracing::info!(reason, "opening a routes stream failed");
                handle.tell(Input::RoutesFailed { dial, reason }).await;
            }
        });
    }

    async fn request(&self, dial: &Dial) -> Result<DialAnswer, DialFailure> {
        let known = self
            .held()
            .get(&dial.dial)
            .map(|held| (held.transport.clone(), held.last.clone()));
        let (transport, asked) = match known.filter(|_| dial.refresh) {
            Some((transport, last)) => (transport, refreshed(dial, &last)),
            None => {
                let transport = self.connect(dial).await?;
                let asked = self.first(dial, &transport);
                (transport, asked)
            }
        };
        let answer = NetworkServiceClient::new(transport.nsm())
            .request(Request::new(asked.clone()))
            .await
            .map_err(|status| failure(&status))?
            .into_inner();
        let refused = |error: &dyn std::fmt::Display| DialFailure::Refused(error.to_string());
        let peer = transport.peer();
        client::check_answer(
            &asked,
            &answer,
            &self.tokens,
            peer.certificate_der.as_ref(),
            clock::wall(),
        )
        .map_err(|error| refused(&error))?;
        let read =
            read_answer(&answer, &peer.id).map_err(|error| refused(&format!("{error:#}")))?;
        self.keep(dial.dial, transport, answer);
        Ok(read)
    }

    async fn connect(&self, dial: &Dial) -> Result<grpc::Connection, DialFailure> {
        let expect = self.documents.expect_of(&dial.router.domain, Role::Router);
        self.dialer
            .dial(&DialUrl::from(dial.address), expect)
            .await
            .map_err(|error| match error {
                DialError::Unreachable { .. } | DialError::TimedOut { .. } => {
                    DialFailure::Unreachable(format!("{:#}", anyhow::Error::from(error)))
                }
                DialError::Refused { .. } => DialFailure::Refused(error.to_string()),
            })
    }

    /// The first Request of a link: the id is random, the context says who we are in the
    /// overlay.
    fn first(&self, dial: &Dial, transport: &grpc::Connection) -> NetworkServiceRequest {
        let id = crate::app::new_id();
        let local = transport
            .peer()
            .local_addr
            .map(|address| address.ip().to_canonical());
        let mechanism = WireguardParameters {
            src_ip: self.advertise.or(local),
            src_port: Some(dial.udp_port),
            src_public_key: Some(dial.public_key),
            mtu: Some(dial.mtu),
            ..WireguardParameters::default()
        };
        NetworkServiceRequest {
            connection: Some(Connection {
                path: Some(client::first_path(self.own.as_str(), &id)),
                id,
                network_service: self.documents.current().name.to_string(),
                network_service_endpoint_name: dial.router.name.to_string(),
                payload: "IP".to_owned(),
                context: Some(context(dial)),
                ..Connection::default()
            }),
            mechanism_preferences: vec![mechanism.into_mechanism()],
        }
    }

    /// Remembers the answer; the first one also starts the monitor.
    fn keep(&self, dial: DialId, transport: grpc::Connection, last: Connection) {
        let mut all = self.held();
        if let Some(held) = all.get_mut(&dial) {
            held.last = last;
            return;
        }
        let follow = follow(
            self.handle.clone(),
            dial,
            transport.clone(),
            last.clone(),
            self.own.to_string(),
        );
        let monitor = Some(tokio::spawn(follow).abort_handle());
        all.insert(
            dial,
            Held {
                transport,
                last,
                monitor,
            },
        );
    }
}

/// A refresh carries what this side says, not what the answer told back: the answer's Hello is
/// the other router's.
fn refreshed(dial: &Dial, last: &Connection) -> NetworkServiceRequest {
    let mut request = client::refresh(last);
    if let Some(connection) = &mut request.connection {
        connection.context = Some(context(dial));
    }
    request
}

/// Who this router is, in the overlay.
fn context(dial: &Dial) -> ConnectionContext {
    let is_host = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
    let own = dial
        .addresses
        .iter()
        .filter(is_host)
        .map(IpNet::to_string)
        .collect();
    let route = |net: &IpNet| Route {
        prefix: net.to_string(),
        next_hop: String::new(),
    };
    let hello = hello::to_wire(dial.hello.clone()).encode();
    ConnectionContext {
        ip_context: Some(IpContext {
            src_ip_addrs: own,
            dst_routes: dial.addresses.iter().map(route).collect(),
            ..IpContext::default()
        }),
        extra_context: BTreeMap::from([(HELLO_KEY.to_owned(), hello)]),
        mtu: u32::from(dial.mtu),
        ..ConnectionContext::default()
    }
}

fn failure(status: &tonic::Status) -> DialFailure {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => {
            DialFailure::Unreachable(text)
        }
        _ => DialFailure::Refused(text),
    }
}

fn read_answer(answer: &Connection, peer: &vl3_core::ids::SpiffeId) -> anyhow::Result<DialAnswer> {
    let context = answer.context.clone().unwrap_or_default();
    let hello =
        Hello::from_extra_context(&context.extra_context)?.context("the answer has no Hello")?;
    let mechanism = answer
        .mechanism
        .as_ref()
        .context("the answer has no mechanism")?;
    let parameters = WireguardParameters::from_mechanism(mechanism)?;
    let address = parameters.dst_ip.context("the answer has no dst_ip")?;
    let port = parameters.dst_port.context("the answer has no dst_port")?;
    let public_key = parameters
        .dst_public_key
        .context("the answer has no dst_public_key")?;
    let path = answer.path.clone().unwrap_or_default();
    Ok(DialAnswer {
        peer: peer.clone(),
        hello: hello::to_core(hello)?,
        public_key,
        endpoint: Endpoint {
            remote: SocketAddr::new(address, port),
            local: None,
        },
        mtu: parameters
            .mtu
            .unwrap_or(u16::try_from(context.mtu).unwrap_or(0)),
        expires_in: client::life(&path, clock::wall())?,
    })
}

/// Follows our own segment at the other router until the dial is closed; a broken stream is
/// reported and opened again.
async fn follow(
    handle: Handle,
    dial: DialId,
    transport: grpc::Connection,
    last: Connection,
    own: String,
) {
    let mut retry = Retry::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        if let Err(error) = follow_once(&handle, dial, &transport, &last, &own, &mut retry).await {
            tracing::debug!(
                error = format!("{error:#}"),
                "a link's monitor stream ended"
            );
        }
        handle
            .tell(Input::Dial {
                dial,
                event: DialEvent::Down,
            })
            .await;
        retry.pause().await;
    }
}

async fn follow_once(
    handle: &Handle,
    dial: DialId,
    transport: &grpc::Connection,
    last: &Connection,
    own: &str,
    retry: &mut Retry,
) -> anyhow::Result<()> {
    let segment = PathSegment {
        name: own.to_owned(),
        id: last.id.clone(),
        ..PathSegment::default()
    };
    let selector = MonitorScopeSelector {
        path_segments: vec![segment],
        network_services: Vec::new(),
    };
    let mut events = MonitorConnectionClient::new(transport.nsm())
        .monitor_connections(selector)
        .await?
        .into_inner();
    while let Some(event) = events.message().await? {
        let told = match client::follow(&event, 0, &last.id) {
            Some(client::Followed::Up(_)) => DialEvent::Up,
            Some(client::Followed::RefreshRequested) => DialEvent::RefreshRequested,
            Some(client::Followed::Lost) => DialEvent::Deleted,
            // It restarted: a Request brings the connection back.
            Some(client::Followed::Unknown) => DialEvent::RefreshRequested,
            None => continue,
        };
        retry.reset();
        handle.tell(Input::Dial { dial, event: told }).await;
    }
    anyhow::bail!("the stream ended")
}

#[cfg(test)]
mod tests {
    use vl3_core::ids::{Generation, InstanceId, NetworkUid, PublicKey};
    use vl3_core::router::{self, RouterId};

    use super::*;

    fn dial() -> Dial {
        let domain: vl3_core::ids::DomainName = "east".parse().unwrap();
        Dial {
            dial: DialId(1),
            router: RouterId {
                name: "red-west".parse().unwrap(),
                domain: "west".parse().unwrap(),
            },
            address: "192.0.2.1:5010".parse().unwrap(),
            trust_domain: "west.test".into(),
            hello: router::Hello {
                version_min: 1,
                version_max: 1,
                uid: NetworkUid([1; 16]),
                domain,
                name: "red-east".into(),
                instance: InstanceId([2; 16]),
                generation: Generation(3),
                dials_only: false,
                role: router::HelloRole::Router,
            },
            public_key: PublicKey([4; 32]),
            udp_port: 51820,
            mtu: 1420,
            addresses: vec![
                "10.9.0.0/32".parse().unwrap(),
                "10.9.0.0/26".parse().unwrap(),
            ],
            refresh: true,
        }
    }

    #[test]
    fn a_refresh_says_who_we_are_not_who_answered() {
        let mut theirs = hello::to_wire(dial().hello);
        theirs.name = "red-west".into();
        let mut last = Connection {
            context: Some(context(&dial())),
            ..Connection::default()
        };
        let extra = &mut last.context.as_mut().unwrap().extra_context;
        extra.insert(HELLO_KEY.to_owned(), theirs.encode());
        let request = refreshed(&dial(), &last);
        let context = request.connection.unwrap().context.unwrap();
        let said = Hello::from_extra_context(&context.extra_context)
            .unwrap()
            .unwrap();
        assert_eq!(said.name, "red-east");
        assert_eq!(context.ip_context.unwrap().src_ip_addrs, ["10.9.0.0/32"]);
    }
}
