//! One workload: its host, its client, and what it got.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use vl3_lab::Host;
use vl3_lab::tools::{self, Answer, QueryType};

use crate::service::Service;
use crate::wait::{eventually, eventually_some};

const ATTACHED_MAX: Duration = Duration::from_secs(30);
const ECHO_WAIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Tun,
    Wireguard,
}

impl Mechanism {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Wireguard => "wireguard",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

#[derive(Debug)]
pub struct Workload {
    pub name: &'static str,
    pub domain: &'static str,
    pub host: Host,
    pub client: Service,
}

impl Workload {
    pub(crate) const fn new(
        name: &'static str,
        domain: &'static str,
        host: Host,
        client: Service,
    ) -> Self {
        Self {
            name,
            domain,
            host,
            client,
        }
    }

    /// Starts the client and waits for its addresses in a network.
    pub async fn attach(&mut self, network: &str) -> anyhow::Result<Addresses> {
        self.client.start()?;
        self.addresses(network).await
    }

    /// The addresses of the interface that is named like the network, once it has both.
    pub async fn addresses(&mut self, network: &str) -> anyhow::Result<Addresses> {
        let host = self.host.clone();
        let what = format!("{} has addresses in {network}", self.name);
        let found = eventually_some(&what, ATTACHED_MAX, || {
            let host = host.clone();
            async move { read_addresses(&host, network).await }
        })
        .await;
        if found.is_err() {
            self.client.check_alive()?;
        }
        found.with_context(|| self.client.log_tail())
    }

    /// Whether it has an interface in that network.
    pub async fn is_attached(&self, network: &str) -> bool {
        matches!(read_addresses(&self.host, network).await, Ok(Some(_)))
    }

    /// Until an address answers, at most `limit`.
    pub async fn reaches(&self, target: IpAddr, limit: Duration) -> anyhow::Result<()> {
        let what = format!("{} reaches {target}", self.name);
        eventually(&what, limit, || async move {
            Ok(tools::echo(&self.host, None, target, ECHO_WAIT)
                .await?
                .is_answered())
        })
        .await
    }

    pub async fn reaches_both(&self, target: Addresses, limit: Duration) -> anyhow::Result<()> {
        self.reaches(target.v4.into(), limit).await?;
        self.reaches(target.v6.into(), limit).await
    }

    /// What its own resolver says.
    pub async fn ask(&self, name: &str, kind: QueryType) -> anyhow::Result<Answer> {
        let text = self.host.namespace().resolv_conf()?;
        let server = text.lines().find_map(|line| {
            line.strip_prefix("nameserver ")?
                .trim()
                .parse::<IpAddr>()
                .ok()
        });
        let server = server.with_context(|| format!("resolv.conf of {}: {text:?}", self.name))?;
        tools::ask(
            &self.host,
            None,
            SocketAddr::new(server, 53),
            name,
            kind,
            Duration::from_secs(4),
        )
        .await
    }

    /// Until a name is answered with this address.
    pub async fn resolves(
        &self,
        name: &str,
        address: Ipv6Addr,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let what = format!("{} resolves {name} to {address}", self.name);
        eventually(&what, limit, || async move {
            Ok(self
                .ask(name, QueryType::Aaaa)
                .await?
                .addresses
                .contains(&address.into()))
        })
        .await
    }
}

async fn read_addresses(host: &Host, interface: &str) -> anyhow::Result<Option<Addresses>> {
    let found = host.netlink().addresses(interface).await?;
    let v4 = found.iter().find_map(|(address, _)| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let v6 = found.iter().find_map(|(address, _)| match address {
        // Unique local addresses; the kernel adds a link-local one.
        IpAddr::V6(address) if address.segments()[0] & 0xfe00 == 0xfc00 => Some(*address),
        IpAddr::V6(_) | IpAddr::V4(_) => None,
    });
    Ok(v4.zip(v6).map(|(v4, v6)| Addresses { v4, v6 }))
}
