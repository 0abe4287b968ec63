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
use vl3_runtime::Documents;

use crate::service::identity;
use crate::tickets::{Ticket, Tickets};

/// The newest view, published by the machine, and who may read it.
#[derive(Clone, Debug)]
pub(crate) struct Resolvers {
    view: Arc<watch::Sender<(u64, ResolverView)>>,
    documents: Documents,
    domain: DomainName,
    tickets: Tickets,
}

impl Resolvers {
    pub(crate) fn new(documents: Documents, domain: DomainName) -> Self {
        let tickets = Tickets::new({
            let (documents, domain) = (documents.clone(), domain.clone());
            move |id| documents.grants(&domain, Role::Dns, id)
        });
        Self {
            view: Arc::default(),
            documents,
            domain,
            tickets,
        }
    }

    /// What its readers show on `fd.sock`.
    pub(crate) fn tickets(&self) -> Tickets {
        self.tickets.clone()
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
        let refused = Status::permission_denied(format!(
            "{} is no DNS server of domain {}",
            peer.id, self.domain
        ));
        let Some(ticket) = self.tickets.issue(&peer.id) else {
            return Err(refused);
        };
        let (documents, domain) = (self.documents.clone(), self.domain.clone());
        let tickets = self.tickets.clone();
        // Either change yields a whole state.
        let views = WatchStream::new(self.view.subscribe()).map(|_| ());
        let versions = WatchStream::from_changes(self.documents.subscribe()).map(|_| ());
        let view = Arc::clone(&self.view);
        let stream = futures_util::stream::select(views, versions).scan(false, move |ended, ()| {
            let next = if *ended {
                None
            } else if tickets.grants(&peer.id) {
                let (sequence, view) = view.borrow().clone();
                Some(Ok(state(sequence, view, &documents, &domain, &ticket)))
            } else {
                *ended = true;
                Some(Err(refused.clone()))
            };
            futures_util::future::ready(next)
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

fn state(
    sequence: u64,
    view: ResolverView,
    documents: &Documents,
    domain: &DomainName,
    ticket: &Ticket,
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
        fd_ticket: ticket.secret().to_vec(),
    }
}
