//! A domain's registry in memory: grants one lease, notes what it is told.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use vl3_core::document::Chain;
use vl3_proto::document::encode_chain;
use vl3_proto::registry::network_service_endpoint_registry_server::{
    NetworkServiceEndpointRegistry, NetworkServiceEndpointRegistryServer,
};
use vl3_proto::registry::network_service_registry_server::{
    NetworkServiceRegistry, NetworkServiceRegistryServer,
};
use vl3_proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery,
    NetworkServiceEndpointResponse, NetworkServiceQuery, NetworkServiceResponse,
};
use vl3_proto::vl3::ipam::v1 as ipam;
use vl3_proto::vl3::ipam::v1::ipam_server::{Ipam, IpamServer};
use vl3_proto::vl3::network::v1::network_server::{Network, NetworkServer};
use vl3_proto::vl3::network::v1::{DocumentChain, PublishReply, WatchRequest};
use vl3_proto::vl3::registry::v1 as names;
use vl3_proto::vl3::registry::v1::names_server::{Names, NamesServer};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the router told its registry so far.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) endpoint: Option<NetworkServiceEndpoint>,
    pub(crate) acquired: Vec<ipam::AcquireRequest>,
    pub(crate) released: Vec<ipam::Lease>,
    pub(crate) names_released: Vec<String>,
    pub(crate) calls: usize,
}

#[derive(Clone)]
pub(crate) struct Registry {
    told: Arc<Mutex<Told>>,
    watchers: Arc<AtomicUsize>,
    document: watch::Receiver<Chain>,
}

impl Registry {
    pub(crate) fn new(document: watch::Receiver<Chain>) -> Self {
        Self {
            told: Arc::default(),
            watchers: Arc::default(),
            document,
        }
    }

    pub(crate) fn services(&self) -> Routes {
        Routes::new(IpamServer::new(self.clone()))
            .add_service(NamesServer::new(self.clone()))
            .add_service(NetworkServer::new(self.clone()))
            .add_service(NetworkServiceRegistryServer::new(self.clone()))
            .add_service(NetworkServiceEndpointRegistryServer::new(self.clone()))
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no test panics while it looks")
    }

    /// Streams of endpoints and documents that are open.
    pub(crate) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Open until the client ends it.
    fn watched<T: Send + 'static>(
        &self,
        items: impl Stream<Item = T> + Send + 'static,
    ) -> Response<Answers<T>> {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        let watcher = Watcher(Arc::clone(&self.watchers));
        let open = items.chain(futures_util::stream::pending());
        Response::new(Box::pin(open.map(move |item| {
            let _open = &watcher;
            Ok(item)
        })))
    }
}

struct Watcher(Arc<AtomicUsize>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn reply(lease: ipam::Lease) -> Response<ipam::LeaseReply> {
    Response::new(ipam::LeaseReply {
        lease: Some(lease),
        renew_after_seconds: 600,
    })
}

#[tonic::async_trait]
impl Ipam for Registry {
    async fn acquire(
        &self,
        request: Request<ipam::AcquireRequest>,
    ) -> Result<Response<ipam::LeaseReply>, Status> {
        let asked = request.into_inner();
        let mut told = self.told();
        told.calls += 1;
        told.acquired.push(asked.clone());
        Ok(reply(ipam::Lease {
            uid: asked.uid,
            router: asked.router,
            instance: asked.instance,
            generation: 1,
            prefix4: "172.16.0.0/28".to_owned(),
            prefix6: "fd77:0:0:0:1::/96".to_owned(),
        }))
    }

    async fn renew(
        &self,
        request: Request<ipam::RenewRequest>,
    ) -> Result<Response<ipam::LeaseReply>, Status> {
        Ok(reply(request.into_inner().lease.unwrap_or_default()))
    }

    async fn release(
        &self,
        request: Request<ipam::ReleaseRequest>,
    ) -> Result<Response<ipam::ReleaseReply>, Status> {
        self.told().released.extend(request.into_inner().lease);
        Ok(Response::new(ipam::ReleaseReply {}))
    }
}

#[tonic::async_trait]
impl Names for Registry {
    async fn claim(
        &self,
        _request: Request<names::ClaimRequest>,
    ) -> Result<Response<names::ClaimReply>, Status> {
        Ok(Response::new(names::ClaimReply {
            granted: true,
            held_by: String::new(),
        }))
    }

    async fn release(
        &self,
        request: Request<names::ReleaseRequest>,
    ) -> Result<Response<names::ReleaseReply>, Status> {
        self.told().names_released.push(request.into_inner().name);
        Ok(Response::new(names::ReleaseReply {}))
    }
}

#[tonic::async_trait]
impl Network for Registry {
    type WatchStream = Answers<DocumentChain>;

    async fn watch(
        &self,
        _request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let versions = WatchStream::new(self.document.clone());
        Ok(self.watched(versions.map(|chain| encode_chain(&chain))))
    }

    async fn publish(
        &self,
        _request: Request<DocumentChain>,
    ) -> Result<Response<PublishReply>, Status> {
        Err(Status::unimplemented("the test publishes"))
    }
}

#[tonic::async_trait]
impl NetworkServiceRegistry for Registry {
    type FindStream = Answers<NetworkServiceResponse>;

    async fn register(
        &self,
        request: Request<NetworkService>,
    ) -> Result<Response<NetworkService>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn find(
        &self,
        _request: Request<NetworkServiceQuery>,
    ) -> Result<Response<Self::FindStream>, Status> {
        Err(Status::unimplemented("a router does not ask"))
    }

    async fn unregister(&self, _request: Request<NetworkService>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl NetworkServiceEndpointRegistry for Registry {
    type FindStream = Answers<NetworkServiceEndpointResponse>;

    async fn register(
        &self,
        request: Request<NetworkServiceEndpoint>,
    ) -> Result<Response<NetworkServiceEndpoint>, Status> {
        let endpoint = request.into_inner();
        let mut told = self.told();
        told.calls += 1;
        told.endpoint = Some(endpoint.clone());
        Ok(Response::new(endpoint))
    }

    async fn find(
        &self,
        request: Request<NetworkServiceEndpointQuery>,
    ) -> Result<Response<Self::FindStream>, Status> {
        if request.get_ref().watch {
            Ok(self.watched(futures_util::stream::empty()))
        } else {
            Ok(Response::new(Box::pin(futures_util::stream::empty())))
        }
    }

    async fn unregister(
        &self,
        _request: Request<NetworkServiceEndpoint>,
    ) -> Result<Response<()>, Status> {
        self.told().endpoint = None;
        Ok(Response::new(()))
    }
}
