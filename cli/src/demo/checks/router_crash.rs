//! `kill -9` of a router under traffic: it comes back with the same prefix, addresses and names,
//! and an open TCP connection goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use vl3_lab::tools::{Continuous, LongConnection};

use super::names;
use crate::demo::report::{Fault, Report, as_millis};
use crate::demo::world::World;

const INTERVAL: Duration = Duration::from_millis(10);
const DEAD_FOR: Duration = Duration::from_millis(500);
const GAP_MAX: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Pings and connections over the router that is killed, one per mechanism.
const FLOWS: [(&str, &str, &str); 2] = [
    ("TUN", "east-a", "west-a"),
    ("WIREGUARD", "east-b", "west-b"),
];

pub(in crate::demo) async fn run(world: &mut World, report: &mut Report) -> anyhow::Result<String> {
    let mut flows = Vec::new();
    for (mechanism, from, to) in FLOWS {
        let (source, target) = (world.workload(from)?, world.workload(to)?);
        let own = source.in_network("red").context("it is in red")?;
        let other = target.in_network("red").context("it is in red")?;
        let pings =
            Continuous::start(&source.host, Some(own.v4.into()), other.v4.into(), INTERVAL)?;
        let mut connection = LongConnection::open(
            &source.host,
            Some(own.v6.into()),
            &target.host,
            other.v6.into(),
        )
        .await?;
        connection.exchange(WAIT_MAX).await?;
        flows.push((mechanism, to, pings, connection));
    }
    let resolvers = world.workload("west-a")?.resolvers()?;

    let router = router(world)?;
    router.kill().await?;
    // The outage is part of what is shown, not a wait for something.
    tokio::time::sleep(DEAD_FOR).await;
    let restarted = Instant::now();
    router.start()?;

    let mut gaps = Vec::new();
    for (mechanism, to, pings, connection) in &mut flows {
        let gap = loop {
            if let Some(gap) = pings.report().first_answer_after(restarted) {
                break gap;
            }
            if restarted.elapsed() > WAIT_MAX {
                router_log(world)?;
                bail!("{to} ({mechanism}) does not answer {WAIT_MAX:?} after the restart");
            }
            tokio::time::sleep(INTERVAL).await;
        };
        let outage = pings.report().longest_gap();
        report.faults.push(Fault {
            fault: format!("kill -9 of router red-west, {mechanism}"),
            observed: format!(
                "first answer {:.0} ms after the restart; longest silence {:.0} ms with {} ms dead",
                as_millis(gap),
                as_millis(outage),
                DEAD_FOR.as_millis()
            ),
            gap_ms: Some(as_millis(gap)),
            ok: gap <= GAP_MAX,
        });
        gaps.push((*mechanism, gap));
        connection.exchange(WAIT_MAX).await.with_context(|| {
            format!("the TCP connection to {to} ({mechanism}) after the restart")
        })?;
    }
    same_state(world, &resolvers).await?;
    let named = names::resolve_again(world, WAIT_MAX)
        .await
        .context("names after the restart")?;

    let text: Vec<String> = gaps
        .iter()
        .map(|(mechanism, gap)| format!("{mechanism} {:.0} ms", as_millis(*gap)))
        .collect();
    ensure!(
        gaps.iter().all(|(_, gap)| *gap <= GAP_MAX),
        "from restart to the first answer: {}; at most 2 s is allowed",
        text.join(", ")
    );
    Ok(format!(
        "from restart to the first answer: {}; prefix, addresses and TCP connections as before, names {:.1} s later",
        text.join(", "),
        named.as_secs_f64()
    ))
}

fn router(world: &mut World) -> anyhow::Result<&mut crate::demo::service::Service> {
    world
        .domain_mut("west")?
        .routers
        .get_mut("red")
        .context("west has a red router")
}

fn router_log(world: &mut World) -> anyhow::Result<()> {
    router(world)?.check_alive()
}

/// Addresses are on the interfaces as before, and the router's own (the resolver) is the same.
async fn same_state(world: &World, resolvers: &[std::net::IpAddr]) -> anyhow::Result<()> {
    for workload in world
        .workloads
        .iter()
        .filter(|workload| workload.plan.domain == "west")
    {
        let found = workload.read_addresses().await?;
        ensure!(
            found == workload.addresses,
            "{} had {:?} and has {found:?}",
            workload.name(),
            workload.addresses
        );
    }
    let after = world.workload("west-a")?.resolvers()?;
    ensure!(
        after == resolvers,
        "the resolvers of west-a were {resolvers:?} and are {after:?}"
    );
    Ok(())
}
