//! Processes that die, sites that are cut off, domains that come late.

use std::time::{Duration, Instant};

use vl3_lab::SiteSpec;
use vl3_lab::tools::Continuous;
use vl3_multicluster::{Mechanism, eventually};

use crate::{JOINED_MAX, pair};

const INTERVAL: Duration = Duration::from_millis(50);
const GRACE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_router_returns_with_the_same_prefix_addresses_and_names() -> anyhow::Result<()> {
    let mut world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let router = world.west.router("red")?;
    let before = router.status().await?["lease"].clone();
    let pings = Continuous::start(
        &world.east_a.host,
        None,
        world.at_west_a.v4.into(),
        INTERVAL,
    )?;
    router.kill().await?;
    router.start()?;
    let restarted = Instant::now();
    world
        .east_a
        .reaches_both(world.at_west_a, Duration::from_secs(15))
        .await?;
    let report = pings.stop(GRACE).await;
    let gap = report.first_answer_after(restarted);
    anyhow::ensure!(
        gap.is_some_and(|gap| gap < Duration::from_secs(5)),
        "first answer after {gap:?}"
    );
    let router = world.west.router("red")?;
    router.ready().await?;
    let after = router.status().await?["lease"].clone();
    anyhow::ensure!(after == before, "the lease was {before}, is {after}");
    anyhow::ensure!(
        world.west_a.addresses("red").await? == world.at_west_a,
        "other addresses"
    );
    world
        .east_a
        .resolves("west-a.west.red.vl3", world.at_west_a.v6, JOINED_MAX)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_packet_is_lost_while_registries_and_name_servers_are_dead() -> anyhow::Result<()> {
    let mut world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let pings = Continuous::start(
        &world.east_a.host,
        None,
        world.at_west_a.v6.into(),
        INTERVAL,
    )?;
    for domain in [&mut world.east, &mut world.west] {
        for service in domain.registry.iter_mut().chain(domain.dns.values_mut()) {
            service.kill().await?;
        }
    }
    eventually(
        "four seconds of traffic",
        Duration::from_secs(30),
        || async { Ok(pings.report().sent() > 80) },
    )
    .await?;
    let report = pings.stop(GRACE).await;
    anyhow::ensure!(
        report.lost() == 0,
        "{} of {} packets lost",
        report.lost(),
        report.sent()
    );
    // They come back, and a newcomer is served.
    for domain in [&mut world.east, &mut world.west] {
        for service in domain.registry.iter_mut().chain(domain.dns.values_mut()) {
            service.start()?;
        }
        domain.ready().await?;
    }
    let red = [("red", Mechanism::Tun)];
    let mut newcomer = world
        .west
        .add_workload(&world.country, "west-b", &red, "")
        .await?;
    let at = newcomer.attach("red").await?;
    world
        .east_a
        .resolves("west-b.west.red.vl3", at.v6, JOINED_MAX)
        .await?;
    world.east_a.reaches_both(at, JOINED_MAX).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sites_that_were_cut_off_find_each_other_again() -> anyhow::Result<()> {
    let world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let (east, west) = (&world.east.site, &world.west.site);
    world.country.internet.partition(east, west).await?;
    eventually("nothing passes", Duration::from_secs(5), || async {
        let wait = Duration::from_millis(300);
        let target = world.at_west_a.v4.into();
        Ok(
            !vl3_lab::tools::echo(&world.east_a.host, None, target, wait)
                .await?
                .is_answered(),
        )
    })
    .await?;
    let pings = Continuous::start(
        &world.east_a.host,
        None,
        world.at_west_a.v4.into(),
        INTERVAL,
    )?;
    eventually(
        "ten seconds of partition",
        Duration::from_secs(60),
        || async { Ok(pings.report().sent() > 200) },
    )
    .await?;
    pings.stop(Duration::ZERO).await;
    world.country.internet.heal(east, west).await?;
    world
        .east_a
        .reaches_both(world.at_west_a, Duration::from_secs(10))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_joins_late_is_reached_by_all() -> anyhow::Result<()> {
    let world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let mut south = world
        .country
        .add_domain("south", SiteSpec::default())
        .await?;
    world.country.add_member("red", &south)?;
    // Handed to east alone: west hears of it from east.
    world.east.publish(&world.country, "red").await?;
    south.start(&world.country, &["red"]).await?;
    let red = [("red", Mechanism::Tun)];
    let mut south_a = south
        .add_workload(&world.country, "south-a", &red, "")
        .await?;
    let at = south_a.attach("red").await?;
    south_a.reaches_both(world.at_east_a, JOINED_MAX).await?;
    south_a.reaches_both(world.at_west_a, JOINED_MAX).await?;
    world.west_a.reaches_both(at, JOINED_MAX).await?;
    world
        .west_a
        .resolves("south-a.south.red.vl3", at.v6, JOINED_MAX)
        .await
}
