//! Processes that die, sites that are cut off, domains that come late.

use std::time::{Duration, Instant};

use vl3_lab::SiteSpec;
use vl3_lab::tools::Continuous;
use vl3_multicluster::{Addresses, Domain, Mechanism, Workload, eventually};

use crate::{JOINED_MAX, Pair, Steady, answers_again, pair};

const INTERVAL: Duration = Duration::from_millis(10);
const GRACE: Duration = Duration::from_secs(1);
/// From the start of a router that was killed to the first answer through it.
const RESTART_MAX: Duration = Duration::from_secs(2);
/// From the end of a partition to the first answer across it.
const HEALED_MAX: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_router_returns_with_the_same_prefix_addresses_and_names() -> anyhow::Result<()> {
    let mut world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let red = [("red", Mechanism::Tun)];
    let mut west_b = world
        .west
        .add_workload(&world.country, "west-b", &red, "")
        .await?;
    let at_west_b = west_b.attach("red").await?;
    world.east_a.reaches_both(at_west_b, JOINED_MAX).await?;
    let router = world.west.router("red")?;
    let before = router.status().await?["lease"].clone();
    let flows =
        [("WIREGUARD", world.at_west_a.v4), ("TUN", at_west_b.v4)].map(|(mechanism, to)| {
            let pings = Continuous::start(&world.east_a.host, None, to.into(), INTERVAL);
            (mechanism, pings)
        });
    router.kill().await?;
    let restarted = Instant::now();
    router.start()?;
    for (mechanism, pings) in flows {
        let what = format!("the first answer over {mechanism} after the restart");
        answers_again(&what, &pings?, restarted, RESTART_MAX).await?;
    }
    world.east_a.reaches_both(world.at_west_a, GRACE).await?;
    world.east_a.reaches_both(at_west_b, GRACE).await?;
    let router = world.west.router("red")?;
    router.ready().await?;
    let after = router.status().await?["lease"].clone();
    anyhow::ensure!(after == before, "the lease was {before}, is {after}");
    anyhow::ensure!(
        world.west_a.addresses("red").await? == world.at_west_a
            && west_b.addresses("red").await? == at_west_b,
        "other addresses"
    );
    world
        .east_a
        .resolves("west-a.west.red.vl3", world.at_west_a.v6, JOINED_MAX)
        .await?;
    world
        .east_a
        .resolves("west-b.west.red.vl3", at_west_b.v6, JOINED_MAX)
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
        || async { Ok(pings.report().sent() > 400) },
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

/// A domain that joins the running network, with one workload.
struct Joined {
    domain: Domain,
    workload: Workload,
    at: Addresses,
}

async fn joins(world: &Pair, name: &'static str, pod: &'static str) -> anyhow::Result<Joined> {
    let mut domain = world.country.add_domain(name, SiteSpec::default()).await?;
    world.country.add_member("red", &domain)?;
    // Handed to east alone: west hears of it from east.
    world.east.publish(&world.country, "red").await?;
    domain.start(&world.country, &["red"]).await?;
    let red = [("red", Mechanism::Tun)];
    let mut workload = domain.add_workload(&world.country, pod, &red, "").await?;
    let at = workload.attach("red").await?;
    workload.reaches_both(world.at_east_a, JOINED_MAX).await?;
    workload.reaches_both(world.at_west_a, JOINED_MAX).await?;
    Ok(Joined {
        domain,
        workload,
        at,
    })
}

fn between_east_and_west(world: &Pair) -> anyhow::Result<Steady> {
    Steady::start(&[
        ("east to west", &world.east_a.host, world.at_west_a),
        ("west to east", &world.west_a.host, world.at_east_a),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sites_that_were_cut_off_find_each_other_again_and_nobody_else_notices()
-> anyhow::Result<()> {
    let world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let north = joins(&world, "north", "north-a").await?;
    world.west_a.reaches_both(north.at, JOINED_MAX).await?;
    let sites = (&world.east.site, &north.domain.site);

    let beside = between_east_and_west(&world)?;
    let north_west = Steady::start(&[("north to west", &north.workload.host, world.at_west_a)])?;
    world.country.internet.partition(sites.0, sites.1).await?;
    eventually("nothing passes", Duration::from_secs(5), || async {
        let wait = Duration::from_millis(300);
        let target = north.at.v4.into();
        Ok(
            !vl3_lab::tools::echo(&world.east_a.host, None, target, wait)
                .await?
                .is_answered(),
        )
    })
    .await?;
    let across = Continuous::start(&world.east_a.host, None, north.at.v4.into(), INTERVAL)?;
    let back = Continuous::start(
        &north.workload.host,
        None,
        world.at_east_a.v6.into(),
        INTERVAL,
    )?;
    eventually(
        "ten seconds of partition",
        Duration::from_secs(60),
        || async { Ok(across.report().sent() > 1_000) },
    )
    .await?;
    world.country.internet.heal(sites.0, sites.1).await?;
    let healed = Instant::now();
    answers_again("east reaches north again", &across, healed, HEALED_MAX).await?;
    answers_again("north reaches east again", &back, healed, HEALED_MAX).await?;
    beside.lost_nothing().await?;
    north_west.lost_nothing().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_joins_late_is_reached_by_all_and_disturbs_nobody() -> anyhow::Result<()> {
    let world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let established = between_east_and_west(&world)?;
    let south = joins(&world, "south", "south-a").await?;
    world.west_a.reaches_both(south.at, JOINED_MAX).await?;
    world.east_a.reaches_both(south.at, JOINED_MAX).await?;
    world
        .west_a
        .resolves("south-a.south.red.vl3", south.at.v6, JOINED_MAX)
        .await?;
    established.lost_nothing().await
}
