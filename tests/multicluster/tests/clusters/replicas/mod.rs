//! Two registries of one domain over a real etcd of three, of which everything dies once.

mod load;
mod store;
mod watchers;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use vl3_lab::SiteSpec;
use vl3_multicluster::{Country, Domain, Service, eventually, eventually_some};

use self::load::{Load, REGISTRANTS};
use self::store::Etcd;
use self::watchers::Watcher;
use crate::{Steady, joined};

/// From a fault to the next accepted registrations: an election, a claim of 3 s, a busy machine.
const ACCEPTED_AGAIN_MAX: Duration = Duration::from_secs(30);
/// How soon a registry says that it cannot write.
const NOT_READY_MAX: Duration = Duration::from_secs(2);
/// Replicas, by number.
const BOTH: [usize; 2] = [0, 1];
const PAUSE: Duration = Duration::from_secs(10);
/// What is offered in 5 s.
const SOME: u64 = 1000;
/// Accepted per second in quiet: a quarter of what is offered, as one machine runs everything.
const QUIET_MIN: f64 = 50.0;
/// All registrations of a run live longer than it.
const LIFETIME: &str = "endpoint_lifetime = \"1h\"\n";
const ROOM: &str = "[limits]\nendpoints = 100000\nobjects_per_identity = 10000\n";

/// So many more registrations are accepted; then these replicas and all watchers show every one
/// of them. How many were accepted per second.
#[expect(
    clippy::print_stdout,
    reason = "the figures of a run that lasts a minute"
)]
async fn goes_on(load: &Load, what: &str, replicas: &[usize]) -> anyhow::Result<f64> {
    let (before, since) = (load.accepted(), Instant::now());
    eventually(what, ACCEPTED_AGAIN_MAX, || async {
        Ok(load.accepted() >= before + SOME)
    })
    .await?;
    let (count, took) = (load.accepted() - before, since.elapsed());
    let rate = f64::from(u32::try_from(count)?) / took.as_secs_f64();
    println!("{what}: {count} registrations in {took:?}, {rate:.0} per second");
    let since = Instant::now();
    let kept = load.compare(replicas).await;
    let kept = kept.with_context(|| what.to_owned())?;
    println!(
        "{what}: all {kept} endpoints shown, compared in {:?}",
        since.elapsed()
    );
    Ok(rate)
}

fn registries(east: &mut Domain) -> anyhow::Result<[&mut Service; 2]> {
    let first = east.registry.as_mut().context("no registry")?;
    let second = east.replicas.first_mut().context("no replica")?;
    Ok([first, second])
}

/// The one that is active, where it is one.
async fn active(east: &Domain) -> anyhow::Result<Option<usize>> {
    let mut active = Vec::new();
    for (at, registry) in east.registry.iter().chain(&east.replicas).enumerate() {
        if registry.status().await?["replica"]["role"] == "active" {
            active.push(at);
        }
    }
    Ok((active.len() == 1).then(|| active[0]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_over_an_etcd_lose_nothing_whatever_dies_and_traffic_goes_on()
-> anyhow::Result<()> {
    let country = Country::new().await?;
    let mut east = country.add_domain("east", SiteSpec::default()).await?;
    let west = country.add_domain("west", SiteSpec::default()).await?;
    let mut etcd = Etcd::start(&country, east.site.gateway())?;
    east.registry_keys = LIFETIME.to_owned();
    east.registry_tables = etcd.tables() + ROOM;
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
    let rate = goes_on(&load, "in quiet", &BOTH).await?;
    anyhow::ensure!(
        rate >= QUIET_MIN,
        "{rate:.0} registrations per second are accepted in quiet, not {QUIET_MIN}"
    );

    let (leader, changes) = eventually_some("etcd has a leader", ACCEPTED_AGAIN_MAX, || async {
        Ok(etcd.leader().zip(etcd.leader_changes()))
    })
    .await?;
    etcd.kill(leader).await?;
    // Only the death of the one that leads makes another one lead.
    eventually("etcd has another leader", ACCEPTED_AGAIN_MAX, || async {
        let another = etcd.leader().is_some_and(|now| now != leader);
        Ok(another && etcd.leader_changes().is_some_and(|now| now > changes))
    })
    .await?;
    goes_on(&load, "after etcd's leader was killed", &BOTH).await?;
    etcd.start_member(leader)?;

    load.add_watchers(&world.country, "east")?;
    load.compare(&BOTH).await?;
    let killed = eventually_some("one registry is active", ACCEPTED_AGAIN_MAX, || async {
        active(&world.east).await
    })
    .await?;
    let watched: Vec<_> = load.watchers.iter().map(Watcher::replicas).collect();
    anyhow::ensure!(
        watched
            .iter()
            .any(|streams| streams.last() == Some(&killed)),
        "nobody watches at replica {killed}: {watched:?}"
    );
    registries(&mut world.east)?[killed].kill().await?;
    goes_on(&load, "after the active registry was killed", &[1 - killed]).await?;
    for (watcher, before) in load.watchers.iter().zip(watched) {
        let after = watcher.replicas();
        let moved = after.len() > before.len() && after.last() == Some(&(1 - killed));
        anyhow::ensure!(
            moved || before.last() != Some(&killed),
            "{} stays at replica {killed}: {before:?}, then {after:?}",
            watcher.name
        );
    }
    let registry = &mut registries(&mut world.east)?[killed];
    registry.start()?;
    registry.ready().await?;
    goes_on(&load, "after it came back", &BOTH).await?;

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
    goes_on(&load, "after ten seconds without etcd", &BOTH).await?;
    for registry in registries(&mut world.east)? {
        registry.ready().await?;
    }

    let leased = load.stop().await?;
    let total = load.accepted();
    load.compare(&BOTH).await?;
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
        for granted in &leased {
            let router = granted.lease.router.as_str();
            let kept = leases.iter().find(|lease| lease["router"] == router);
            let kept = kept.and_then(|lease| lease["generation"].as_u64());
            anyhow::ensure!(
                kept.is_some_and(|kept| kept >= granted.lease.generation.0),
                "{granted:?} was accepted, {kept:?} is kept"
            );
        }
    }
    for watcher in &load.watchers {
        println!("{}", watcher.told());
    }
    println!("{total} registrations accepted, none lost");
    steady.lost_nothing().await
}
