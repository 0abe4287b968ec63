//! The router's own address: a TUN of its own, in a network namespace of its own where the
//! process may make one, else in a table chosen by source rule; never in main. Echo is the
//! kernel's; the DNS server gets its sockets from here.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use vl3_net::{Namespace, Netlink, Route, Rule};

/// The device's name in its own namespace.
const NAME_OWN: &str = "vl3";
const DNS_PORT: u16 = 53;
const BACKLOG: i32 = 128;
/// Where the rules of the fallback stand, before main (32766).
const RULE_PRIORITY: u32 = 20_000;

/// The device and where it stands.
#[derive(Debug)]
pub(crate) struct Own {
    place: Place,
    netlink: Netlink,
    interface: String,
    held: Vec<IpNet>,
}

#[derive(Clone, Debug)]
enum Place {
    Namespace(Arc<Namespace>),
    /// The process's own namespace, in this table.
    Table(u32),
}

impl Own {
    /// The descriptor belongs to the data plane.
    pub(crate) fn create(name: &str, table: u32) -> anyhow::Result<(Self, OwnedFd)> {
        match Namespace::new() {
            Ok(namespace) => {
                let (descriptor, interface) = namespace
                    .run(|| vl3_net::tun::create(NAME_OWN, false))
                    .context("make the own address's TUN")?;
                let netlink = Netlink::open_in(&namespace)?;
                let place = Place::Namespace(Arc::new(namespace));
                Ok((
                    Self {
                        place,
                        netlink,
                        interface,
                        held: Vec::new(),
                    },
                    descriptor,
                ))
            }
            Err(error) => {
                tracing::warn!(%error, table, "no network namespace for the own address (needs CAP_SYS_ADMIN); a source rule serves instead");
                let wanted: String = format!("vl3o-{name}").chars().take(15).collect();
                let (descriptor, interface) = vl3_net::tun::create(&wanted, false).context(
                    "make the own address's TUN (needs CAP_NET_ADMIN and /dev/net/tun: run as root, or with --cap-add NET_ADMIN)",
                )?;
                let netlink = Netlink::open()?;
                Ok((
                    Self {
                        place: Place::Table(table),
                        netlink,
                        interface,
                        held: Vec::new(),
                    },
                    descriptor,
                ))
            }
        }
    }

    /// Brings the device to these addresses, and everything else behind it.
    pub(crate) async fn set_addresses(
        &mut self,
        addresses: &[IpNet],
        mtu: u16,
    ) -> anyhow::Result<()> {
        let name = self.interface.clone();
        for old in self.held.iter().filter(|old| !addresses.contains(old)) {
            self.netlink.delete_address(&name, *old).await?;
            if let Place::Table(table) = self.place {
                self.netlink.delete_rule(rule(*old, table)).await?;
            }
        }
        self.netlink.set_mtu(&name, mtu).await?;
        self.netlink
            .set_queue_length(&name, vl3_net::tun::QUEUE_LENGTH)
            .await?;
        for address in addresses {
            // Noted first: what is left of a change that fails is taken away by the next.
            if !self.held.contains(address) {
                self.held.push(*address);
            }
            self.netlink.add_address(&name, *address).await?;
        }
        self.netlink.link_up(&name).await?;
        for address in addresses {
            let everything: IpNet = if address.addr().is_ipv4() {
                IpNet::V4(ipnet::Ipv4Net::default())
            } else {
                IpNet::V6(ipnet::Ipv6Net::default())
            };
            let route = Route::to(everything).dev(&name).source(address.addr());
            let route = match self.place {
                Place::Namespace(_) => route,
                Place::Table(table) => {
                    self.netlink.add_rule(rule(*address, table)).await?;
                    route.table(table)
                }
            };
            self.netlink.replace_route(&route).await?;
        }
        self.held = addresses.to_vec();
        Ok(())
    }

    /// Makes sockets at the own addresses; usable from any thread.
    pub(crate) fn sockets(&self) -> OwnSockets {
        OwnSockets {
            place: self.place.clone(),
            addresses: self.held.iter().map(IpNet::addr).collect(),
        }
    }
}

fn rule(address: IpNet, table: u32) -> Rule {
    Rule {
        source: IpNet::from(address.addr()),
        table,
        priority: RULE_PRIORITY,
    }
}

/// Opens sockets bound to the own addresses, in their namespace.
#[derive(Clone, Debug)]
pub(crate) struct OwnSockets {
    place: Place,
    addresses: Vec<IpAddr>,
}

impl OwnSockets {
    /// Of addresses that this process has already.
    #[cfg(test)]
    pub(crate) const fn at(addresses: Vec<IpAddr>) -> Self {
        Self {
            place: Place::Table(0),
            addresses,
        }
    }

    /// Per address UDP then TCP, port 53.
    pub(crate) fn listeners(&self) -> anyhow::Result<Vec<(SocketAddr, OwnedFd)>> {
        anyhow::ensure!(!self.addresses.is_empty(), "the router has no address yet");
        self.run(|| {
            let mut sockets = Vec::with_capacity(2 * self.addresses.len());
            for address in &self.addresses {
                let at = SocketAddr::new(*address, DNS_PORT);
                for (kind, protocol) in
                    [(Type::DGRAM, Protocol::UDP), (Type::STREAM, Protocol::TCP)]
                {
                    let socket = bound(at, kind, protocol)?;
                    if kind == Type::STREAM {
                        socket.listen(BACKLOG)?;
                    }
                    sockets.push((at, OwnedFd::from(socket)));
                }
            }
            Ok(sockets)
        })
    }

    /// One unconnected socket bound to the own address, any port.
    pub(crate) fn outgoing(&self, ipv6: bool, tcp: bool) -> anyhow::Result<(SocketAddr, OwnedFd)> {
        let address = self
            .addresses
            .iter()
            .find(|address| address.is_ipv6() == ipv6);
        let address = *address.context("the router has no address of that family yet")?;
        let (kind, protocol) = if tcp {
            (Type::STREAM, Protocol::TCP)
        } else {
            (Type::DGRAM, Protocol::UDP)
        };
        self.run(|| {
            let socket = bound(SocketAddr::new(address, 0), kind, protocol)?;
            let at = socket
                .local_addr()?
                .as_socket()
                .unwrap_or(SocketAddr::new(address, 0));
            Ok((at, OwnedFd::from(socket)))
        })
    }

    fn run<T: Send>(&self, open: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        match &self.place {
            Place::Namespace(namespace) => namespace.run(open),
            Place::Table(_) => open(),
        }
    }
}

fn bound(at: SocketAddr, kind: Type, protocol: Protocol) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // A DNS server that starts again must not wait for its predecessor's sockets.
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if at.port() != 0 {
        socket.set_reuse_port(true)?;
    }
    socket
        .bind(&at.into())
        .with_context(|| format!("bind {at}"))?;
    Ok(socket)
}
