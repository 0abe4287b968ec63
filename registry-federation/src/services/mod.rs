//! What is served on the one port: each call's identity, its conversion, one question to the
//! machine, its answer.

mod caller;
mod endpoints;
mod errors;
mod ipam;
mod names;
mod network;
mod network_services;
mod prefixes;
mod sync;

pub(crate) use caller::peer_of;
pub(crate) use prefixes::{InUse, Prefixes};
pub(crate) use sync::{read_stream, wire_messages};

use nsm_chain::SvidTokens;
use std::sync::Arc;
use tonic::service::Routes;
use vl3_proto::ipam::ipam_server::IpamServer as StockIpamServer;
use vl3_proto::registry::network_service_endpoint_registry_server::NetworkServiceEndpointRegistryServer;
use vl3_proto::registry::network_service_registry_server::NetworkServiceRegistryServer;
use vl3_proto::vl3::ipam::v1::ipam_server::IpamServer;
use vl3_proto::vl3::network::v1::network_server::NetworkServer;
use vl3_proto::vl3::registry::v1::names_server::NamesServer;
use vl3_proto::vl3::registry::v1::sync_server::SyncServer;

use crate::handle::Handle;
use crate::replica::Forward;

/// The largest message: a document chain with its bundles.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Full names, for health.
pub(crate) const NAMES: [&str; 6] = [
    "registry.NetworkServiceRegistry",
    "registry.NetworkServiceEndpointRegistry",
    "vl3.ipam.v1.Ipam",
    "vl3.network.v1.Network",
    "vl3.registry.v1.Sync",
    "vl3.registry.v1.Names",
];

/// What every service needs.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) handle: Handle,
    pub(crate) tokens: Arc<SvidTokens>,
}

/// What is served on a port for stock routers.
pub(crate) fn stock_routes(prefixes: Prefixes) -> Routes {
    Routes::new(StockIpamServer::new(prefixes))
}

/// With `forward` before them all.
pub(crate) fn routes(shared: Shared, forward: Forward) -> Routes {
    let Shared { handle, .. } = shared.clone();
    let routes = Routes::new(NetworkServiceRegistryServer::new(
        network_services::NetworkServices(shared.clone()),
    ))
    .add_service(NetworkServiceEndpointRegistryServer::new(
        endpoints::Endpoints(shared),
    ))
    .add_service(IpamServer::new(ipam::Leases(handle.clone())))
    .add_service(
        NetworkServer::new(network::Documents(handle.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX),
    )
    .add_service(NamesServer::new(names::Names(handle.clone())))
    .add_service(
        SyncServer::new(sync::Streams(handle)).max_decoding_message_size(MESSAGE_BYTES_MAX),
    );
    routes.into_axum_router().layer(forward).into()
}
