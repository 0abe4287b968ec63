//! What the DNS server of this router follows: `vl3.router.v1.Resolver`.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use vl3_core::document::Role;
use vl3_core::ids::DomainName;
use vl3_core::router::{ClientClass, ResolverView};
use vl3_proto::document::encode_chain;
use vl3_proto::vl3::router::v1 as wire;
use vl3_proto::vl3::router::v1::resolver_server::Resolver;
use vl3_runtime::clock;

use crate::documents::Documents;
use crate::service::identity;

/// The newest view, published by the machine, and who may read it.
#[derive(Clone, Debug)]
pub(crate) struct Resolvers {
    view: Arc<watch::Sender<(u64, ResolverView)>>,
    documents: Documents,
    domain: DomainName,
}

impl Resolvers {
    pub(crate) fn new(documents: Documents, domain: DomainName) -> Self {
        Self {
            view: Arc::default(),
            documents,
            domain,
        }
    }

    pub(crate) fn publish(&self, view: ResolverView) {
        self.view.send_modify(|(sequence, held)| {
            *sequence += 1;
            *held = view;
        });
    }
}

#[tonic::async_trait]
impl Resolver for Resolvers {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::ResolverState, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<wire::ResolverWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let peer = identity(&request, &self.documents.uid())?;
        let document = self.documents.current();
        let granted = document
            .member(&self.domain, clock::wall())
            .is_some_and(|member| member.grants(Role::Dns, &peer.id));
        if !granted {
            return Err(Status::permission_denied(format!(
                "{} is no DNS server of domain {}",
                peer.id, self.domain
            )));
        }
        let (documents, domain) = (self.documents.clone(), self.domain.clone());
        // Either change yields a whole state.
        let views = WatchStream::new(self.view.subscribe()).map(|_| ());
        let versions = WatchStream::from_changes(self.documents.subscribe()).map(|_| ());
        let view = Arc::clone(&self.view);
        let stream = futures_util::stream::select(views, versions).map(move |()| {
            let (sequence, view) = view.borrow().clone();
            Ok(state(sequence, view, &documents, &domain))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

fn state(
    sequence: u64,
    view: ResolverView,
    documents: &Documents,
    domain: &DomainName,
) -> wire::ResolverState {
    let texts =
        |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect();
    wire::ResolverState {
        sequence,
        document: Some(encode_chain(&documents.chain())),
        domain: domain.to_string(),
        names: view
            .names
            .iter()
            .map(|(name, addresses)| wire::LocalName {
                name: name.to_string(),
                addresses: texts(addresses),
            })
            .collect(),
        servers: view
            .servers
            .iter()
            .map(|server| wire::DomainServer {
                domain: server.domain.to_string(),
                router: server
                    .router
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                addresses: texts(&server.addresses),
                sibling: server.sibling,
            })
            .collect(),
        clients: view
            .clients
            .iter()
            .map(|(prefix, class)| wire::ClientRange {
                prefix: prefix.to_string(),
                class: match class {
                    ClientClass::Member => wire::ClientClass::Member,
                    ClientClass::Sibling => wire::ClientClass::Sibling,
                    ClientClass::Remote => wire::ClientClass::Remote,
                }
                .into(),
            })
            .collect(),
        own_addresses: texts(&view.own_addresses),
    }
}
