//! Attach and detach.

use std::time::Duration;

use anyhow::Context as _;
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
    let left = world.east_a.host.namespace().resolv_conf()?;
    assert_eq!(
        left, "",
        "its resolv.conf, a mounted file, is not as it was"
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_keeps_the_capabilities_that_it_needs_and_no_others() -> anyhow::Result<()> {
    // capabilities(7): 1 DAC_OVERRIDE, 10 NET_BIND_SERVICE, 12 NET_ADMIN, 13 NET_RAW, 21 SYS_ADMIN.
    const ROUTER: u64 = 1 << 1 | 1 << 10 | 1 << 12 | 1 << 21;
    const CLIENT: u64 = 1 << 1 | 1 << 12 | 1 << 13;
    let world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let east = &world.east;
    let registry = east.registry.as_ref().context("a registry")?;
    let router = east.routers.get("red").context("a router")?;
    let dns = east.dns.get("red").context("a name server")?;
    for (service, kept) in [
        (registry, 0),
        (dns, 0),
        (router, ROUTER),
        (&world.east_a.client, CLIENT),
        (&world.west_a.client, CLIENT),
    ] {
        for key in ["CapEff:", "CapPrm:", "CapBnd:"] {
            for found in service.kernel_says(key)? {
                let found = u64::from_str_radix(&found, 16)?;
                anyhow::ensure!(
                    found & !kept == 0,
                    "{} has {key} {found:x}, allowed are {kept:x}",
                    service.label()
                );
            }
        }
        let bound = service.kernel_says("NoNewPrivs:")?;
        anyhow::ensure!(
            !bound.is_empty() && bound.iter().all(|bound| bound == "1"),
            "{} may still gain privileges",
            service.label()
        );
    }
    Ok(())
}
