//! Two networks with the same addresses.

use std::time::Duration;

use vl3_lab::SiteSpec;
use vl3_lab::tools::{self, QueryType, Rcode};
use vl3_multicluster::{Country, Mechanism, NetworkSpec};

use crate::JOINED_MAX;

const SILENCE: Duration = Duration::from_millis(800);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_networks_with_equal_addresses_never_meet() -> anyhow::Result<()> {
    let mut country = Country::new().await?;
    let mut east = country.add_domain("east", SiteSpec::default()).await?;
    let mut west = country.add_domain("west", SiteSpec::default()).await?;
    country.add_network(NetworkSpec::RED, &[&east, &west])?;
    country.add_network(NetworkSpec::BLUE, &[&east, &west])?;
    let both = ["red", "blue"];
    let (first, second) = tokio::join!(east.start(&country, &both), west.start(&country, &both));
    first?;
    second?;
    let mut red_east = east
        .add_workload(&country, "red-e", &[("red", Mechanism::Tun)], "")
        .await?;
    let mut red_west = west
        .add_workload(&country, "red-w", &[("red", Mechanism::Wireguard)], "")
        .await?;
    let mut blue_east = east
        .add_workload(&country, "blue-e", &[("blue", Mechanism::Wireguard)], "")
        .await?;
    let mut blue_west = west
        .add_workload(&country, "blue-w", &[("blue", Mechanism::Tun)], "")
        .await?;
    let at_red_east = red_east.attach("red").await?;
    let at_red_west = red_west.attach("red").await?;
    let at_blue_east = blue_east.attach("blue").await?;
    let at_blue_west = blue_west.attach("blue").await?;
    red_east.reaches_both(at_red_west, JOINED_MAX).await?;
    blue_east.reaches_both(at_blue_west, JOINED_MAX).await?;
    red_west.reaches_both(at_red_east, JOINED_MAX).await?;
    blue_west.reaches_both(at_blue_east, JOINED_MAX).await?;

    // IPv6 pools differ: an address of red means nothing in blue.
    let crossed = tools::echo(&blue_east.host, None, at_red_west.v6.into(), SILENCE).await?;
    assert!(!crossed.is_answered(), "blue reaches red");
    // A name of one network does not exist under the other's zone, nor is its zone served.
    let other = blue_east.ask("red-w.blue.vl3", QueryType::Aaaa).await?;
    assert_eq!(other.rcode, Rcode::NxDomain);
    let zone = blue_east.ask("red-w.west.red.vl3", QueryType::Aaaa).await?;
    assert!(
        zone.addresses.is_empty() && zone.rcode != Rcode::NoError,
        "{zone:?}"
    );
    Ok(())
}
