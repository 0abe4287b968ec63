//! Rights that end: a workload that is gone, an issuer that is gone.

use std::time::{Duration, Instant};

use vl3_lab::SiteSpec;
use vl3_lab::tools::{Continuous, QueryType, Rcode};
use vl3_multicluster::{Country, Mechanism, eventually};

use crate::{JOINED_MAX, pair_in, serves_nobody};

/// Of every path token in these tests.
const SHORT: &str = "token_lifetime = \"5s\"\n";
const INTERVAL: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_workload_is_gone_soon_after_its_token() -> anyhow::Result<()> {
    let country = Country::new().await?;
    let mut world = pair_in(country, SiteSpec::default(), SiteSpec::default(), SHORT).await?;
    let red = [("red", Mechanism::Tun)];
    let mut west_b = world
        .west
        .add_workload(&world.country, "west-b", &red, SHORT)
        .await?;
    let at_west_b = west_b.attach("red").await?;
    world
        .east_a
        .resolves("west-a.west.red.vl3", world.at_west_a.v6, JOINED_MAX)
        .await?;
    world
        .east_a
        .resolves("west-b.west.red.vl3", at_west_b.v6, JOINED_MAX)
        .await?;

    world.west_a.client.kill().await?;
    west_b.client.kill().await?;
    let killed = Instant::now();
    // At most 5 s of token are left, then 25 s.
    let limit = Duration::from_secs(30);
    serves_nobody(world.west.router("red")?, limit).await?;
    for name in ["west-a.west.red.vl3", "west-b.west.red.vl3"] {
        let left = limit
            .saturating_sub(killed.elapsed())
            .max(Duration::from_secs(1));
        eventually(&format!("{name} is gone"), left, || async {
            Ok(world.east_a.ask(name, QueryType::Aaaa).await?.rcode == Rcode::NxDomain)
        })
        .await?;
    }
    // Nothing else has changed: the router serves whoever comes next.
    let mut west_c = world
        .west
        .add_workload(&world.country, "west-c", &red, SHORT)
        .await?;
    let at = west_c.attach("red").await?;
    world.east_a.reaches_both(at, JOINED_MAX).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_goes_on_when_the_issuer_is_gone_for_longer_than_a_token_lives()
-> anyhow::Result<()> {
    let country = Country::new().await?;
    let world = pair_in(country, SiteSpec::default(), SiteSpec::default(), SHORT).await?;
    let red = [("red", Mechanism::Wireguard)];
    let mut east_b = world
        .east
        .add_workload(&world.country, "east-b", &red, SHORT)
        .await?;
    // Its certificate ends soon, and nobody renews the files.
    world.country.issue("east", "client", "east-b", "15s")?;
    let issued = Instant::now();
    let at = east_b.attach("red").await?;
    east_b.reaches_both(world.at_west_a, JOINED_MAX).await?;
    let pings = Continuous::start(&world.west_a.host, None, at.v4.into(), INTERVAL)?;
    eventually(
        "certificate and every token have ended",
        Duration::from_secs(60),
        || async { Ok(issued.elapsed() > Duration::from_secs(30)) },
    )
    .await?;
    let report = pings.stop(Duration::from_secs(1)).await;
    anyhow::ensure!(
        report.lost() == 0,
        "{} of {} packets lost",
        report.lost(),
        report.sent()
    );
    // The issuer is back: the right is renewed, with the same addresses.
    world.country.issue("east", "client", "east-b", "24h")?;
    east_b.reaches_both(world.at_west_a, JOINED_MAX).await?;
    anyhow::ensure!(
        east_b.addresses("red").await? == at,
        "its addresses changed"
    );
    Ok(())
}
