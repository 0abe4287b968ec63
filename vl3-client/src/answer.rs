//! A router's answer, checked field by field before anything of it is used.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use vl3_core::document::Document;
use vl3_core::forward::routable;
use vl3_core::heal;
use vl3_core::ids::{PublicKey, RouterName};
use vl3_core::router::VERSION;
use vl3_core::time::Wall;
use vl3_proto::connection::Connection;
use vl3_proto::connectioncontext::IpContext;
use vl3_proto::{
    FieldError, Hello, HelloRole, LOCAL, REMOTE, TUN, TunAnswer, WIREGUARD, WireguardParameters,
    single_address,
};

use crate::config::Mechanism;
use crate::plan::overlap;

/// Addresses of each kind in one answer.
const ADDRESSES_MAX: usize = 8;
const ROUTES_MAX: usize = 256;
const DNS_MAX: usize = 8;
/// IPv6 needs it (RFC 8200, section 5).
const MTU_MIN: u32 = 1280;
/// What remains of 1500 under WireGuard over IPv6; used where the answer states none.
const MTU_DEFAULT: u16 = 1420;

/// What no overlay address of this host may come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Excluded {
    /// Ranges that the host uses itself: no route leads there either.
    pub(crate) ranges: Vec<IpNet>,
    /// Addresses that other attachments hold.
    pub(crate) held: Vec<IpNet>,
}

impl Excluded {
    pub(crate) fn all(&self) -> impl Iterator<Item = &IpNet> {
        self.ranges.iter().chain(&self.held)
    }
}

/// What the answer is held against.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) document: &'a Document,
    pub(crate) connection_id: &'a str,
    pub(crate) mechanism: Mechanism,
    /// Addresses that other networks of this client hold, and ranges that the host uses.
    pub(crate) excluded: &'a Excluded,
    /// How long our own token lives, where the path states no expiry.
    pub(crate) token_lifetime: Duration,
    pub(crate) now: Wall,
}

/// An answer that may be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) addresses: Vec<IpAddr>,
    /// The router's own overlay addresses.
    pub(crate) router_addresses: Vec<IpAddr>,
    pub(crate) routes: Vec<IpNet>,
    pub(crate) mtu: u16,
    pub(crate) dns_servers: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) path: DataPath,
    pub(crate) router: heal::RouterLife,
    pub(crate) lifetime: Duration,
    pub(crate) segments: u32,
}

/// How packets travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataPath {
    /// Unset: the descriptor handed over earlier is in use still.
    Tun(Option<TunAnswer>),
    Wireguard {
        endpoint: SocketAddr,
        key: PublicKey,
    },
}

impl Accepted {
    /// What the attachment machine needs of it.
    pub(crate) fn summary(&self) -> heal::Answer {
        heal::Answer {
            router: self.router.clone(),
            addresses: self.addresses.clone(),
            lifetime: self.lifetime,
            segments: self.segments,
        }
    }
}

/// Checks `connection` as the answer to `question`. The first bad field is named.
pub(crate) fn check(
    connection: &Connection,
    question: &Question<'_>,
) -> Result<Accepted, FieldError> {
    check_identity(connection, question)?;
    let context = connection.context.as_ref();
    let none = IpContext::default();
    let ip = context
        .and_then(|context| context.ip_context.as_ref())
        .unwrap_or(&none);
    let hello = hello(connection, question)?;
    let router_addresses = router_addresses(ip, question)?;
    let addresses = own_addresses(ip, &router_addresses, hello.as_ref(), question)?;
    let routes = routes(ip, &router_addresses, question)?;
    let (dns_servers, search) = dns(connection)?;
    let (lifetime, segments) = lifetime(connection, question)?;
    Ok(Accepted {
        mtu: mtu(context.map_or(0, |context| context.mtu))?,
        path: data_path(connection, question)?,
        router: router_life(connection, hello.as_ref())?,
        addresses,
        router_addresses,
        routes,
        dns_servers,
        search,
        lifetime,
        segments,
    })
}

/// The answer is ours: same id, service and place in the path.
fn check_identity(connection: &Connection, question: &Question<'_>) -> Result<(), FieldError> {
    if connection.id != question.connection_id {
        return Err(FieldError::new(
            "id",
            &connection.id,
            "the id of the request",
        ));
    }
    if connection.network_service != question.document.name.as_str() {
        return Err(FieldError::new(
            "network_service",
            &connection.network_service,
            "the network service of the request",
        ));
    }
    if !matches!(connection.payload.as_str(), "" | "IP") {
        return Err(FieldError::new("payload", &connection.payload, "IP"));
    }
    let path = connection.path.as_ref();
    let index = path.map_or(u32::MAX, |path| path.index);
    if index != 0 {
        return Err(FieldError::new(
            "path.index",
            index.to_string(),
            "0, the client's own segment",
        ));
    }
    let first = path
        .and_then(|path| path.path_segments.first())
        .map_or("", |segment| segment.id.as_str());
    if first != question.connection_id {
        return Err(FieldError::new(
            "path.path_segments[0].id",
            first,
            "the id of the request",
        ));
    }
    Ok(())
}

/// A stock router shows none. One of another network, or of no member's, is refused.
fn hello(connection: &Connection, question: &Question<'_>) -> Result<Option<Hello>, FieldError> {
    let Some(context) = &connection.context else {
        return Ok(None);
    };
    let Some(hello) = Hello::from_extra_context(&context.extra_context)? else {
        return Ok(None);
    };
    if !(hello.version_min..=hello.version_max).contains(&VERSION) {
        let range = format!("{}..{}", hello.version_min, hello.version_max);
        return Err(FieldError::new(
            "hello.version",
            range,
            "a range that holds 1",
        ));
    }
    if hello.uid != question.document.uid {
        return Err(FieldError::new(
            "hello.uid",
            hello.uid.to_string(),
            "the uid of the network asked for",
        ));
    }
    if hello.role != HelloRole::Router {
        return Err(FieldError::new(
            "hello.role",
            format!("{:?}", hello.role),
            "router",
        ));
    }
    if question
        .document
        .member(&hello.domain, question.now)
        .is_none()
    {
        return Err(FieldError::new(
            "hello.domain",
            hello.domain.as_str(),
            "a live member of the network",
        ));
    }
    Ok(Some(hello))
}

fn router_addresses(ip: &IpContext, question: &Question<'_>) -> Result<Vec<IpAddr>, FieldError> {
    const FIELD: &str = "context.ip_context.dst_ip_addrs";
    let all = addresses(FIELD, &ip.dst_ip_addrs)?;
    for (at, address) in all.iter().enumerate() {
        if !pools(question.document).any(|pool| pool.contains(address)) {
            return Err(FieldError::new(
                format!("{FIELD}[{at}]"),
                address.to_string(),
                "an address inside the network's pools",
            ));
        }
        // It becomes a route.
        let ranges = &question.excluded.ranges;
        if ranges.iter().any(|range| range.contains(address)) {
            return Err(FieldError::new(
                format!("{FIELD}[{at}]"),
                address.to_string(),
                "an address outside the excluded prefixes",
            ));
        }
    }
    Ok(all)
}

fn own_addresses(
    ip: &IpContext,
    router: &[IpAddr],
    hello: Option<&Hello>,
    question: &Question<'_>,
) -> Result<Vec<IpAddr>, FieldError> {
    const FIELD: &str = "context.ip_context.src_ip_addrs";
    let own = addresses(FIELD, &ip.src_ip_addrs)?;
    if own.is_empty() {
        return Err(FieldError::new(FIELD, "", "at least one address"));
    }
    let member = hello.and_then(|hello| question.document.members.get(&hello.domain));
    for (at, address) in own.iter().enumerate() {
        let refuse = |allowed| {
            Err(FieldError::new(
                format!("{FIELD}[{at}]"),
                address.to_string(),
                allowed,
            ))
        };
        if !routable(*address) {
            return refuse("a unicast address");
        }
        if router.contains(address) {
            return refuse("an address that the router does not use itself");
        }
        if question.excluded.all().any(|range| range.contains(address)) {
            return refuse("an address outside the excluded prefixes");
        }
        let owned = match member {
            Some(member) => member.owns_address(*address),
            None => pools(question.document).any(|pool| pool.contains(address)),
        };
        if !owned {
            return refuse(
                "an address inside the blocks that the document gives the router's domain",
            );
        }
    }
    Ok(own)
}

fn addresses(field: &str, values: &[String]) -> Result<Vec<IpAddr>, FieldError> {
    if values.len() > ADDRESSES_MAX {
        return Err(FieldError::new(
            field,
            values.len().to_string(),
            "at most 8 addresses",
        ));
    }
    let mut all = Vec::with_capacity(values.len());
    for (at, value) in values.iter().enumerate() {
        let field = format!("{field}[{at}]");
        let address = single_address(&field, value)?;
        if all.contains(&address) {
            return Err(FieldError::new(
                field,
                value,
                "an address that is not listed before",
            ));
        }
        all.push(address);
    }
    Ok(all)
}

/// Routes inside the network's pools. A wider one (stock routers announce a /16) is cut to the
/// pool; one beside it is refused. Around a range that the host uses itself a route is taken in
/// parts, so that the range stays the host's; one inside of such a range is refused.
fn routes(
    ip: &IpContext,
    router: &[IpAddr],
    question: &Question<'_>,
) -> Result<Vec<IpNet>, FieldError> {
    const FIELD: &str = "context.ip_context.src_routes";
    if ip.src_routes.len() > ROUTES_MAX {
        return Err(FieldError::new(
            FIELD,
            ip.src_routes.len().to_string(),
            "at most 256 routes",
        ));
    }
    let mut routes = Vec::new();
    let mut add = |route: IpNet| {
        if !routes.contains(&route) {
            routes.push(route);
        }
    };
    for (at, route) in ip.src_routes.iter().enumerate() {
        let field = format!("{FIELD}[{at}].prefix");
        let prefix = vl3_proto::prefix(&field, &route.prefix)?;
        if !route.next_hop.is_empty() {
            single_address(&format!("{FIELD}[{at}].nextHop"), &route.next_hop)?;
        }
        let Some(pool) = pools(question.document).find(|pool| overlap(pool, &prefix)) else {
            return Err(FieldError::new(
                field,
                &route.prefix,
                "a prefix inside the network's pools",
            ));
        };
        let inside = if pool.contains(&prefix) { prefix } else { pool };
        let parts = without(inside, &question.excluded.ranges);
        if parts.is_empty() {
            return Err(FieldError::new(
                field,
                &route.prefix,
                "a prefix outside the excluded prefixes",
            ));
        }
        for part in parts {
            add(part);
        }
    }
    for address in router {
        add(IpNet::from(*address));
    }
    if routes.len() > ROUTES_MAX {
        return Err(FieldError::new(
            FIELD,
            routes.len().to_string(),
            "at most 256 routes around the excluded prefixes",
        ));
    }
    Ok(routes)
}

/// What is left of a prefix, in as few prefixes as it takes. Each range costs one per bit that
/// it is longer.
fn without(prefix: IpNet, ranges: &[IpNet]) -> Vec<IpNet> {
    if ranges.iter().any(|range| range.contains(&prefix)) {
        return Vec::new();
    }
    if !ranges.iter().any(|range| prefix.contains(range)) {
        return vec![prefix];
    }
    // Somewhere inside: some range is longer, so there are halves.
    let halves = prefix.subnets(prefix.prefix_len() + 1);
    halves
        .into_iter()
        .flatten()
        .flat_map(|half| without(half, ranges))
        .collect()
}

fn pools(document: &Document) -> impl Iterator<Item = IpNet> + '_ {
    document
        .pool4
        .map(IpNet::V4)
        .into_iter()
        .chain([IpNet::V6(document.pool6)])
}

fn mtu(value: u32) -> Result<u16, FieldError> {
    match u16::try_from(value) {
        Ok(0) => Ok(MTU_DEFAULT),
        Ok(mtu) if value >= MTU_MIN => Ok(mtu),
        Ok(_) | Err(_) => Err(FieldError::new(
            "context.MTU",
            value.to_string(),
            "0 (unset) or 1280 to 65535",
        )),
    }
}

fn dns(connection: &Connection) -> Result<(Vec<IpAddr>, Vec<String>), FieldError> {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    let context = connection
        .context
        .as_ref()
        .and_then(|context| context.dns_context.as_ref());
    let configs = context.map_or(&[][..], |context| &context.configs);
    for (at, config) in configs.iter().take(DNS_MAX).enumerate() {
        let field = format!("context.dns_context.configs[{at}]");
        for (at, text) in config.dns_server_ips.iter().take(DNS_MAX).enumerate() {
            let address = single_address(&format!("{field}.dns_server_ips[{at}]"), text)?;
            if !servers.contains(&address) {
                servers.push(address);
            }
        }
        for (at, suffix) in config.search_domains.iter().take(DNS_MAX).enumerate() {
            let suffix = suffix.trim_end_matches('.').to_ascii_lowercase();
            if !is_domain(&suffix) {
                return Err(FieldError::new(
                    format!("{field}.search_domains[{at}]"),
                    suffix,
                    "a domain name of letters, digits, hyphens and dots",
                ));
            }
            if !search.contains(&suffix) {
                search.push(suffix);
            }
        }
    }
    Ok((servers, search))
}

/// Nothing else may reach resolv.conf.
fn is_domain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

fn data_path(connection: &Connection, question: &Question<'_>) -> Result<DataPath, FieldError> {
    let (cls, kind) = match question.mechanism {
        Mechanism::Tun => (LOCAL, TUN),
        Mechanism::Wireguard => (REMOTE, WIREGUARD),
    };
    let mechanism = connection
        .mechanism
        .as_ref()
        .ok_or_else(|| FieldError::new("mechanism", "", "the mechanism asked for"))?;
    if mechanism.cls != cls || mechanism.r#type != kind {
        let found = format!("{}/{}", mechanism.cls, mechanism.r#type);
        return Err(FieldError::new(
            "mechanism.type",
            found,
            "the mechanism asked for",
        ));
    }
    if question.mechanism == Mechanism::Tun {
        return TunAnswer::from_mechanism(mechanism).map(DataPath::Tun);
    }
    let parameters = WireguardParameters::from_mechanism(mechanism)?;
    let missing = |name: &str, allowed| {
        FieldError::new(format!("mechanism.parameters[{name:?}]"), "", allowed)
    };
    let ip = parameters
        .dst_ip
        .ok_or_else(|| missing("dst_ip", "the router's underlay address"))?;
    let port = parameters.dst_port.unwrap_or(51820);
    let key = parameters
        .dst_public_key
        .ok_or_else(|| missing("dst_public_key", "the router's X25519 key"))?;
    Ok(DataPath::Wireguard {
        endpoint: SocketAddr::new(ip, port),
        key,
    })
}

fn router_life(
    connection: &Connection,
    hello: Option<&Hello>,
) -> Result<heal::RouterLife, FieldError> {
    let name = hello.map_or(connection.network_service_endpoint_name.as_str(), |hello| {
        hello.name.as_str()
    });
    let name = RouterName::new(name).map_err(|error| {
        FieldError::new("network_service_endpoint_name", error.value, error.allowed)
    })?;
    Ok(heal::RouterLife {
        name,
        generation: hello.map(|hello| hello.generation),
        instance: hello.map(|hello| hello.instance),
    })
}

/// The least that remains over all segments that state an expiry.
fn lifetime(
    connection: &Connection,
    question: &Question<'_>,
) -> Result<(Duration, u32), FieldError> {
    let segments = connection
        .path
        .as_ref()
        .map_or(&[][..], |path| &path.path_segments);
    let mut lifetime = question.token_lifetime;
    for (at, segment) in segments.iter().enumerate() {
        if let Some(expires) = &segment.expires {
            let expires = vl3_proto::wall(&format!("path.path_segments[{at}].expires"), expires)?;
            lifetime = lifetime.min(expires.remaining(question.now));
        }
    }
    Ok((lifetime, u32::try_from(segments.len()).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests;
