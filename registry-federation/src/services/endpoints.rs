//! `registry.NetworkServiceEndpointRegistry`.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use vl3_core::Wall;
use vl3_core::registry::{Command, Query, Reply, WatchEvent};
use vl3_proto::objects::{decode_endpoint, decode_endpoint_query, encode_found};
use vl3_proto::registry::network_service_endpoint_registry_server::NetworkServiceEndpointRegistry;
use vl3_proto::registry::{
    NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
};
use vl3_runtime::clock;

use super::Shared;
use super::caller::{Registration, peer};
use super::errors::{status, unexpected};
use crate::reading::{Found, Watch};

pub(super) struct Endpoints(pub(super) Shared);

/// Expiry: what the caller asks for and what its token allows, whichever ends first.
fn lifetime(
    endpoint: &NetworkServiceEndpoint,
    expires: Option<Wall>,
) -> Result<Option<Duration>, Status> {
    let now = clock::wall();
    let asked = match &endpoint.expiration_time {
        Some(time) => Some(vl3_proto::wall("expiration_time", time)?),
        None => None,
    };
    let end = [asked, expires].into_iter().flatten().min();
    match end {
        Some(end) if end <= now => {
            let text = format!(
                "expiration_time: {} s ago is not allowed, a later time is",
                end_age(end, now)
            );
            Err(Status::invalid_argument(text))
        }
        end => Ok(end.map(|end| end.remaining(now))),
    }
}

const fn end_age(end: Wall, now: Wall) -> u64 {
    now.unix_secs() - end.unix_secs()
}

fn response(event: WatchEvent) -> Option<NetworkServiceEndpointResponse> {
    match event {
        WatchEvent::Endpoint { found, deleted } => Some(NetworkServiceEndpointResponse {
            network_service_endpoint: Some(encode_found(found)),
            deleted,
        }),
        WatchEvent::Service { .. } | WatchEvent::Document(_) => None,
    }
}

/// The events of a watch as messages, each made when its reader takes it, until the watch is
/// cut or dropped.
pub(super) fn responses<T, F>(
    watch: Watch,
    convert: F,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static
where
    T: Send + 'static,
    F: Fn(WatchEvent) -> Option<T> + Copy + Send + 'static,
{
    stream::unfold(watch, move |mut watch| async move {
        loop {
            let response = match watch.next().await? {
                Ok(event) => convert(event).map(Ok),
                Err(refusal) => Some(Err(status(&refusal))),
            };
            if let Some(response) = response {
                return Some((response, watch));
            }
        }
    })
}

/// What a Find shows as messages, in the same way.
fn present(
    found: Found,
) -> impl Stream<Item = Result<NetworkServiceEndpointResponse, Status>> + Send + 'static {
    stream::unfold(found, |mut found| async move {
        let response = found.next().await?.map(|found| {
            let network_service_endpoint = Some(encode_found(found));
            NetworkServiceEndpointResponse {
                network_service_endpoint,
                deleted: false,
            }
        });
        Some((response.map_err(|refusal| status(&refusal)), found))
    })
}

#[tonic::async_trait]
impl NetworkServiceEndpointRegistry for Endpoints {
    type FindStream =
        Pin<Box<dyn Stream<Item = Result<NetworkServiceEndpointResponse, Status>> + Send>>;

    async fn register(
        &self,
        request: Request<NetworkServiceEndpoint>,
    ) -> Result<Response<NetworkServiceEndpoint>, Status> {
        let call = Registration::read(&*self.0.tokens, request.metadata(), request.extensions())?;
        let message = request.into_inner();
        let lifetime = lifetime(&message, call.expires)?;
        let mut endpoint = decode_endpoint(message)?;
        call.set_ids(&mut endpoint.path_ids);
        let command = Command::RegisterEndpoint { endpoint, lifetime };
        match self.0.handle.call(call.peer.clone(), command).await {
            Ok(Reply::Endpoint(found)) => Ok(call.answer(encode_found(found))),
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => Err(status(&refusal)),
        }
    }

    async fn find(
        &self,
        request: Request<NetworkServiceEndpointQuery>,
    ) -> Result<Response<Self::FindStream>, Status> {
        let peer = peer(request.extensions())?;
        let message = request.into_inner();
        let watch = message.watch;
        let query = decode_endpoint_query(message)?;
        if watch {
            let watch = self.0.handle.watch(peer, Query::Endpoints(query)).await;
            let watch = watch.map_err(|refusal| status(&refusal))?;
            return Ok(Response::new(Box::pin(responses(watch, response))));
        }
        let found = self.0.handle.find(peer, query).await;
        let found = found.map_err(|refusal| status(&refusal))?;
        Ok(Response::new(Box::pin(present(found))))
    }

    async fn unregister(
        &self,
        request: Request<NetworkServiceEndpoint>,
    ) -> Result<Response<()>, Status> {
        let call = Registration::read(&*self.0.tokens, request.metadata(), request.extensions())?;
        let name = request.into_inner().name;
        match self
            .0
            .handle
            .call(call.peer.clone(), Command::UnregisterEndpoint { name })
            .await
        {
            Ok(_) => Ok(call.answer(())),
            Err(refusal) => Err(status(&refusal)),
        }
    }
}
