//! What is kept up for ever: registration, watch, document.

use core::time::Duration;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use vl3_core::document::Offer;
use vl3_core::registry::Marks;
use vl3_core::router::{Discovered, Input, Registration, RouterId, WatchEvent};
use vl3_proto::document::decode_chain;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vl3_proto::registry::network_service_registry_client::NetworkServiceRegistryClient;
use vl3_proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery,
    NetworkServiceEndpointResponse, NetworkServiceLabels,
};
use vl3_proto::vl3::network::v1::WatchRequest;
use vl3_proto::vl3::network::v1::network_client::NetworkClient;
use vl3_runtime::{Retry, Said, clock};

use super::{Registry, limited};
use crate::documents::encode;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An endpoint without expiry is shown again after this.
const REFRESH_DEFAULT: Duration = Duration::from_secs(40);

impl Registry {
    /// Registers whatever the machine wants registered, and refreshes it at 2/3 of its life.
    pub(crate) async fn keep_registered(
        self,
        port: u16,
        advertise: Option<IpAddr>,
        udp_port: u16,
    ) -> anyhow::Result<()> {
        let mut wanted = self.registration();
        let mut retry = Retry::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut said = Said::default();
        loop {
            let registration = wanted.borrow_and_update().clone();
            let pause = match registration {
                None => Duration::MAX,
                Some(registration) => match self
                    .register_once(&registration, port, advertise, udp_port)
                    .await
                {
                    Ok(next) => {
                        retry.reset();
                        said.reset();
                        next
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        if let Some(unsaid) = said.say(&error) {
                            tracing::warn!(
                                error,
                                unsaid,
                                "registering with the registry failed; trying again"
                            );
                        }
                        tokio::select! {
                            () = retry.pause() => {}
                            changed = wanted.changed() => changed.context("the router has ended")?,
                        }
                        continue;
                    }
                },
            };
            tokio::select! {
                () = tokio::time::sleep(pause.min(Duration::from_secs(86_400))) => {}
                changed = wanted.changed() => changed.context("the router has ended")?,
            }
        }
    }

    async fn register_once(
        &self,
        registration: &Registration,
        port: u16,
        advertise: Option<IpAddr>,
        udp_port: u16,
    ) -> anyhow::Result<Duration> {
        let connection = self.connection().await?;
        let network = self.documents.current().name.to_string();
        // Where the registry sees us, unless told otherwise.
        let local = connection
            .peer()
            .local_addr
            .map(|address| address.ip().to_canonical());
        let host = advertise
            .or(local)
            .context("set `advertise`: the registry is reached by a unix socket")?;
        let service = NetworkService {
            name: network.clone(),
            payload: "IP".to_owned(),
            ..NetworkService::default()
        };
        let mut services = NetworkServiceRegistryClient::new(self.nsm(&connection));
        if let Err(status) = services.register(limited(service)).await {
            // Another router of the domain owns the name: it exists, which is enough.
            tracing::debug!(status = %status.message(), "registering the network service");
        }
        let marks = Marks {
            service: network.clone(),
            proto: "1-1".to_owned(),
            role: "router".to_owned(),
            uid: registration.uid,
            domain: registration.router.domain.clone(),
            name: registration.router.name.to_string(),
            generation: registration.generation,
            dials_only: registration.dials_only,
            udp: Some(SocketAddr::new(host, udp_port).to_string()),
        };
        let endpoint = NetworkServiceEndpoint {
            name: registration.router.name.to_string(),
            network_service_names: vec![network.clone()],
            network_service_labels: BTreeMap::from([(
                network,
                NetworkServiceLabels {
                    labels: marks.labels(),
                },
            )]),
            url: format!("tcp://{}", SocketAddr::new(host, port)),
            ..NetworkServiceEndpoint::default()
        };
        let mut endpoints = NetworkServiceEndpointRegistryClient::new(self.nsm(&connection));
        let stored = endpoints
            .register(limited(endpoint))
            .await
            .map_err(|status| anyhow::anyhow!("{status}"))?
            .into_inner();
        let life = match &stored.expiration_time {
            Some(end) => vl3_proto::wall("expiration_time", end)?.remaining(clock::wall()),
            None => REFRESH_DEFAULT * 3 / 2,
        };
        Ok((life * 2 / 3).max(Duration::from_millis(200)))
    }

    /// Every router of the network, ours and those of other domains; each new stream is a new
    /// epoch.
    pub(crate) async fn keep_watching(self) -> anyhow::Result<()> {
        let mut retry = Retry::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut said = Said::default();
        loop {
            if let Err(error) = self.watch_once(&mut retry, &mut said).await {
                let error = format!("{error:#}");
                if let Some(unsaid) = said.say(&error) {
                    tracing::info!(error, unsaid, "registry is lost; trying again");
                }
            }
            self.handle.tell(Input::Watch(WatchEvent::Lost)).await;
            retry.pause().await;
        }
    }

    async fn watch_once(&self, retry: &mut Retry, said: &mut Said) -> anyhow::Result<()> {
        let connection = self.connection().await?;
        let network = self.documents.current().name.to_string();
        let query = |watch| NetworkServiceEndpointQuery {
            network_service_endpoint: Some(NetworkServiceEndpoint {
                network_service_names: vec![network.clone()],
                ..NetworkServiceEndpoint::default()
            }),
            watch,
        };
        let mut registry = NetworkServiceEndpointRegistryClient::new(self.nsm(&connection));
        let watched = registry.find(query(true)).await?.into_inner();
        retry.reset();
        said.reset();
        tracing::info!(peer = %connection.peer().id, "registry is connected");
        self.handle.tell(Input::Watch(WatchEvent::Opened)).await;
        let shown = async {
            // A watch does not say where its snapshot ends; a Find without watch ends with it.
            let present = registry.find(limited(query(false))).await?.into_inner();
            self.hand_on(present).await?;
            self.handle.tell(Input::Watch(WatchEvent::Complete)).await;
            self.hand_on(watched).await
        };
        tokio::select! {
            ended = shown => ended?,
            peer = self.disowned(&connection) => anyhow::bail!("{peer} is no registry of this domain any more"),
        }
        anyhow::bail!("the stream ended")
    }

    /// Tells the machine what a Find shows, until it ends.
    async fn hand_on(
        &self,
        mut found: tonic::Streaming<NetworkServiceEndpointResponse>,
    ) -> anyhow::Result<()> {
        while let Some(response) = found.message().await? {
            let Some(endpoint) = response.network_service_endpoint else {
                continue;
            };
            match discovered(&endpoint) {
                Ok(Some(router)) if response.deleted => {
                    self.handle
                        .tell(Input::Watch(WatchEvent::Gone(router.router)))
                        .await;
                }
                Ok(Some(router)) => {
                    self.handle
                        .tell(Input::Watch(WatchEvent::Found(router)))
                        .await
                }
                // A stock router, or a leaf: not consumed by this version.
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    endpoint = endpoint.name,
                    error = format!("{error:#}"),
                    "an endpoint is ignored"
                ),
            }
        }
        Ok(())
    }

    /// New versions of the document, for ever.
    pub(crate) async fn keep_document(self) -> anyhow::Result<()> {
        let mut retry = Retry::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            if let Err(error) = self.document_once(&mut retry).await {
                tracing::debug!(
                    error = format!("{error:#}"),
                    "the document stream ended; opening it again"
                );
            }
            retry.pause().await;
        }
    }

    async fn document_once(&self, retry: &mut Retry) -> anyhow::Result<()> {
        let connection = self.connection().await?;
        let request = WatchRequest {
            uid: self.documents.uid().0.to_vec(),
        };
        let mut versions = NetworkClient::new(connection.plain())
            .watch(request)
            .await?
            .into_inner();
        let disowned = self.disowned(&connection);
        tokio::pin!(disowned);
        loop {
            let message = tokio::select! {
                message = versions.message() => message?,
                peer = &mut disowned => anyhow::bail!("{peer} is no registry of this domain any more"),
            };
            let Some(message) = message else { break };
            retry.reset();
            let chain = decode_chain(&message)?;
            // In force when the machine has stored it.
            if let Offer::Newer(newer) = self.documents.offer(&chain) {
                let document = Box::new(newer.document().as_ref().clone());
                let bytes = encode(&newer);
                self.handle.tell(Input::Document { document, bytes }).await;
            }
        }
        anyhow::bail!("the stream ended")
    }
}

/// Unset for what is none of our routers.
fn discovered(endpoint: &NetworkServiceEndpoint) -> anyhow::Result<Option<Discovered>> {
    let marks = endpoint
        .network_service_labels
        .iter()
        .find_map(|(service, labels)| Marks::parse(service, &labels.labels));
    let Some(marks) = marks.filter(|marks| marks.role == "router") else {
        return Ok(None);
    };
    let address = endpoint
        .url
        .strip_prefix("tcp://")
        .and_then(|rest| rest.parse().ok())
        .with_context(|| format!("url: {:?} is not allowed: tcp://IP:PORT", endpoint.url))?;
    Ok(Some(Discovered {
        router: RouterId {
            name: marks.name.parse()?,
            domain: marks.domain,
        },
        uid: marks.uid,
        generation: marks.generation,
        dials_only: marks.dials_only,
        address,
    }))
}
