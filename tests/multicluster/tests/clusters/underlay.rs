//! What lies below: small and large MTU, IPv6 alone, a NAT that forgets.

use std::time::{Duration, Instant};

use vl3_lab::tools::{Continuous, throughput};
use vl3_lab::{RelaySpec, SiteSpec};
use vl3_multicluster::{Country, Mechanism};

use crate::{JOINED_MAX, Pair, Steady, answers_again, pair, pair_in};

const STREAM: Duration = Duration::from_secs(2);
/// A stream that suffers from lost large packets stays far below that.
const MOVED_MIN: u64 = 1 << 20;
const INTERVAL: Duration = Duration::from_millis(20);
/// From a new mapping of the NAT to the first answer, while the site itself sends nothing.
const INWARDS_MAX: Duration = Duration::from_secs(8);
/// The same while it sends.
const OUTWARDS_MAX: Duration = Duration::from_secs(1);

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
async fn a_site_behind_nat_survives_a_new_mapping_and_nobody_else_notices() -> anyhow::Result<()> {
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

    let others = Steady::start(&[("east to west", &world.east_a.host, world.at_west_a)])?;
    // Nothing but west's requests: the site itself must notice that it hears nobody.
    let inwards = Continuous::start(&world.west_a.host, None, before.v4.into(), INTERVAL)?;
    relayed.relay().rebind();
    let rebound = Instant::now();
    answers_again("west reaches the site", &inwards, rebound, INWARDS_MAX).await?;
    drop(inwards);
    // The first packet that leaves the site brings the new mapping with it.
    let target = world.at_west_a.v6.into();
    let outwards = Continuous::start(&kiosk.host, None, target, INTERVAL)?;
    relayed.relay().rebind();
    let rebound = Instant::now();
    answers_again("the site reaches west", &outwards, rebound, OUTWARDS_MAX).await?;
    world.west_a.reaches_both(before, OUTWARDS_MAX).await?;
    others.lost_nothing().await?;
    anyhow::ensure!(
        kiosk.addresses("red").await? == before,
        "its addresses changed"
    );
    Ok(())
}
