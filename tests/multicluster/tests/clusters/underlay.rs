//! What lies below: small and large MTU, IPv6 alone, a NAT that forgets.

use std::time::Duration;

use vl3_lab::tools::throughput;
use vl3_lab::{RelaySpec, SiteSpec};
use vl3_multicluster::{Country, Mechanism};

use crate::{JOINED_MAX, Pair, pair, pair_in};

const STREAM: Duration = Duration::from_secs(2);
/// A stream that suffers from lost large packets stays far below that.
const MOVED_MIN: u64 = 1 << 20;

async fn carries_a_stream(world: &Pair) -> anyhow::Result<()> {
    let (east, west) = (&world.east_a.host, &world.west_a.host);
    for (from, to, address) in [
        (east, west, world.at_west_a.v4),
        (west, east, world.at_east_a.v4),
    ] {
        let moved = throughput(from, None, to, address.into(), STREAM).await?;
        anyhow::ensure!(
            moved.bytes > MOVED_MIN,
            "only {} bytes in {STREAM:?}",
            moved.bytes
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_passes_an_underlay_of_1280_bytes() -> anyhow::Result<()> {
    let world = pair(SiteSpec::default(), SiteSpec { mtu: 1280 }).await?;
    carries_a_stream(&world).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_passes_an_underlay_of_9000_bytes() -> anyhow::Result<()> {
    let world = pair(SiteSpec { mtu: 9000 }, SiteSpec { mtu: 9000 }).await?;
    carries_a_stream(&world).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_runs_over_an_ipv6_underlay() -> anyhow::Result<()> {
    let mut country = Country::new().await?;
    country.ipv6_underlay = true;
    let mut world = pair_in(country, SiteSpec::default(), SiteSpec::default(), "").await?;
    world
        .east_a
        .resolves("west-a.west.red.vl3", world.at_west_a.v6, JOINED_MAX)
        .await?;
    let status = world.east.router("red")?.status().await?;
    let endpoint = status["links"][0]["endpoint"].as_str().unwrap_or_default();
    anyhow::ensure!(
        endpoint.starts_with('['),
        "the link's endpoint is {endpoint:?}"
    );
    carries_a_stream(&world).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_behind_nat_survives_a_new_mapping() -> anyhow::Result<()> {
    let world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let relayed = world
        .country
        .internet
        .behind_relay("kiosk", RelaySpec::nat())
        .await?;
    let red = [("red", Mechanism::Wireguard)];
    let mut kiosk =
        world
            .east
            .add_workload_on(&world.country, "kiosk", relayed.host().clone(), &red, "")?;
    let before = kiosk.attach("red").await?;
    kiosk.reaches_both(world.at_west_a, JOINED_MAX).await?;
    world.west_a.reaches_both(before, JOINED_MAX).await?;

    relayed.relay().rebind();
    kiosk
        .reaches_both(world.at_west_a, Duration::from_secs(20))
        .await?;
    world
        .west_a
        .reaches_both(before, Duration::from_secs(20))
        .await?;
    anyhow::ensure!(
        kiosk.addresses("red").await? == before,
        "its addresses changed"
    );
    Ok(())
}
