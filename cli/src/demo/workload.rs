//! One workload: its host, its client, and what it got.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use vl3_lab::Host;

use super::domain::READY_WAIT_MAX;
use super::plan::WorkloadPlan;
use super::service::Service;

#[derive(Debug)]
pub(super) struct Workload {
    pub(super) plan: WorkloadPlan,
    pub(super) host: Host,
    pub(super) client: Service,
    /// By network; filled once it is attached.
    pub(super) addresses: BTreeMap<&'static str, Addresses>,
}

/// Of one workload in one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl Addresses {
    pub(super) fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Workload {
    pub(super) fn name(&self) -> &'static str {
        self.plan.name
    }

    pub(super) fn in_network(&self, network: &str) -> Option<Addresses> {
        self.addresses.get(network).copied()
    }

    /// Reads the addresses off its interfaces, each named like its network.
    pub(super) async fn read_addresses(&self) -> anyhow::Result<BTreeMap<&'static str, Addresses>> {
        let mut found = BTreeMap::new();
        for (network, _) in self.plan.networks {
            let addresses = self.host.netlink().addresses(network).await?;
            let v4 = addresses.iter().find_map(|(address, _)| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            });
            let v6 = addresses.iter().find_map(|(address, _)| match address {
                // Unique local addresses, fc00::/7; the kernel adds a link-local one.
                IpAddr::V6(address) if address.segments()[0] & 0xfe00 == 0xfc00 => Some(*address),
                _ => None,
            });
            let missing = |family| format!("{} has no {family} address in {network}", self.name());
            let v4 = v4.with_context(|| missing("IPv4"))?;
            let v6 = v6.with_context(|| missing("IPv6"))?;
            found.insert(*network, Addresses { v4, v6 });
        }
        Ok(found)
    }

    /// The same, once all networks are there: a client is ready with the first of them.
    pub(super) async fn await_addresses(
        &self,
    ) -> anyhow::Result<BTreeMap<&'static str, Addresses>> {
        let started = Instant::now();
        loop {
            match self.read_addresses().await {
                Err(_) if started.elapsed() < READY_WAIT_MAX => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                result => return result,
            }
        }
    }

    /// The resolvers that the client has put into the workload's own resolv.conf.
    pub(super) fn resolvers(&self) -> anyhow::Result<Vec<IpAddr>> {
        let text = self.host.namespace().resolv_conf()?;
        Ok(text
            .lines()
            .filter_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok())
            .collect())
    }

    /// The resolver of a network: the one inside its IPv6 pool, else (it is the first or only
    /// network) the one at an IPv4 address.
    pub(super) fn resolver(&self, pool6: ipnet::Ipv6Net) -> anyhow::Result<SocketAddr> {
        let all = self.resolvers()?;
        let inside =
            |address: &&IpAddr| matches!(address, IpAddr::V6(address) if pool6.contains(address));
        let chosen = all
            .iter()
            .find(inside)
            .or_else(|| all.iter().find(|one| one.is_ipv4()));
        let address = chosen.with_context(|| {
            format!(
                "the resolv.conf of {} names no resolver of {pool6}: {all:?}",
                self.name()
            )
        })?;
        Ok(SocketAddr::new(*address, 53))
    }
}
