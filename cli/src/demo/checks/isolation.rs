//! Two networks with one IPv4 pool never meet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::join_all;
use tokio::net::UdpSocket;
use vl3_lab::{Host, tools};

use crate::demo::workload::Workload;
use crate::demo::world::World;

const PORT: u16 = 7;

/// Long enough for an answer that took a wrong way.
const SILENCE: Duration = Duration::from_millis(400);

/// Every workload answers with its own name and network on each of its addresses. Then the blue
/// workload asks every red address: only blue ones may answer, and only where blue has the same.
pub(in crate::demo) async fn run(world: &World) -> anyhow::Result<String> {
    let mut responders = Vec::new();
    for network in world.plans() {
        for workload in world.members(network.name) {
            responders.push(Responder::start(workload, network.name)?);
        }
    }
    let mut probes = Vec::new();
    for (inside, outside) in [("blue", "red"), ("red", "blue")] {
        let askers = world.members(inside).into_iter();
        probes.extend(
            askers
                .filter(|from| from.in_network(outside).is_none())
                .map(|from| probe(world, from, inside, outside)),
        );
    }
    let mut seen = Seen::default();
    for one in join_all(probes).await {
        seen.add(one?);
    }
    drop(responders);
    let example = equal_address(world)
        .map(|(address, red, blue)| format!("; {address} is {red} in red and {blue} in blue"))
        .unwrap_or_default();
    Ok(format!(
        "asked for {} addresses of the other network: {} equal ones answered by the own network's holder, \
         {} by nobody{example}",
        seen.equal + seen.silent,
        seen.equal,
        seen.silent
    ))
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    equal: usize,
    silent: usize,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.equal += other.equal;
        self.silent += other.silent;
    }
}

async fn probe(
    world: &World,
    from: &Workload,
    inside: &str,
    outside: &str,
) -> anyhow::Result<Seen> {
    let own = from.in_network(inside).context("it is inside")?;
    let equal: BTreeMap<IpAddr, &str> = world
        .members(inside)
        .into_iter()
        .filter_map(|member| Some((IpAddr::from(member.in_network(inside)?.v4), member.name())))
        .collect();
    let targets: Vec<IpAddr> = world
        .members(outside)
        .into_iter()
        .filter_map(|member| member.in_network(outside))
        .flat_map(|addresses| addresses.both())
        .collect();
    let equal = &equal;
    let asked = targets.iter().map(|target| async move {
        let source = if target.is_ipv4() {
            own.v4.into()
        } else {
            own.v6.into()
        };
        let said = who_is(&from.host, source, *target).await?;
        let echoed = tools::echo(&from.host, Some(source), *target, SILENCE)
            .await?
            .is_answered();
        match (said, equal.get(target)) {
            (Some(said), Some(holder)) if said == format!("{inside}/{holder}") => Ok(true),
            (None, None) if !echoed => Ok(false),
            (said, holder) => bail!(
                "{} in {inside} asked {target}: {said:?} answered (echo: {echoed}), right is {}",
                from.name(),
                holder.map_or("nobody".to_owned(), |holder| format!("{inside}/{holder}"))
            ),
        }
    });
    let mut seen = Seen::default();
    for answered in join_all(asked).await {
        match answered? {
            true => seen.equal += 1,
            false => seen.silent += 1,
        }
    }
    Ok(seen)
}

/// Asks who holds an address; `None` when nobody answers.
async fn who_is(host: &Host, source: IpAddr, target: IpAddr) -> anyhow::Result<Option<String>> {
    let socket = bind(host, SocketAddr::new(source, 0))?;
    let mut buffer = [0_u8; 128];
    // Nothing routes there: nobody answers.
    if socket.send_to(b"who", (target, PORT)).await.is_err() {
        return Ok(None);
    }
    match tokio::time::timeout(SILENCE, socket.recv_from(&mut buffer)).await {
        Ok(Ok((len, _))) => Ok(Some(String::from_utf8_lossy(&buffer[..len]).into_owned())),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

fn bind(host: &Host, address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = host
        .run(|| {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        })
        .with_context(|| format!("bind {address} in {}", host.name()))?;
    Ok(UdpSocket::from_std(socket)?)
}

/// Says who it is on all addresses of one workload in one network.
struct Responder(Vec<tokio::task::JoinHandle<()>>);

impl Responder {
    fn start(workload: &Workload, network: &str) -> anyhow::Result<Self> {
        let addresses = workload
            .in_network(network)
            .context("a member has addresses")?;
        let mut tasks = Vec::new();
        for address in addresses.both() {
            let socket = bind(&workload.host, SocketAddr::new(address, PORT))?;
            let says = format!("{network}/{}", workload.name());
            tasks.push(tokio::spawn(async move {
                let mut buffer = [0_u8; 16];
                while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
                    // An asker that is gone needs no answer.
                    let _ = socket.send_to(says.as_bytes(), from).await;
                }
            }));
        }
        Ok(Self(tasks))
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// An IPv4 address that workloads of both networks hold, if there is one.
fn equal_address(world: &World) -> Option<(Ipv4Addr, &'static str, &'static str)> {
    let reds = world.members("red");
    let blues = world.members("blue");
    reds.iter().find_map(|red| {
        let address = red.in_network("red")?.v4;
        let blue = blues.iter().find(|blue| {
            blue.in_network("blue")
                .is_some_and(|held| held.v4 == address)
        })?;
        Some((address, red.name(), blue.name()))
    })
}
