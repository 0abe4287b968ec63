//! A fourth cluster joins the running network by a new version of the document.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::{names, reachability};
use crate::demo::plan::LATE_DOMAIN;
use crate::demo::report::{Fault, Report, as_millis};
use crate::demo::world::World;

const JOIN_MAX: Duration = Duration::from_secs(10);

pub(in crate::demo) async fn run(world: &mut World, report: &mut Report) -> anyhow::Result<String> {
    let started = Instant::now();
    world
        .add_late_domain()
        .await
        .with_context(|| format!("{LATE_DOMAIN} joins"))?;
    let attached = started.elapsed();
    let members = world.members("red");
    reachability::all_answer("red", &members, JOIN_MAX).await?;
    let reached = started.elapsed();
    names::resolve_again(world, JOIN_MAX)
        .await
        .context("names with the late domain")?;
    report.faults.push(Fault {
        fault: format!("cluster {LATE_DOMAIN} joins by add-member and publish"),
        observed: format!(
            "every pair of {} workloads answers {:.0} ms after its start",
            members.len(),
            as_millis(reached)
        ),
        gap_ms: None,
        ok: true,
    });
    Ok(format!(
        "add-member, publish, start and attach took {:.1} s; every pair and name of {} workloads answered after {:.1} s",
        attached.as_secs_f64(),
        members.len(),
        reached.as_secs_f64()
    ))
}
