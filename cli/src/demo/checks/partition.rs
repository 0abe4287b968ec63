//! Two clusters lose sight of each other for a while; nobody else notices, names say the truth.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use vl3_lab::tools::{self, Continuous, QueryType, Rcode};

use super::{names, reachability};
use crate::demo::report::{Fault, Report, as_millis};
use crate::demo::world::World;

const LASTS: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(20);
const ANSWER_WAIT: Duration = Duration::from_secs(6);
const BACK_MAX: Duration = Duration::from_secs(8);

/// The canonical name of a workload in the part that cannot be asked.
const NAME: &str = "north-a.north.red.vl3";

/// RFC 8914: an answer from before; no reachable authority.
const STALE: u16 = 3;
const NO_REACHABLE_AUTHORITY: u16 = 22;

pub(in crate::demo) async fn run(world: &World, report: &mut Report) -> anyhow::Result<String> {
    let beside = steady(world, "east-a", "west-a")?;
    let across = steady(world, "east-a", "north-a")?;
    let (east, north) = (&world.domain("east")?.site, &world.domain("north")?.site);
    world.internet.partition(east, north).await?;
    let cut = Instant::now();
    // A failed question must not leave the partition behind.
    let meanwhile = names_meanwhile(world, cut).await;
    tokio::time::sleep(LASTS.saturating_sub(cut.elapsed())).await;
    world.internet.heal(east, north).await?;
    let healed = Instant::now();
    let names = meanwhile?;

    let back = loop {
        if let Some(back) = across.report().first_answer_after(healed) {
            break back;
        }
        if healed.elapsed() > BACK_MAX {
            bail!("east and north do not reach each other {BACK_MAX:?} after the heal");
        }
        tokio::time::sleep(INTERVAL).await;
    };
    let members = world.members("red");
    reachability::all_answer("red", &members, BACK_MAX)
        .await
        .context("after the heal")?;
    await_name(world, "east-a", Wanted::Fresh, BACK_MAX)
        .await
        .context("names after the heal")?;
    let beside = beside.stop(Duration::from_millis(200)).await;
    let ok = beside.lost() == 0;
    report.faults.push(Fault {
        fault: "10 s partition between east and north".to_owned(),
        observed: format!(
            "back {:.0} ms after the heal; east-west lost {} of {}; {names}",
            as_millis(back),
            beside.lost(),
            beside.sent()
        ),
        gap_ms: Some(as_millis(back)),
        ok,
    });
    ensure!(
        ok,
        "east-west lost {} of {} packets meanwhile",
        beside.lost(),
        beside.sent()
    );
    Ok(format!(
        "east-west lost 0 of {}; east-north back {:.0} ms after the heal; {names}",
        beside.sent(),
        as_millis(back)
    ))
}

fn steady(world: &World, from: &str, to: &str) -> anyhow::Result<Continuous> {
    let (source, target) = (world.workload(from)?, world.workload(to)?);
    let own = source.in_network("red").context("it is in red")?;
    let other = target.in_network("red").context("it is in red")?;
    Continuous::start(&source.host, Some(own.v6.into()), other.v6.into(), INTERVAL)
}

/// Where its domain cannot be asked, the name is what it was before, and said to be old, or
/// SERVFAIL; never NXDOMAIN. Elsewhere it is answered.
async fn names_meanwhile(world: &World, cut: Instant) -> anyhow::Result<String> {
    let limit = LASTS.saturating_sub(cut.elapsed());
    let said = await_name(world, "east-a", Wanted::OldOrMissing, limit).await?;
    await_name(world, "west-a", Wanted::Fresh, limit).await?;
    Ok(format!("{NAME} was {said} in east and answered in west"))
}

/// What an asker is to be told.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Fresh,
    OldOrMissing,
}

impl Wanted {
    const fn is_met(self, rcode: Rcode, extended: Option<u16>) -> bool {
        match self {
            Self::Fresh => matches!((rcode, extended), (Rcode::NoError, None)),
            Self::OldOrMissing => matches!(
                (rcode, extended),
                (Rcode::NoError, Some(STALE)) | (Rcode::ServFail, Some(NO_REACHABLE_AUTHORITY))
            ),
        }
    }
}

async fn await_name(
    world: &World,
    from: &str,
    wanted: Wanted,
    limit: Duration,
) -> anyhow::Result<String> {
    let workload = world.workload(from)?;
    let server: SocketAddr = workload.resolver(world.network("red")?.pool6)?;
    let started = Instant::now();
    loop {
        let answer = tools::ask(
            &workload.host,
            None,
            server,
            NAME,
            QueryType::Aaaa,
            ANSWER_WAIT,
        )
        .await?;
        if answer.rcode == Rcode::NxDomain {
            bail!("{from} was told that {NAME} does not exist");
        }
        if wanted.is_met(answer.rcode, answer.extended_error) {
            return Ok(names::describe(&answer));
        }
        if started.elapsed() > limit {
            bail!(
                "{from} asks {NAME}: {}, wanted {wanted:?}",
                names::describe(&answer)
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
