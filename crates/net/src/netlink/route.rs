use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, accept};
use crate::error::Error;

/// The table that every packet looks in last.
pub const TABLE_MAIN: u32 = 254;

/// One route. Two routes are the same to the kernel when destination, table and metric are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    pub table: u32,
    /// Lower wins; unset = the kernel's (0 for IPv4, 1024 for IPv6).
    pub metric: Option<u32>,
    pub interface: Option<String>,
    pub via: Option<IpAddr>,
    /// The gateway is reachable on the interface although no route says so.
    pub on_link: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    pub mtu: Option<u32>,
    /// Packets are dropped without an answer.
    pub blackhole: bool,
}

impl Route {
    /// A route in the main table that needs [`dev`](Self::dev), [`via`](Self::via) or
    /// [`blackhole`](Self::blackhole) to be complete.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination: destination.trunc(),
            table: TABLE_MAIN,
            metric: None,
            interface: None,
            via: None,
            on_link: false,
            source: None,
            mtu: None,
            blackhole: false,
        }
    }

    #[must_use]
    pub fn dev(self, interface: &str) -> Self {
        Self {
            interface: Some(interface.to_owned()),
            ..self
        }
    }

    #[must_use]
    pub fn via(self, gateway: IpAddr) -> Self {
        Self {
            via: Some(gateway),
            ..self
        }
    }

    #[must_use]
    pub fn on_link(self) -> Self {
        Self {
            on_link: true,
            ..self
        }
    }

    #[must_use]
    pub fn table(self, table: u32) -> Self {
        Self { table, ..self }
    }

    #[must_use]
    pub fn metric(self, metric: u32) -> Self {
        Self {
            metric: Some(metric),
            ..self
        }
    }

    #[must_use]
    pub fn source(self, address: IpAddr) -> Self {
        Self {
            source: Some(address),
            ..self
        }
    }

    #[must_use]
    pub fn mtu(self, mtu: u32) -> Self {
        Self {
            mtu: Some(mtu),
            ..self
        }
    }

    #[must_use]
    pub fn blackhole(self) -> Self {
        Self {
            blackhole: true,
            ..self
        }
    }
}

impl Netlink {
    /// Sets the route, in place of one with the same destination, table and metric.
    pub async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        let message = self.route_message(route).await?;
        self.request(
            || {
                format!(
                    "set the route to {} in table {}",
                    route.destination, route.table
                )
            },
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
        .map(drop)
    }

    /// Deletes the route; one that is not there, or whose interface is gone, is fine.
    pub async fn delete_route(&self, route: &Route) -> Result<(), Error> {
        let message = match self.route_message(route).await {
            Err(Error::NoSuchLink { .. }) => return Ok(()),
            other => other?,
        };
        accept(
            self.request(
                || {
                    format!(
                        "delete the route to {} in table {}",
                        route.destination, route.table
                    )
                },
                RouteNetlinkMessage::DelRoute(message),
                0,
            )
            .await,
            &[libc::ESRCH, libc::ENOENT, libc::ENODEV],
        )
    }

    /// Every unicast and blackhole route of both families in `table`.
    pub async fn routes(&self, table: u32) -> Result<Vec<Route>, Error> {
        let links = self.links().await?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let dump = self
                .request(
                    || "list the routes".to_owned(),
                    RouteNetlinkMessage::GetRoute(message),
                    NLM_F_DUMP,
                )
                .await?;
            for message in dump {
                let RouteNetlinkMessage::NewRoute(message) = message else {
                    continue;
                };
                let Some((index, route)) = route_of(&message) else {
                    continue;
                };
                if route.table == table {
                    let interface = links
                        .iter()
                        .find(|link| Some(link.index) == index)
                        .map(|link| link.name.clone());
                    routes.push(Route { interface, ..route });
                }
            }
        }
        Ok(routes)
    }

    async fn route_message(&self, route: &Route) -> Result<RouteMessage, Error> {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family_of(route.destination);
        header.destination_prefix_length = route.destination.prefix_len();
        header.protocol = RouteProtocol::Static;
        header.table = u8::try_from(route.table).unwrap_or(0);
        header.scope = if route.via.is_some()
            || route.blackhole
            || matches!(route.destination, IpNet::V6(_))
        {
            RouteScope::Universe
        } else {
            RouteScope::Link
        };
        header.kind = if route.blackhole {
            RouteType::BlackHole
        } else {
            RouteType::Unicast
        };
        if route.on_link {
            header.flags |= RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(route.table));
        if route.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(address_of(
                route.destination.network(),
            )));
        }
        if let Some(metric) = route.metric {
            attributes.push(RouteAttribute::Priority(metric));
        }
        if let Some(source) = route.source {
            attributes.push(RouteAttribute::PrefSource(address_of(source)));
        }
        if let Some(via) = route.via {
            attributes.push(RouteAttribute::Gateway(address_of(via)));
        }
        if let Some(mtu) = route.mtu {
            attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        if let Some(interface) = &route.interface {
            let index = self
                .index_of(
                    &format!("set the route to {}", route.destination),
                    interface,
                )
                .await?;
            message.attributes.push(RouteAttribute::Oif(index));
        }
        Ok(message)
    }
}

pub(super) fn family_of(prefix: IpNet) -> AddressFamily {
    match prefix {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

fn address_of(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn route_of(message: &RouteMessage) -> Option<(Option<u32>, Route)> {
    if !matches!(
        message.header.kind,
        RouteType::Unicast | RouteType::BlackHole
    ) {
        return None;
    }
    let any = match message.header.address_family {
        AddressFamily::Inet => IpNet::from(ipnet::Ipv4Net::default()),
        AddressFamily::Inet6 => IpNet::from(ipnet::Ipv6Net::default()),
        _ => return None,
    };
    let mut route = Route::to(any).table(u32::from(message.header.table));
    route.blackhole = message.header.kind == RouteType::BlackHole;
    route.on_link = message.header.flags.contains(RouteFlags::Onlink);
    let mut index = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Destination(address) => {
                route.destination =
                    IpNet::new(ip_of(address)?, message.header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::PrefSource(address) => route.source = ip_of(address),
            RouteAttribute::Gateway(address) => route.via = ip_of(address),
            RouteAttribute::Oif(of) => index = Some(*of),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some((index, route))
}
