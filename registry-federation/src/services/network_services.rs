//! `registry.NetworkServiceRegistry`.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use vl3_core::registry::{Command, Query, Reply, Service, WatchEvent};
use vl3_proto::objects::{decode_service, decode_service_query, encode_service};
use vl3_proto::registry::network_service_registry_server::NetworkServiceRegistry;
use vl3_proto::registry::{NetworkService, NetworkServiceQuery, NetworkServiceResponse};

use super::Shared;
use super::caller::{Registration, peer};
use super::endpoints::responses;
use super::errors::{status, unexpected};

pub(super) struct NetworkServices(pub(super) Shared);

fn response(event: WatchEvent) -> Option<NetworkServiceResponse> {
    match event {
        WatchEvent::Service { service, deleted } => Some(NetworkServiceResponse {
            network_service: Some(encode_service(&service)),
            deleted,
        }),
        WatchEvent::Endpoint { .. } | WatchEvent::Document(_) => None,
    }
}

#[tonic::async_trait]
impl NetworkServiceRegistry for NetworkServices {
    type FindStream = Pin<Box<dyn Stream<Item = Result<NetworkServiceResponse, Status>> + Send>>;

    async fn register(
        &self,
        request: Request<NetworkService>,
    ) -> Result<Response<NetworkService>, Status> {
        let call = Registration::read(&*self.0.tokens, request.metadata(), request.extensions())?;
        let mut service = decode_service(request.into_inner());
        call.set_ids(&mut service.path_ids);
        match self
            .0
            .handle
            .call(call.peer.clone(), Command::RegisterService { service })
            .await
        {
            Ok(Reply::Service(service)) => Ok(call.answer(encode_service(&service))),
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => Err(status(&refusal)),
        }
    }

    async fn find(
        &self,
        request: Request<NetworkServiceQuery>,
    ) -> Result<Response<Self::FindStream>, Status> {
        let peer = peer(request.extensions())?;
        let message = request.into_inner();
        let watch = message.watch;
        let query = decode_service_query(message)?;
        if watch {
            let watch = self.0.handle.watch(peer, Query::Services(query)).await;
            let watch = watch.map_err(|refusal| status(&refusal))?;
            return Ok(Response::new(Box::pin(responses(watch, response))));
        }
        match self
            .0
            .handle
            .call(peer.clone(), Command::FindServices { query })
            .await
        {
            Ok(Reply::Services(services)) => {
                let bytes = services.iter().map(Service::size).sum();
                let handed = self.0.handle.hand(&peer, bytes);
                let handed = handed.map_err(|refusal| status(&refusal))?;
                let found = services.into_iter().map(move |service| {
                    let _until_read = &handed;
                    let network_service = Some(encode_service(&service));
                    Ok(NetworkServiceResponse {
                        network_service,
                        deleted: false,
                    })
                });
                Ok(Response::new(Box::pin(stream::iter(found))))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => Err(status(&refusal)),
        }
    }

    async fn unregister(&self, request: Request<NetworkService>) -> Result<Response<()>, Status> {
        let call = Registration::read(&*self.0.tokens, request.metadata(), request.extensions())?;
        let name = request.into_inner().name;
        match self
            .0
            .handle
            .call(call.peer.clone(), Command::UnregisterService { name })
            .await
        {
            Ok(_) => Ok(call.answer(())),
            Err(refusal) => Err(status(&refusal)),
        }
    }
}
