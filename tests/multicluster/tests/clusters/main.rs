//! The real binary in namespaces, under faults. Needs root; run one test at a time:
//! `cargo xtask multicluster [NAME]`.

mod attachment;
mod expiry;
mod faults;
mod garbage;
mod networks;
mod underlay;

use std::time::Duration;

use anyhow::Context as _;
use vl3_lab::SiteSpec;
use vl3_multicluster::{
    Addresses, Country, Domain, Mechanism, NetworkSpec, Service, Workload, eventually,
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
    mut country: Country,
    east: SiteSpec,
    west: SiteSpec,
    client_keys: &str,
) -> anyhow::Result<Pair> {
    let mut east = country.add_domain("east", east).await?;
    let mut west = country.add_domain("west", west).await?;
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
