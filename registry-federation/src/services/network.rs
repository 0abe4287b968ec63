//! `vl3.network.v1.Network`: the document, for members, and newer versions from anybody.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status};
use vl3_core::registry::{Command, Query, Reply, WatchEvent};
use vl3_proto::document::{decode_chain, encode_chain};
use vl3_proto::vl3::network::v1::network_server::Network;
use vl3_proto::vl3::network::v1::{DocumentChain, PublishReply, WatchRequest};

use super::caller::peer;
use super::endpoints::responses;
use super::errors::{status, unexpected};
use crate::handle::Handle;

pub(super) struct Documents(pub(super) Handle);

fn chain(event: WatchEvent) -> Option<DocumentChain> {
    match event {
        WatchEvent::Document(chain) => Some(encode_chain(&chain)),
        WatchEvent::Endpoint { .. } | WatchEvent::Service { .. } => None,
    }
}

#[tonic::async_trait]
impl Network for Documents {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<DocumentChain, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let peer = peer(request.extensions())?;
        let uid = vl3_proto::network_uid("uid", &request.get_ref().uid)?;
        let watch = self
            .0
            .watch(peer, Query::Document(uid))
            .await
            .map_err(|refusal| status(&refusal))?;
        Ok(Response::new(Box::pin(responses(watch, chain))))
    }

    async fn publish(
        &self,
        request: Request<DocumentChain>,
    ) -> Result<Response<PublishReply>, Status> {
        let peer = peer(request.extensions())?;
        let chain = decode_chain(request.get_ref())?;
        match self.0.call(peer, Command::Publish { chain }).await {
            Ok(Reply::Published {
                version,
                accepted,
                reason,
            }) => Ok(Response::new(PublishReply {
                version,
                accepted,
                reason,
            })),
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => Err(status(&refusal)),
        }
    }
}
