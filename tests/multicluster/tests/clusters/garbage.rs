//! Whatever arrives on a listening socket: no crash, no growth, counted.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use vl3_lab::{Host, SiteSpec};
use vl3_multicluster::{Domain, Mechanism, Service, Workload, eventually};

use crate::{JOINED_MAX, Pair, pair};

const DATAGRAMS: usize = 2_000;
const STREAMS: usize = 60;
/// Router: UDP, TCP, nsm.sock, fd.sock, admin.sock. Registry: TCP, admin.sock. Name server: UDP,
/// TCP, admin.sock. Client: UDP, admin.sock.
const ENTRANCES: usize = 12;
const COUNTED_MAX: Duration = Duration::from_secs(10);
/// Floods after the first, each of them over every entrance.
const FLOODS: usize = 4;
/// What a process may grow by in all of these together, KiB.
const GROWTH_MAX: u64 = 4 * 1024;
/// Streams that the other end left half open end within 5 s.
const SHRUNK_MAX: Duration = Duration::from_secs(15);
const SERVED_MAX: Duration = Duration::from_secs(10);

/// Bytes without meaning, the same on every run.
fn noise(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}

fn datagrams(host: &Host, to: SocketAddr) -> anyhow::Result<()> {
    host.run(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        for index in 0..DATAGRAMS {
            let mut data = noise(index, index % 300);
            // Every other one looks like a WireGuard message or a DNS header at first.
            if index % 2 == 0 && data.len() > 4 {
                data[..4].copy_from_slice(&[1 + (index / 2 % 4) as u8, 0, 0, 0]);
            }
            // A refused one changes nothing.
            let _ = socket.send_to(&data, to);
        }
        Ok(())
    })
}

fn streams(host: &Host, to: SocketAddr) -> anyhow::Result<()> {
    host.run(|| {
        for index in 0..STREAMS {
            let mut stream = TcpStream::connect(to)?;
            let head: &[u8] = match index % 4 {
                0 => b"GET / HTTP/1.1\r\n\r\n",
                1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                2 => &[0x16, 3, 1, 0xff, 0xff],
                _ => &[],
            };
            // The other end may close at any time.
            let _ = stream
                .write_all(head)
                .and_then(|()| stream.write_all(&noise(index, 700)));
        }
        Ok(())
    })
}

fn unix_streams(path: &Path) -> anyhow::Result<()> {
    for index in 0..STREAMS {
        let mut stream = UnixStream::connect(path)?;
        let _ = stream.write_all(&noise(index, 900));
    }
    Ok(())
}

fn unix_packets(path: &Path) -> anyhow::Result<()> {
    for index in 0..STREAMS {
        let end = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        connect(end.as_raw_fd(), &UnixAddr::new(path)?)?;
        for part in 0..5 {
            let _ = send(
                end.as_raw_fd(),
                &noise(index + part, 64),
                MsgFlags::MSG_NOSIGNAL,
            );
        }
    }
    Ok(())
}

/// A way in, and the counter of its role that tells of what came there.
struct Entrance {
    what: String,
    role: &'static str,
    counter: Counter,
    /// What one flood adds at least.
    least: f64,
    flood: Box<dyn Fn() -> anyhow::Result<()>>,
}

#[derive(Clone, Copy)]
enum Counter {
    Metric(&'static str),
    /// What was no question: answered as an error, or dropped because it looks like a reply.
    Questions,
    /// Packets that a client's own data plane dropped.
    ClientDrops,
}

const REFUSED: Counter = Counter::Metric("vl3_grpc_connections_refused_total");

/// Everything that listens in east.
fn entrances(
    world: &Pair,
    client: &Workload,
    client_at: SocketAddr,
) -> anyhow::Result<Vec<Entrance>> {
    let mut all = Vec::new();
    let mut add = |what: &str, role, counter, least: usize, flood: Flood| {
        let what = format!("{role}: {what}");
        let least = least as f64;
        all.push(Entrance {
            what,
            role,
            counter,
            least,
            flood,
        });
    };
    let drops = Counter::Metric("vl3_router_drops_total");
    let attacker = world.west.site.gateway().clone();
    let at = SocketAddr::new(world.east.underlay, 51820);
    add(
        "UDP",
        "router",
        drops,
        DATAGRAMS / 2,
        by_datagrams(&attacker, at),
    );
    for (role, port) in [("registry", 5002), ("router", 5010)] {
        let at = SocketAddr::new(world.east.underlay, port);
        add("gRPC", role, REFUSED, STREAMS, by_streams(&attacker, at));
    }
    let flood = by_datagrams(&client.host, client_at);
    add("UDP", "client", Counter::ClientDrops, DATAGRAMS / 2, flood);

    // The name server's own sockets, from a workload.
    let resolver = world.east_a.host.namespace().resolv_conf()?;
    let server = resolver
        .lines()
        .find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    let server = server.with_context(|| format!("no resolver in {resolver:?}"))?;
    let at = SocketAddr::new(server, 53);
    let flood = by_datagrams(&world.east_a.host, at);
    // What the socket's buffer does not take never comes to the name server.
    add(
        "DNS over UDP",
        "dns",
        Counter::Questions,
        DATAGRAMS / 10,
        flood,
    );
    let flood = by_streams(&world.east_a.host, at);
    add("DNS over TCP", "dns", Counter::Questions, STREAMS, flood);

    for role in ROLES {
        let directory = service(&world.east, &client.client, role)?
            .run_dir()
            .to_path_buf();
        for (socket, counter) in [
            (
                "admin.sock",
                Counter::Metric("vl3_admin_connections_refused_total"),
            ),
            ("nsm.sock", REFUSED),
        ] {
            let path = directory.join(socket);
            if path.exists() {
                let flood = Box::new(move || unix_streams(&path));
                add(socket, role, counter, STREAMS, flood);
            }
        }
        let path = directory.join("fd.sock");
        if path.exists() {
            let counter = Counter::Metric("vl3_router_fd_refused_total");
            let flood = Box::new(move || unix_packets(&path));
            add("fd.sock", role, counter, STREAMS, flood);
        }
    }
    Ok(all)
}

type Flood = Box<dyn Fn() -> anyhow::Result<()>>;

fn by_datagrams(host: &Host, to: SocketAddr) -> Flood {
    let host = host.clone();
    Box::new(move || datagrams(&host, to))
}

fn by_streams(host: &Host, to: SocketAddr) -> Flood {
    let host = host.clone();
    Box::new(move || streams(&host, to))
}

const ROLES: [&str; 4] = ["router", "registry", "dns", "client"];

fn service<'a>(domain: &'a Domain, client: &'a Service, role: &str) -> anyhow::Result<&'a Service> {
    let found = match role {
        "router" => domain.routers.get("red"),
        "registry" => domain.registry.as_ref(),
        "dns" => domain.dns.get("red"),
        _ => Some(client),
    };
    found.with_context(|| format!("{} has no {role}", domain.name))
}

async fn count(world: &Pair, client: &Workload, entrance: &Entrance) -> anyhow::Result<f64> {
    let service = service(&world.east, &client.client, entrance.role)?;
    match entrance.counter {
        Counter::Metric(name) => service.metric(name, "").await,
        Counter::Questions => Ok(service.metric("vl3_dns_malformed_total", "").await?
            + service.metric("vl3_dns_dropped_total", "").await?),
        Counter::ClientDrops => {
            let status = service.status().await?;
            let drops = status["attachments"][0]["drops"].as_object();
            let counts = drops.into_iter().flatten().map(|(_, count)| count);
            Ok(counts.filter_map(serde_json::Value::as_f64).sum())
        }
    }
}

fn sizes(world: &Pair, client: &Workload) -> anyhow::Result<Vec<(String, u64)>> {
    let sizes = ROLES.map(|role| {
        let service = service(&world.east, &client.client, role)?;
        Ok((service.label(), service.memory_kib()))
    });
    sizes.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_listening_socket_is_counted_and_harmless() -> anyhow::Result<()> {
    let mut world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let red = [("red", Mechanism::Wireguard)];
    let mut east_b = world
        .east
        .add_workload(&world.country, "east-b", &red, "")
        .await?;
    let at_east_b = east_b.attach("red").await?;
    east_b.reaches_both(world.at_west_a, JOINED_MAX).await?;
    // The one member with a key: the router knows where its data plane listens.
    let status = world.east.router("red")?.status().await?;
    let mut peers = status["peers"].as_array().into_iter().flatten();
    let peer = peers.find(|peer| peer["class"] == "Member" && !peer["public_key"].is_null());
    let client_at = peer.and_then(|peer| peer["endpoint"].as_str()?.parse().ok());
    let client_at = client_at.with_context(|| format!("no endpoint of east-b: {status:#}"))?;
    let entrances = entrances(&world, &east_b, client_at)?;
    anyhow::ensure!(
        entrances.len() == ENTRANCES,
        "another number of listening sockets than is known: {:?}",
        entrances.iter().map(|one| &one.what).collect::<Vec<_>>()
    );
    for entrance in &entrances {
        let before = count(&world, &east_b, entrance).await?;
        (entrance.flood)()?;
        let (what, least) = (&entrance.what, entrance.least);
        eventually(what, COUNTED_MAX, || async {
            let counted = count(&world, &east_b, entrance).await? - before;
            anyhow::ensure!(counted >= least, "{counted} counted of at least {least}");
            Ok(true)
        })
        .await?;
    }

    // What grows with garbage grows with each flood; the first may warm caches and pools up.
    let warm = sizes(&world, &east_b)?;
    for _ in 0..FLOODS {
        for entrance in &entrances {
            (entrance.flood)()?;
        }
    }
    world.east.ready().await?;
    eventually("nobody has grown", SHRUNK_MAX, || async {
        for ((label, warm), (_, now)) in warm.iter().zip(sizes(&world, &east_b)?) {
            let grown = now.saturating_sub(*warm);
            anyhow::ensure!(grown < GROWTH_MAX, "{label} grew by {grown} KiB");
        }
        Ok(true)
    })
    .await?;

    // Everything still runs and serves.
    for service in world.east.services() {
        service.check_alive()?;
    }
    east_b.client.check_alive()?;
    world.west_a.reaches_both(at_east_b, SERVED_MAX).await?;
    world
        .east_a
        .reaches_both(world.at_west_a, SERVED_MAX)
        .await?;
    world
        .east_a
        .resolves("west-a.west.red.vl3", world.at_west_a.v6, SERVED_MAX)
        .await
}
