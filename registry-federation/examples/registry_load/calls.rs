//! One caller: an identity, a connection, and the calls of an NSM client.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nsm_chain::registry_path::{HEADER, RegistryPath};
use tonic::metadata::MetadataValue;
use vl3_core::ids::{DomainName, Generation, NetworkUid};
use vl3_core::registry::Marks;
use vl3_identity::{Identity, Source, Trust, token};
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vl3_proto::registry::{
    NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    NetworkServiceLabels,
};
use vl3_runtime::clock;
use vl3_runtime::grpc::{Connection, Dialer, Expect, NsmChannel};

use crate::prepare::{NETWORK, authority};

const DAY: Duration = Duration::from_secs(86_400);
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

pub(crate) struct Caller {
    pub(crate) connection: Connection,
    identity: std::sync::Arc<Identity>,
}

impl Caller {
    /// Dials `url` as `spiffe://<domain's trust domain>/<path>`.
    pub(crate) async fn dial(
        dir: &Path,
        domain: u16,
        path: &str,
        url: &str,
    ) -> anyhow::Result<Self> {
        let identity = authority(dir, domain)?.identity(path, DAY, clock::wall())?;
        Self::dial_as(identity, None, url).await
    }

    /// With the bundles of a network's members, when the other end is of another domain.
    pub(crate) async fn dial_as(
        identity: Identity,
        document: Option<&vl3_core::document::Document>,
        url: &str,
    ) -> anyhow::Result<Self> {
        let source = Source::fixed(identity);
        let trust = Trust::new(&source);
        if let Some(document) = document {
            trust
                .set_document(document, clock::wall())
                .map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
        }
        let identity = source.current();
        // Stock servers punish frequent pings.
        let dialer = Dialer::new(source, trust).without_keepalive();
        let url = url.parse().with_context(|| format!("read {url}"))?;
        let connection = dialer.dial(&url, Expect::anybody()).await?;
        Ok(Self {
            connection,
            identity,
        })
    }

    pub(crate) fn endpoints(&self) -> NetworkServiceEndpointRegistryClient<NsmChannel> {
        NetworkServiceEndpointRegistryClient::new(self.connection.nsm())
    }

    /// With the path that a first caller sends.
    pub(crate) async fn register(
        &self,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, tonic::Status> {
        let mut request = tonic::Request::new(endpoint);
        let peer = self.connection.peer();
        let internal =
            |error: &dyn std::fmt::Display| tonic::Status::internal(format!("path: {error}"));
        let (token, _) = token::issue(
            &self.identity,
            Some(&peer.id),
            TOKEN_LIFETIME,
            clock::wall(),
        )
        .map_err(|error| internal(&error))?;
        let path = MetadataValue::try_from(RegistryPath::start(&token).to_header())
            .map_err(|error| internal(&error))?;
        request.metadata_mut().insert(HEADER, path);
        let answer = self.endpoints().register(request).await?;
        Ok(answer.into_inner())
    }

    pub(crate) async fn unregister(
        &self,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), tonic::Status> {
        self.endpoints().unregister(endpoint).await.map(|_| ())
    }

    /// The names of the endpoints found, in order.
    pub(crate) async fn find(
        &self,
        wanted: NetworkServiceEndpoint,
    ) -> Result<Vec<String>, tonic::Status> {
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(wanted),
            watch: false,
        };
        let mut stream = self.endpoints().find(query).await?.into_inner();
        let mut found = Vec::new();
        while let Some(message) = stream.message().await? {
            found.push(message.network_service_endpoint.unwrap_or_default().name);
        }
        found.sort_unstable();
        Ok(found)
    }

    pub(crate) async fn watch(
        &self,
        wanted: NetworkServiceEndpoint,
    ) -> Result<tonic::Streaming<NetworkServiceEndpointResponse>, tonic::Status> {
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(wanted),
            watch: true,
        };
        Ok(self.endpoints().find(query).await?.into_inner())
    }
}

/// A load endpoint as a stock endpoint registers itself.
pub(crate) fn endpoint(number: u32, services: u32) -> NetworkServiceEndpoint {
    let service = service(number % services.max(1));
    let labels = BTreeMap::from([
        ("app".to_owned(), format!("load-{number}")),
        ("nodeName".to_owned(), format!("node-{}", number % 100)),
    ]);
    NetworkServiceEndpoint {
        name: format!("load-{number}"),
        url: format!(
            "tcp://192.0.2.{}:{}",
            number % 250 + 1,
            5000 + number / 250 % 1000
        ),
        network_service_names: vec![service.clone()],
        network_service_labels: BTreeMap::from([(service, NetworkServiceLabels { labels })]),
        ..NetworkServiceEndpoint::default()
    }
}

/// The names of so many load endpoints that are one service's, in order.
pub(crate) fn names_of_service(number: u32, services: u32, endpoints: u32) -> Vec<String> {
    let numbers = (number..).step_by(services.max(1) as usize);
    let mut names: Vec<_> = numbers
        .take(endpoints as usize)
        .map(|number| format!("load-{number}"))
        .collect();
    names.sort_unstable();
    names
}

pub(crate) fn service(number: u32) -> String {
    format!("service-{number}")
}

/// A router's endpoint of a domain, as our routers register it.
pub(crate) fn router_endpoint(
    uid: NetworkUid,
    domain: &str,
    name: &str,
    url: &str,
) -> anyhow::Result<NetworkServiceEndpoint> {
    if !name.starts_with(NETWORK) {
        bail!("name: {name:?} is not allowed, {NETWORK}-... is");
    }
    let marks = Marks {
        service: NETWORK.to_owned(),
        proto: "1-1".to_owned(),
        role: "router".to_owned(),
        uid,
        domain: DomainName::new(domain)?,
        name: name.to_owned(),
        generation: Generation(1),
        dials_only: false,
        udp: Some("192.0.2.1:51820".to_owned()),
    };
    Ok(NetworkServiceEndpoint {
        name: name.to_owned(),
        url: url.to_owned(),
        network_service_names: vec![NETWORK.to_owned()],
        network_service_labels: BTreeMap::from([(
            NETWORK.to_owned(),
            NetworkServiceLabels {
                labels: marks.labels(),
            },
        )]),
        ..NetworkServiceEndpoint::default()
    })
}
