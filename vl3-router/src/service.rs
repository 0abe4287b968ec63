//! `networkservice.NetworkService` and `connection.MonitorConnection` over the chain.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use nsm_chain::{Call, Chain, Connections, Monitor, Peer};
use tonic::{Request, Response, Status};
use vl3_core::ids::NetworkUid;
use vl3_core::router::ConnectionId;
use vl3_proto::connection::monitor_connection_server::MonitorConnection;
use vl3_proto::connection::{Connection, ConnectionEvent, MonitorScopeSelector};
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_proto::networkservice::network_service_server::NetworkService;
use vl3_runtime::clock;
use vl3_runtime::grpc::{PeerIdentity, caller_token};

/// Serves one network: identities that its document does not vouch for are turned away here.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) uid: NetworkUid,
    pub(crate) chain: Chain<Connections>,
    pub(crate) monitor: Arc<Monitor>,
}

impl Service {
    fn peer<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let identity = identity(request, &self.uid)?;
        let token = caller_token(request.metadata());
        Ok(Peer {
            id: identity.id.clone(),
            certificate: identity.certificate_der.as_ref().into(),
            local: identity
                .local_addr
                .map(|address| address.ip().to_canonical()),
            token_expires: token.as_ref().map(|token| token.expires),
            token: token.map(|token| token.token),
        })
    }
}

/// The caller, if its word counts in this network.
pub(crate) fn identity<T>(request: &Request<T>, uid: &NetworkUid) -> Result<PeerIdentity, Status> {
    let identity = request
        .extensions()
        .get::<PeerIdentity>()
        .ok_or_else(|| Status::unauthenticated("a call without TLS identity"))?;
    if !identity.trusted_in(uid) {
        return Err(Status::permission_denied(format!(
            "{} is not of a member of network {uid}",
            identity.id
        )));
    }
    Ok(identity.clone())
}

#[tonic::async_trait]
impl NetworkService for Service {
    async fn request(
        &self,
        request: Request<NetworkServiceRequest>,
    ) -> Result<Response<Connection>, Status> {
        let peer = self.peer(&request)?;
        let answer = self
            .chain
            .request(Call::new(clock::now(), Some(peer)), request.into_inner())
            .await?;
        Ok(Response::new(answer))
    }

    async fn close(&self, request: Request<Connection>) -> Result<Response<()>, Status> {
        let peer = self.peer(&request)?;
        self.chain
            .close(Call::new(clock::now(), Some(peer)), request.into_inner())
            .await?;
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl MonitorConnection for Service {
    type MonitorConnectionsStream =
        Pin<Box<dyn Stream<Item = Result<ConnectionEvent, Status>> + Send>>;

    async fn monitor_connections(
        &self,
        request: Request<MonitorScopeSelector>,
    ) -> Result<Response<Self::MonitorConnectionsStream>, Status> {
        let peer = identity(&request, &self.uid)?;
        let stream = self.monitor.watch(&peer.id, request.into_inner())?;
        Ok(Response::new(stream))
    }
}

/// Ends connections that the machine gave up, so that the chain forgets them and monitors say
/// DELETE.
#[derive(Clone, Debug)]
pub(crate) struct Closer {
    pub(crate) chain: Chain<Connections>,
}

impl Closer {
    pub(crate) async fn close(&self, connection: &ConnectionId) {
        let closing = Connection {
            id: connection.as_str().to_owned(),
            ..Connection::default()
        };
        if let Err(error) = self
            .chain
            .close(Call::new(clock::now(), None), closing)
            .await
        {
            tracing::warn!(%connection, %error, "closing an ended connection");
        }
    }
}
