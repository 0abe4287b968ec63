//! The real binary in namespaces, under faults. Needs root; run one test at a time:
//! `cargo xtask multicluster [NAME]`.

mod attachment;
mod expiry;
mod faults;
mod garbage;
mod hosts;
mod networks;
mod replicas;
mod restore;
mod underlay;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use vl3_lab::tools::Continuous;
use vl3_lab::{Host, SiteSpec};
use vl3_multicluster::{
    Addresses, Country, Domain, Mechanism, NetworkSpec, Service, Workload, eventually,
    eventually_some,
};

/// What two domains and their routers may take to find each other on a busy machine.
const JOINED_MAX: Duration = Duration::from_secs(30);

/// East and west in network red, one workload each.
struct Pair {
    east_a: Workload,
    at_east_a: Addresses,
    west_a: Workload,
    at_west_a: Addresses,
    west: Domain,
    east: Domain,
    country: Country,
}

async fn pair(east: SiteSpec, west: SiteSpec) -> anyhow::Result<Pair> {
    pair_in(Country::new().await?, east, west, "").await
}

async fn pair_in(
    country: Country,
    east: SiteSpec,
    west: SiteSpec,
    client_keys: &str,
) -> anyhow::Result<Pair> {
    pair_with(country, [east, west], client_keys, "").await
}

async fn pair_with(
    country: Country,
    [east, west]: [SiteSpec; 2],
    client_keys: &str,
    router_keys: &str,
) -> anyhow::Result<Pair> {
    let mut east = country.add_domain("east", east).await?;
    let mut west = country.add_domain("west", west).await?;
    for domain in [&mut east, &mut west] {
        domain.router_keys = router_keys.to_owned();
    }
    joined(country, east, west, client_keys).await
}

/// Starts two domains that are there, and waits until their workloads reach each other.
async fn joined(
    mut country: Country,
    mut east: Domain,
    mut west: Domain,
    client_keys: &str,
) -> anyhow::Result<Pair> {
    country.add_network(NetworkSpec::RED, &[&east, &west])?;
    let (first, second) = tokio::join!(
        east.start(&country, &["red"]),
        west.start(&country, &["red"])
    );
    first?;
    second?;
    let mut east_a = east
        .add_workload(&country, "east-a", &[("red", Mechanism::Tun)], client_keys)
        .await?;
    let mut west_a = west
        .add_workload(
            &country,
            "west-a",
            &[("red", Mechanism::Wireguard)],
            client_keys,
        )
        .await?;
    let at_east_a = east_a.attach("red").await?;
    let at_west_a = west_a.attach("red").await?;
    east_a.reaches_both(at_west_a, JOINED_MAX).await?;
    west_a.reaches_both(at_east_a, JOINED_MAX).await?;
    Ok(Pair {
        east_a,
        at_east_a,
        west_a,
        at_west_a,
        west,
        east,
        country,
    })
}

/// Steady echo requests of pairs that a fault must not touch.
struct Steady(Vec<(String, Continuous)>);

impl Steady {
    const INTERVAL: Duration = Duration::from_millis(50);
    const GRACE: Duration = Duration::from_secs(1);

    /// Both families at once.
    fn start(pairs: &[(&str, &Host, Addresses)]) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for (what, host, to) in pairs {
            for target in [to.v4.into(), to.v6.into()] {
                let pings = Continuous::start(host, None, target, Self::INTERVAL)?;
                all.push((format!("{what} ({target})"), pings));
            }
        }
        Ok(Self(all))
    }

    /// Not one of them may be lost.
    async fn lost_nothing(self) -> anyhow::Result<()> {
        for (what, pings) in self.0 {
            let report = pings.stop(Self::GRACE).await;
            anyhow::ensure!(
                report.lost() == 0 && report.sent() > 0,
                "{what}: {} of {} packets lost, longest silence {:?}",
                report.lost(),
                report.sent(),
                report.longest_gap()
            );
        }
        Ok(())
    }
}

/// From a moment to the first answer to a request sent afterwards: `limit` at most.
async fn answers_again(
    what: &str,
    pings: &Continuous,
    since: Instant,
    limit: Duration,
) -> anyhow::Result<()> {
    // Longer than allowed, so that a failure says by how much.
    let gap = eventually_some(what, limit * 4, || async {
        let report = pings.report();
        // An answer to what was sent before may have been under way.
        let sent_since = report.probes.iter().filter(|(sent, _)| *sent >= since);
        Ok(sent_since.filter_map(|(_, answered)| *answered).min())
    })
    .await?
    .duration_since(since);
    anyhow::ensure!(gap <= limit, "{what}: after {gap:?}, allowed are {limit:?}");
    Ok(())
}

/// Until a router has no workload, no name and no member's peer or descriptor left.
async fn serves_nobody(router: &Service, limit: Duration) -> anyhow::Result<()> {
    let waited = eventually("the router serves nobody", limit, || async {
        let status = router.status().await?;
        let count = |key: &str| status[key].as_array().map_or(usize::MAX, Vec::len);
        let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
        let members = peers
            .iter()
            .filter(|peer| peer["class"] == "Member")
            .count();
        Ok(count("workloads") == 0 && count("names") == 0 && members == 0)
    })
    .await;
    if waited.is_err() {
        let status = router.status().await?;
        waited.with_context(|| format!("{status:#}"))?;
    }
    Ok(())
}
