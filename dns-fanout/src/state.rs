//! The router's message as core types, checked field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use vl3_core::ids::{DomainName, InvalidName, RouterName, WorkloadName};
use vl3_core::names::{ClientClass, DomainServer, LocalName, ResolverState};
use vl3_proto::vl3::router::v1 as wire;

/// Names of one router; a hundred times what one router serves.
const NAMES_MAX: usize = 65_536;
/// Servers and client prefixes.
const LIST_MAX: usize = 16_384;

/// Stands for "no router" in a server without addresses.
const NOBODY: &str = "-";

/// Why a state was not taken: the one before stays (R7.4).
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("{field}: {source}")]
    Name {
        field: &'static str,
        source: InvalidName,
    },
    #[error("{field}: {value:?} is no {allowed}")]
    Value {
        field: &'static str,
        value: String,
        allowed: &'static str,
    },
    #[error("{field} has {count} entries, at most {max} are allowed")]
    TooMany {
        field: &'static str,
        count: usize,
        max: usize,
    },
}

pub(crate) fn from_wire(
    state: &wire::ResolverState,
    sequence: u64,
) -> Result<ResolverState, StateError> {
    bounded("names", state.names.len(), NAMES_MAX)?;
    bounded("servers", state.servers.len(), LIST_MAX)?;
    bounded("clients", state.clients.len(), LIST_MAX)?;
    let mut names = BTreeMap::new();
    for name in &state.names {
        let key = WorkloadName::new(&name.name).map_err(|source| StateError::Name {
            field: "names.name",
            source,
        })?;
        let local: &mut LocalName = names.entry(key).or_default();
        local.addresses.extend(addresses::<BTreeSet<IpAddr>>(
            "names.addresses",
            &name.addresses,
        )?);
    }
    let servers = state.servers.iter().map(server).collect::<Result<_, _>>()?;
    let clients = state.clients.iter().map(client).collect::<Result<_, _>>()?;
    Ok(ResolverState {
        sequence,
        domain: DomainName::new(&state.domain).map_err(|source| StateError::Name {
            field: "domain",
            source,
        })?,
        names,
        servers,
        clients,
        own_addresses: addresses("own_addresses", &state.own_addresses)?,
    })
}

/// A domain that is known while none of its routers lives comes without a router's name.
fn server(server: &wire::DomainServer) -> Result<DomainServer, StateError> {
    let name = |field, source| StateError::Name { field, source };
    let addresses: Vec<IpAddr> = addresses("servers.addresses", &server.addresses)?;
    let router = if server.router.is_empty() && addresses.is_empty() {
        NOBODY
    } else {
        &server.router
    };
    Ok(DomainServer {
        domain: DomainName::new(&server.domain).map_err(|source| name("servers.domain", source))?,
        router: RouterName::new(router).map_err(|source| name("servers.router", source))?,
        addresses,
        sibling: server.sibling,
    })
}

fn client(range: &wire::ClientRange) -> Result<(IpNet, ClientClass), StateError> {
    let prefix = range
        .prefix
        .parse::<IpNet>()
        .or_else(|error| {
            range
                .prefix
                .parse::<IpAddr>()
                .map(IpNet::from)
                .map_err(|_| error)
        })
        .map_err(|_| value("clients.prefix", &range.prefix, "prefix"))?;
    let class = match range.class() {
        wire::ClientClass::Member => ClientClass::Member,
        wire::ClientClass::Sibling => ClientClass::Sibling,
        wire::ClientClass::Remote => ClientClass::Remote,
        wire::ClientClass::Unspecified => {
            return Err(value(
                "clients.class",
                &range.class.to_string(),
                "member, sibling or remote",
            ));
        }
    };
    Ok((prefix.trunc(), class))
}

/// Plain addresses, or prefixes of one address.
fn addresses<C: FromIterator<IpAddr>>(
    field: &'static str,
    texts: &[String],
) -> Result<C, StateError> {
    texts
        .iter()
        .map(|text| {
            let prefix = || {
                text.parse::<IpNet>()
                    .ok()
                    .filter(|net| net.prefix_len() == net.max_prefix_len())
            };
            text.parse::<IpAddr>()
                .ok()
                .or_else(|| prefix().map(|net| net.addr()))
                .map(|address| address.to_canonical())
                .ok_or_else(|| value(field, text, "address"))
        })
        .collect()
}

fn value(field: &'static str, value: &str, allowed: &'static str) -> StateError {
    StateError::Value {
        field,
        value: value.chars().take(64).collect(),
        allowed,
    }
}

const fn bounded(field: &'static str, count: usize, max: usize) -> Result<(), StateError> {
    if count > max {
        Err(StateError::TooMany { field, count, max })
    } else {
        Ok(())
    }
}
