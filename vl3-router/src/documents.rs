//! The network document that this router holds, and those who follow it here: clients and the
//! DNS server.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use vl3_core::document::{Chain, Document, DocumentStore, Offer};
use vl3_core::ids::NetworkUid;
use vl3_identity::Trust;
use vl3_proto::document::encode_chain;
use vl3_proto::vl3::network::v1::network_server::Network;
use vl3_proto::vl3::network::v1::{DocumentChain, PublishReply, WatchRequest};
use vl3_runtime::clock;

use crate::service::identity;

/// The newest valid chain; every holder sees the same.
#[derive(Clone, Debug)]
pub(crate) struct Documents {
    chain: Arc<watch::Sender<Chain>>,
    trust: Trust,
}

impl Documents {
    pub(crate) fn new(chain: Chain, trust: Trust) -> Self {
        let documents = Self {
            chain: Arc::new(watch::Sender::new(chain)),
            trust,
        };
        documents.trust_members();
        documents
    }

    pub(crate) fn uid(&self) -> NetworkUid {
        self.chain.borrow().uid()
    }

    pub(crate) fn current(&self) -> Arc<Document> {
        Arc::clone(self.chain.borrow().document())
    }

    pub(crate) fn chain(&self) -> Chain {
        self.chain.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Chain> {
        self.chain.subscribe()
    }

    /// Takes an offered chain if it is newer; true then.
    pub(crate) fn offer(&self, offered: &Chain) -> bool {
        let decision = DocumentStore::new(self.chain()).decide(offered);
        match decision {
            Offer::Newer(newer) => {
                tracing::info!(
                    version = newer.document().version,
                    "new version of the network document"
                );
                self.chain.send_replace(newer);
                self.trust_members();
                true
            }
            Offer::Same | Offer::Older { .. } => false,
            Offer::Conflict { version } => {
                tracing::error!(
                    version,
                    "two different documents of one version: an admin key is misused; nothing changes"
                );
                false
            }
            Offer::OtherNetwork { offered } => {
                tracing::error!(%offered, "a document of another network was offered");
                false
            }
        }
    }

    fn trust_members(&self) {
        if let Err(errors) = self.trust.set_document(&self.current(), clock::wall()) {
            for error in errors {
                tracing::error!(%error, "a member's bundle cannot be used");
            }
        }
    }
}

#[tonic::async_trait]
impl Network for Documents {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<DocumentChain, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        identity(&request, &self.uid())?;
        let uid = vl3_proto::network_uid("uid", &request.get_ref().uid)?;
        if uid != self.uid() {
            return Err(Status::not_found(format!(
                "uid: {uid} is not this router's network {}",
                self.uid()
            )));
        }
        let stream = WatchStream::new(self.subscribe()).map(|chain| Ok(encode_chain(&chain)));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn publish(
        &self,
        _request: Request<DocumentChain>,
    ) -> Result<Response<PublishReply>, Status> {
        Err(Status::unimplemented(
            "routers take documents from their registry: publish there",
        ))
    }
}
