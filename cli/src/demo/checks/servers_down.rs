//! `kill -9` of every registry and every DNS server: packets do not notice.

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use vl3_lab::tools::Continuous;

use crate::demo::domain::READY_WAIT_MAX;
use crate::demo::plan::KIOSK;
use crate::demo::report::{Fault, Report};
use crate::demo::world::World;

const INTERVAL: Duration = Duration::from_millis(10);
const WATCHED_FOR: Duration = Duration::from_millis(1500);

const FLOWS: [(&str, &str); 5] = [
    ("east-a", "west-a"),
    ("east-b", "north-b"),
    ("west-b", "north-a"),
    (KIOSK, "west-b"),
    ("north-b", KIOSK),
];

/// For the last echo request's answer, the kiosk's access line included.
const GRACE: Duration = Duration::from_millis(300);

pub(in crate::demo) async fn run(world: &mut World, report: &mut Report) -> anyhow::Result<String> {
    let mut flows = Vec::new();
    for (number, (from, to)) in FLOWS.into_iter().enumerate() {
        let (source, target) = (world.workload(from)?, world.workload(to)?);
        let own = source.in_network("red").context("it is in red")?;
        let other = target.in_network("red").context("it is in red")?;
        let family = number % 2;
        let pings = Continuous::start(
            &source.host,
            Some(own.both()[family]),
            other.both()[family],
            INTERVAL,
        )?;
        flows.push((from, to, pings));
    }
    for domain in world.domains.values_mut() {
        domain.registry.kill().await?;
        for dns in domain.dns.values_mut() {
            dns.kill().await?;
        }
    }
    let killed: usize = world
        .domains
        .values()
        .map(|domain| 1 + domain.dns.len())
        .sum();
    // The time under observation is the point here.
    tokio::time::sleep(WATCHED_FOR).await;
    for domain in world.domains.values_mut() {
        domain.registry.start()?;
        for dns in domain.dns.values_mut() {
            dns.start()?;
        }
    }
    try_join_all(world.domains.values_mut().map(|domain| async move {
        domain.registry.wait_ready(READY_WAIT_MAX).await?;
        try_join_all(
            domain
                .dns
                .values_mut()
                .map(|dns| dns.wait_ready(READY_WAIT_MAX)),
        )
        .await
    }))
    .await?;

    let (mut sent, mut lost) = (0, Vec::new());
    for (from, to, pings) in flows {
        let seen = pings.stop(GRACE).await;
        sent += seen.sent();
        if seen.lost() > 0 {
            lost.push(format!(
                "{from}->{to} lost {} of {}",
                seen.lost(),
                seen.sent()
            ));
        }
    }
    report.faults.push(Fault {
        fault: format!("kill -9 of {killed} registries and DNS servers, and their restart"),
        observed: if lost.is_empty() {
            format!("0 of {sent} packets lost")
        } else {
            lost.join(", ")
        },
        gap_ms: None,
        ok: lost.is_empty(),
    });
    if !lost.is_empty() {
        bail!("{}", lost.join(", "));
    }
    Ok(format!(
        "{killed} processes killed and started again: 0 of {sent} packets lost"
    ))
}
