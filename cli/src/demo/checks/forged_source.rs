//! A packet with somebody else's inner source is dropped at the first router, and counted as
//! what it is, apart from the noise that every interface makes.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vl3_lab::{Datagram, admin, tools, udp_packet};

use serde_json::Value;

use crate::demo::world::World;

const FORGED: &str = "forged_source";

const PACKETS: usize = 5;
const COUNT_WAIT_MAX: Duration = Duration::from_secs(3);
const ARRIVAL_WAIT: Duration = Duration::from_millis(200);

/// `from` claims the address of `claims` towards `to`.
const CASES: [(&str, &str, &str); 2] = [
    ("east-a", "north-a", "west-a"),
    ("east-b", "west-b", "north-b"),
];

pub(in crate::demo) async fn run(world: &World) -> anyhow::Result<String> {
    let mut detail = Vec::new();
    for (from, claims, to) in CASES {
        let sender = world.workload(from)?;
        let claimed = world
            .workload(claims)?
            .in_network("red")
            .context("it is in red")?;
        let target = world.workload(to)?;
        let addresses = target.in_network("red").context("it is in red")?;
        let router = world
            .domain(sender.plan.domain)?
            .routers
            .get("red")
            .context("it has a red router")?;
        // A client of its own data plane may be the one that drops.
        let counters = [
            ("router", router.run_dir()),
            ("client", sender.client.run_dir()),
        ];
        let before = counted(&counters).await?;
        for (source, address) in claimed.both().into_iter().zip(addresses.both()) {
            let sink = target
                .host
                .run(|| listen(address))
                .with_context(|| format!("listen at {to}"))?;
            let destination = sink.local_addr()?;
            let datagram = Datagram {
                source: SocketAddr::new(source, 9),
                destination,
                payload: b"forged",
            };
            let packet = udp_packet(datagram).context("one family")?;
            for _ in 0..PACKETS {
                tools::inject(&sender.host, Some("red"), &packet)?;
            }
            let arrived =
                tokio::task::spawn_blocking(move || sink.recv_from(&mut [0; 64]).is_ok()).await?;
            if arrived {
                bail!("{from} reached {to} with the source {source} of {claims}");
            }
        }
        let started = Instant::now();
        let wanted = 2 * PACKETS as u64;
        loop {
            let more = counted(&counters).await? - before;
            if more >= wanted {
                detail.push(format!(
                    "{from} as {claims}: {more} of {wanted} packets dropped and counted"
                ));
                break;
            }
            if started.elapsed() > COUNT_WAIT_MAX {
                bail!("{from} sent {wanted} forged packets, {more} are counted as {FORGED}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(detail.join("; "))
}

fn listen(address: IpAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_read_timeout(Some(ARRIVAL_WAIT))?;
    Ok(socket)
}

/// A router counts for its whole data plane, a client per attachment.
async fn counted(roles: &[(&str, &std::path::Path)]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for (role, run_dir) in roles {
        let status = admin::status(run_dir).await?;
        let Some(status) = status.get(role) else {
            continue;
        };
        let attachments = status.get("attachments").and_then(Value::as_array);
        let counters = attachments.into_iter().flatten().chain([status]);
        sum += counters
            .filter_map(|of| of.get("drops")?.get(FORGED)?.as_u64())
            .sum::<u64>();
    }
    Ok(sum)
}
