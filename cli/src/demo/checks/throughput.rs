//! How fast one TCP stream is, per kind of path.

use std::time::Duration;

use anyhow::{Context, bail};
use vl3_lab::tools;

use crate::demo::plan::KIOSK;
use crate::demo::report::{Report, Throughput};
use crate::demo::world::World;

const DURATION: Duration = Duration::from_millis(1200);

/// Far below what any machine does: a stream that crawls is broken.
const MEGABITS_MIN: f64 = 10.0;

const PATHS: [(&str, &str, &str); 3] = [
    ("TUN - TUN across clusters", "east-a", "west-a"),
    ("WIREGUARD - WIREGUARD across clusters", "east-b", "west-b"),
    ("edge behind NAT - cluster", KIOSK, "west-a"),
];

pub(in crate::demo) async fn run(world: &World, report: &mut Report) -> anyhow::Result<String> {
    let mut seen = Vec::new();
    for (path, from, to) in PATHS {
        let (source, target) = (world.workload(from)?, world.workload(to)?);
        let own = source.in_network("red").context("it is in red")?;
        let address = target.in_network("red").context("it is in red")?;
        let stream = tools::throughput(
            &source.host,
            Some(own.v4.into()),
            &target.host,
            address.v4.into(),
            DURATION,
        )
        .await
        .with_context(|| format!("one stream from {from} to {to}"))?;
        let megabits = (stream.bits_per_second() / 1e5).round() / 10.0;
        seen.push(format!("{from} to {to} {megabits:.0} Mbit/s"));
        report.throughput.push(Throughput {
            path: path.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            megabits_per_second: megabits,
        });
        if megabits < MEGABITS_MIN {
            bail!("{path}: {megabits} Mbit/s, less than {MEGABITS_MIN}");
        }
    }
    Ok(seen.join(", "))
}
