//! What the networks are built on: colliding pod networks, and a site that cannot be called.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use vl3_lab::tools;

use crate::demo::world::World;

const WAIT: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(200);

pub(in crate::demo) async fn run(world: &World) -> anyhow::Result<String> {
    // The first pod of every cluster has the same address.
    let mut shared = None;
    for name in ["east-a", "west-a", "north-a"] {
        let addresses = world
            .workload(name)?
            .host
            .netlink()
            .addresses("eth0")
            .await?;
        let own = addresses
            .iter()
            .map(|(address, _)| *address)
            .find(IpAddr::is_ipv4);
        let own = own.with_context(|| format!("{name} has a pod address"))?;
        ensure!(
            *shared.get_or_insert(own) == own,
            "{name} has the pod address {own}, others {shared:?}: the pod networks do not collide"
        );
    }
    let east = &world.domain("east")?.site;
    let out = tools::echo(world.kiosk.host(), None, east.public_ipv4().into(), WAIT).await?;
    ensure!(out.is_answered(), "the kiosk does not reach east's gateway");
    let into = tools::echo(
        east.gateway(),
        None,
        world.kiosk.public_ipv4().into(),
        SILENCE,
    )
    .await?;
    ensure!(
        !into.is_answered(),
        "the kiosk behind its NAT can be called"
    );
    let address = shared.context("three pods were looked at")?;
    Ok(format!(
        "{address} is a pod in each of three clusters; the kiosk calls out through its NAT and cannot be called"
    ))
}
