//! Attach and detach.

use std::time::Duration;

use vl3_lab::SiteSpec;
use vl3_lab::tools::{QueryType, Rcode};
use vl3_multicluster::{Mechanism, eventually};

use crate::{JOINED_MAX, pair, serves_nobody};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_mechanisms_attach_reach_each_other_and_detach_without_a_trace() -> anyhow::Result<()>
{
    let mut world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let red = [("red", Mechanism::Wireguard)];
    let mut east_b = world
        .east
        .add_workload(&world.country, "east-b", &red, "")
        .await?;
    let at_east_b = east_b.attach("red").await?;
    // Between the two mechanisms on one router, and from both to the other domain.
    east_b.reaches_both(world.at_east_a, JOINED_MAX).await?;
    east_b.reaches_both(world.at_west_a, JOINED_MAX).await?;
    world
        .west_a
        .resolves("east-b.east.red.vl3", at_east_b.v6, JOINED_MAX)
        .await?;
    world
        .west_a
        .resolves("east-b.red.vl3", at_east_b.v6, JOINED_MAX)
        .await?;
    let nobody = world
        .west_a
        .ask("nobody.east.red.vl3", QueryType::Aaaa)
        .await?;
    assert_eq!(nobody.rcode, Rcode::NxDomain);

    east_b.client.stop(Duration::from_secs(10)).await?;
    world.east_a.client.stop(Duration::from_secs(10)).await?;
    assert!(
        !east_b.is_attached("red").await,
        "its interface is still there"
    );
    assert!(
        !world.east_a.is_attached("red").await,
        "its interface is still there"
    );
    serves_nobody(world.east.router("red")?, Duration::from_secs(10)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_name_is_gone_everywhere() -> anyhow::Result<()> {
    let mut world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    world
        .west_a
        .resolves("east-a.east.red.vl3", world.at_east_a.v6, JOINED_MAX)
        .await?;
    world.east_a.client.stop(Duration::from_secs(10)).await?;
    for name in ["east-a.east.red.vl3", "east-a.red.vl3"] {
        eventually(
            &format!("{name} is gone"),
            Duration::from_secs(15),
            || async {
                Ok(world.west_a.ask(name, QueryType::Aaaa).await?.rcode == Rcode::NxDomain)
            },
        )
        .await?;
    }
    Ok(())
}
