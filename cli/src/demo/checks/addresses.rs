//! Addresses come out of the own domain's blocks, are unique, and come with MTU and routes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, bail};
use vl3_lab::{Netlink, Route};

use crate::demo::world::World;

const MAIN: u32 = 254;

/// What user-space WireGuard leaves of 1500 bytes: 60 or 80 of outer headers and padding.
const MTU_MAX: u32 = 1440;

pub(in crate::demo) async fn run(world: &World) -> anyhow::Result<String> {
    let mut count = 0;
    for network in &world.networks {
        let mut taken: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for workload in world.members(network.plan.name) {
            let addresses = workload
                .in_network(network.plan.name)
                .context("a member has addresses")?;
            let block = network.block_of(workload.plan.domain)?;
            if !block.v4.contains(&addresses.v4) || !block.v6.contains(&addresses.v6) {
                bail!(
                    "{} has {} and {}, outside of {} and {} of {}",
                    workload.name(),
                    addresses.v4,
                    addresses.v6,
                    block.v4,
                    block.v6,
                    workload.plan.domain
                );
            }
            for address in addresses.both() {
                if let Some(other) = taken.insert(address, workload.name()) {
                    bail!("{address} is held by {other} and {}", workload.name());
                }
                count += 1;
            }
            let link = workload
                .host
                .netlink()
                .link(network.plan.name)
                .await?
                .context("the interface is there")?;
            if link.mtu > MTU_MAX {
                bail!(
                    "{} of {} has MTU {}",
                    network.plan.name,
                    workload.name(),
                    link.mtu
                );
            }
        }
    }
    let both = two_networks(world).await?;
    Ok(format!(
        "{count} addresses, each inside its domain's blocks; {both}"
    ))
}

/// Where a workload is in two networks with equal IPv4, the first has the main table and the
/// second one of its own; nothing of the second's IPv4 is in main.
async fn two_networks(world: &World) -> anyhow::Result<String> {
    let workload = world
        .workloads
        .iter()
        .find(|workload| workload.plan.networks.len() > 1)
        .context("one workload is in both networks")?;
    let netlink: &Netlink = workload.host.netlink();
    let main = netlink.routes(MAIN).await?;
    let over = |routes: &[Route], interface: &str| {
        routes
            .iter()
            .filter(|route| {
                route.destination.addr().is_ipv4() && route.interface.as_deref() == Some(interface)
            })
            .count()
    };
    let [(first, _), (second, _), ..] = workload.plan.networks else {
        bail!("two networks are planned")
    };
    if over(&main, first) == 0 {
        bail!(
            "the main table of {} has no IPv4 route over {first}: {main:?}",
            workload.name()
        );
    }
    if over(&main, second) > 0 {
        bail!(
            "the main table of {} has IPv4 routes over {second}, which collide with {first}",
            workload.name()
        );
    }
    Ok(format!(
        "{} is in {first} (main table) and {second} (a table of its own)",
        workload.name()
    ))
}
