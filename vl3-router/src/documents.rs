//! The network document on its way through a router: stored first, then served and trusted.

use std::pin::Pin;

use anyhow::{Context as _, bail};
use futures_util::{Stream, StreamExt as _};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use vl3_core::document::Chain;
use vl3_core::router::{Record, State};
use vl3_proto::document::{encode_chain, read_armoured, write_armoured};
use vl3_proto::vl3::network::v1::network_server::Network;
use vl3_proto::vl3::network::v1::{DocumentChain, PublishReply, WatchRequest};
use vl3_runtime::Documents;

use crate::service::identity;
use crate::store::Store;

/// What a start believes, stored when this returns: what an earlier run stored, unless the
/// configured file is newer.
pub(crate) fn at_start(given: Chain, store: &Store, state: &mut State) -> anyhow::Result<Chain> {
    let stored = state.document.as_deref().map(decode).transpose()?;
    if let Some(stored) = stored.as_ref().filter(|stored| stored.uid() != given.uid()) {
        bail!(
            "state_dir belongs to network {}, network.uid is {}",
            stored.uid(),
            given.uid()
        );
    }
    let chain = Documents::at_start(given, stored.clone());
    if stored.as_ref() != Some(&chain) {
        let record = Record::Document {
            bytes: encode(&chain),
        };
        store
            .append(std::slice::from_ref(&record))
            .context("store the network document")?;
        state.apply(&record);
    }
    Ok(chain)
}

/// Makes the records durable. A document among them is in force from then on: a router that
/// starts again never believes less than it has shown to others.
pub(crate) fn append(
    store: &Store,
    documents: &Documents,
    records: &[Record],
) -> anyhow::Result<()> {
    store.append(records)?;
    for record in records {
        if let Record::Document { bytes } = record {
            documents.believe(decode(bytes)?);
        }
    }
    Ok(())
}

/// As it is stored.
pub(crate) fn encode(chain: &Chain) -> Vec<u8> {
    write_armoured(chain).into_bytes()
}

fn decode(bytes: &[u8]) -> anyhow::Result<Chain> {
    let text = std::str::from_utf8(bytes).context("the stored document is no text")?;
    read_armoured(text).context("the stored document")
}

/// Those who follow the document here: clients and the DNS server.
#[derive(Clone, Debug)]
pub(crate) struct Followed(pub(crate) Documents);

#[tonic::async_trait]
impl Network for Followed {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<DocumentChain, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let own = self.0.uid();
        identity(&request, &own)?;
        let uid = vl3_proto::network_uid("uid", &request.get_ref().uid)?;
        if uid != own {
            return Err(Status::not_found(format!(
                "uid: {uid} is not this router's network {own}"
            )));
        }
        let stream = WatchStream::new(self.0.subscribe()).map(|chain| Ok(encode_chain(&chain)));
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

#[cfg(test)]
mod tests {
    use vl3_core::document::Offer;
    use vl3_identity::authority::Authority;
    use vl3_identity::{Source, Trust};
    use vl3_runtime::clock;

    use super::*;
    use crate::fixture::chain;

    fn documents(chain: Chain) -> Documents {
        let day = core::time::Duration::from_secs(86_400);
        let authority = Authority::create("east.test", clock::wall()).unwrap();
        let identity = authority
            .identity("vl3/router/a", day, clock::wall())
            .unwrap();
        Documents::new(chain, Trust::new(&Source::fixed(identity)))
    }

    #[test]
    fn a_document_is_served_when_it_is_stored_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let documents = documents(chain(1));
        let Offer::Newer(newer) = documents.offer(&chain(2)) else {
            panic!("version 2 is newer");
        };
        assert_eq!(documents.current().version, 1);
        {
            let (store, _, _) = Store::open(Some(dir.path())).unwrap();
            let bytes = encode(&newer);
            append(&store, &documents, &[Record::Document { bytes }]).unwrap();
        }
        assert_eq!(documents.current().version, 2);
        let (_, _, state) = Store::open(Some(dir.path())).unwrap();
        assert_eq!(state.document, Some(encode(&newer)));
    }

    #[test]
    fn what_the_disk_did_not_take_is_served_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, _) = Store::open(Some(dir.path())).unwrap();
        let documents = documents(chain(1));
        let bytes = b"no document".to_vec();
        assert!(append(&store, &documents, &[Record::Document { bytes }]).is_err());
        assert_eq!(documents.current().version, 1);
    }

    #[test]
    fn the_file_of_a_first_start_is_stored_and_an_older_one_never_again() {
        let dir = tempfile::tempdir().unwrap();
        let start = |given: u64| {
            let (store, _, mut state) = Store::open(Some(dir.path())).unwrap();
            let believed = at_start(chain(given), &store, &mut state).unwrap();
            assert_eq!(state.document, Some(encode(&believed)));
            believed.document().version
        };
        assert_eq!([start(1), start(1), start(3), start(2)], [1, 1, 3, 3]);
        let (_, _, state) = Store::open(Some(dir.path())).unwrap();
        assert_eq!(state.document, Some(encode(&chain(3))));
    }
}
