//! Two registries of one domain over a real etcd of three, of which everything dies once.

mod load;
mod store;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use vl3_lab::SiteSpec;
use vl3_multicluster::{Country, Domain, Service, eventually, eventually_some};

use self::load::{Load, REGISTRANTS};
use self::store::Etcd;
use crate::{Steady, joined};

/// From a fault to the next accepted registrations: an election, a claim of 3 s, a busy machine.
const ACCEPTED_AGAIN_MAX: Duration = Duration::from_secs(30);
/// How soon a registry says that it cannot write.
const NOT_READY_MAX: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(10);
/// What is offered in 5 s.
const SOME: u64 = 1000;

/// So many more registrations are accepted.
#[expect(
    clippy::print_stdout,
    reason = "the figures of a run that lasts a minute"
)]
async fn goes_on(load: &Load, what: &str) -> anyhow::Result<()> {
    let (before, since) = (load.accepted(), Instant::now());
    eventually(what, ACCEPTED_AGAIN_MAX, || async {
        Ok(load.accepted() >= before + SOME)
    })
    .await?;
    let (count, took) = (load.accepted() - before, since.elapsed());
    println!("{what}: {count} registrations in {took:?}");
    Ok(())
}

fn registries(east: &mut Domain) -> anyhow::Result<[&mut Service; 2]> {
    let first = east.registry.as_mut().context("no registry")?;
    let second = east.replicas.first_mut().context("no replica")?;
    Ok([first, second])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_over_an_etcd_lose_nothing_whatever_dies_and_traffic_goes_on()
-> anyhow::Result<()> {
    let country = Country::new().await?;
    let mut east = country.add_domain("east", SiteSpec::default()).await?;
    let west = country.add_domain("west", SiteSpec::default()).await?;
    let mut etcd = Etcd::start(&country, east.site.gateway())?;
    east.registry_tables = etcd.tables();
    let mut world = joined(country, east, west, "").await?;
    world
        .east
        .add_replica(&world.country, "red", "east-2")
        .await?;
    let sockets: Vec<_> = registries(&mut world.east)?
        .map(|registry| registry.run_dir().join("registry.sock"))
        .into();
    let steady = Steady::start(&[
        ("east to west", &world.east_a.host, world.at_west_a),
        ("west to east", &world.west_a.host, world.at_east_a),
    ])?;
    let mut load = Load::start(&world.country, "east", &sockets)?;
    goes_on(&load, "in quiet").await?;

    let leader = eventually_some("etcd has a leader", ACCEPTED_AGAIN_MAX, || async {
        Ok(etcd.leader())
    })
    .await?;
    etcd.kill(leader).await?;
    goes_on(&load, "after etcd's leader was killed").await?;
    etcd.start_member(leader)?;

    for registry in registries(&mut world.east)? {
        if registry.status().await?["replica"]["role"] == "active" {
            registry.kill().await?;
            goes_on(&load, "after the active registry was killed").await?;
            registry.start()?;
            registry.ready().await?;
            break;
        }
    }
    goes_on(&load, "after it came back").await?;

    etcd.signal_all(Signal::SIGSTOP)?;
    let paused = Instant::now();
    for registry in registries(&mut world.east)? {
        eventually("it is not ready", NOT_READY_MAX, || async {
            Ok(!registry.is_ready().await)
        })
        .await?;
    }
    let at_rest = load.accepted();
    let rest = PAUSE.saturating_sub(paused.elapsed());
    eventually("ten seconds without etcd", rest * 2, || async {
        Ok(paused.elapsed() >= PAUSE)
    })
    .await?;
    anyhow::ensure!(
        load.accepted() <= at_rest + u64::from(REGISTRANTS),
        "accepted without a store: {}",
        load.accepted() - at_rest
    );
    etcd.signal_all(Signal::SIGCONT)?;
    goes_on(&load, "after ten seconds without etcd").await?;
    for registry in registries(&mut world.east)? {
        registry.ready().await?;
    }

    let accepted = load.stop().await?;
    let total = load.accepted();
    for at in 0..sockets.len() {
        let shown = eventually("every replica shows it", ACCEPTED_AGAIN_MAX, || async {
            Ok(load.found(at).await? == accepted.endpoints)
        });
        if let Err(error) = shown.await {
            let found = load.found(at).await?;
            let right = found
                .iter()
                .filter(|(name, url)| accepted.endpoints.get(*name) == Some(url));
            let (right, all) = (right.count(), accepted.endpoints.len());
            anyhow::bail!("{error:#}: {right} of {all} endpoints at replica {at}");
        }
    }
    eventually("watchers are complete", ACCEPTED_AGAIN_MAX, || async {
        Ok(load.folded().iter().all(|seen| *seen == accepted.endpoints))
    })
    .await?;
    for registry in registries(&mut world.east)? {
        let status = registry.status().await?;
        let leases = status["leases"].as_array().cloned().unwrap_or_default();
        let mut prefixes: Vec<_> = leases
            .iter()
            .flat_map(|lease| lease["prefixes"].as_array().cloned().unwrap_or_default())
            .map(|prefix| prefix.to_string())
            .collect();
        let count = prefixes.len();
        prefixes.sort_unstable();
        prefixes.dedup();
        anyhow::ensure!(
            prefixes.len() == count,
            "a prefix is leased twice: {leases:?}"
        );
        for granted in &accepted.leases {
            let router = granted.lease.router.as_str();
            let kept = leases.iter().find(|lease| lease["router"] == router);
            let kept = kept.and_then(|lease| lease["generation"].as_u64());
            anyhow::ensure!(
                kept.is_some_and(|kept| kept >= granted.lease.generation.0),
                "{granted:?} was accepted, {kept:?} is kept"
            );
        }
    }
    println!("{total} registrations accepted, none lost");
    steady.lost_nothing().await
}
