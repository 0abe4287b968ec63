//! Follows the router's state and turns it into views, for ever: while the router is away the
//! last view stands.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::watch;
use vl3_core::document::{Offer, Role, RoleIds};
use vl3_core::ids::NetworkUid;
use vl3_core::names::{NetworkParts, Policy};
use vl3_identity::Trust;
use vl3_proto::document::decode_chain;
use vl3_proto::vl3::network::v1::DocumentChain;
use vl3_proto::vl3::router::v1::resolver_client::ResolverClient;
use vl3_proto::vl3::router::v1::{ResolverState, ResolverWatchRequest};
use vl3_runtime::grpc::{DialUrl, Dialer, Expect};
use vl3_runtime::{CancellationToken, DocumentAlarms, Documents, Retry};

use crate::sockets::OwnAddress;
use crate::state::from_wire;

/// Version of the watch that this server speaks.
const VERSION: u32 = 1;
/// A state with a document; documents end at 3 MiB.
const MESSAGE_MAX: usize = 8 * 1024 * 1024;

pub(crate) struct Follower {
    pub(crate) run_dir: PathBuf,
    pub(crate) dialer: Dialer,
    /// Our own trust domain: the router is of our domain.
    pub(crate) trust_domain: String,
    pub(crate) uid: NetworkUid,
    pub(crate) trust: Trust,
    pub(crate) alarms: DocumentAlarms,
    pub(crate) shared_names: Policy,
    /// Where other domains' servers listen.
    pub(crate) port: u16,
    pub(crate) networks: watch::Sender<Option<NetworkParts>>,
    pub(crate) own: watch::Sender<OwnAddress>,
}

/// What was believed last.
#[derive(Default)]
struct Believed {
    document: Option<Documents>,
    /// As received, so that an unchanged document is verified once.
    wire: Option<DocumentChain>,
    sequence: u64,
}

impl Follower {
    pub(crate) async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut retry = Retry::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut believed = Believed::default();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                error = self.watch(&mut believed, &mut retry) => {
                    tracing::info!(error = format!("{error:#}"), "the router's state is not followed; trying again");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = retry.pause() => {}
            }
        }
    }

    /// One stream; returns why it ended.
    async fn watch(&self, believed: &mut Believed, retry: &mut Retry) -> anyhow::Error {
        match self.try_watch(believed, retry).await {
            Ok(()) => anyhow::anyhow!("the router ended the stream"),
            Err(error) => error,
        }
    }

    async fn try_watch(&self, believed: &mut Believed, retry: &mut Retry) -> anyhow::Result<()> {
        let url = DialUrl::Unix(self.run_dir.join("nsm.sock"));
        let patterns = RoleIds::defaults(&self.trust_domain)
            .patterns(Role::Router)
            .to_vec();
        let expect = Expect::patterns(self.trust_domain.clone(), patterns);
        let connection = self.dialer.dial(&url, expect).await?;
        let mut client =
            ResolverClient::new(connection.plain()).max_decoding_message_size(MESSAGE_MAX);
        let request = ResolverWatchRequest { version: VERSION };
        let mut states = client
            .watch(request)
            .await
            .context("watch the router's state")?
            .into_inner();
        while let Some(state) = states.message().await.context("read the router's state")? {
            match self.take(believed, &state) {
                Ok(()) => retry.reset(),
                // The state before stays in force; the next one may be right.
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the router's state is refused"
                ),
            }
        }
        Ok(())
    }

    fn take(&self, believed: &mut Believed, state: &ResolverState) -> anyhow::Result<()> {
        self.take_document(believed, state.document.as_ref())?;
        let document = believed
            .document
            .as_ref()
            .context("the router sent no document")?
            .current();
        let sequence = believed.sequence + 1;
        let core = from_wire(state, sequence)?;
        let own = OwnAddress {
            addresses: core.own_addresses.clone(),
            ticket: state.fd_ticket.clone(),
        };
        let network = NetworkParts {
            document,
            state: core,
            shared_names: self.shared_names,
            port: self.port,
        };
        believed.sequence = sequence;
        self.own.send_if_modified(|known| {
            let changed = *known != own;
            *known = own;
            changed
        });
        // Err: the server stopped.
        let _stopped = self.networks.send(Some(network));
        Ok(())
    }

    /// Takes the highest valid version of our network.
    fn take_document(
        &self,
        believed: &mut Believed,
        wire: Option<&DocumentChain>,
    ) -> anyhow::Result<()> {
        let Some(wire) = wire.filter(|wire| believed.wire.as_ref() != Some(*wire)) else {
            return Ok(());
        };
        let chain = decode_chain(wire).context("the router's document")?;
        if chain.uid() != self.uid {
            bail!(
                "the router serves network {}, this server is of {}",
                chain.uid(),
                self.uid
            );
        }
        match &believed.document {
            None => {
                let documents = Documents::new(chain, self.trust.clone()).counted(&self.alarms);
                believed.document = Some(documents);
            }
            Some(documents) => {
                if let Offer::Newer(newer) = documents.offer(&chain) {
                    documents.believe(newer);
                }
            }
        }
        believed.wire = Some(wire.clone());
        Ok(())
    }
}
