//! Whatever arrives on a listening socket: no crash, no growth, counted.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use std::os::fd::AsRawFd as _;

use vl3_lab::{Host, SiteSpec};

use crate::pair;

const DATAGRAMS: usize = 2_000;
const STREAMS: usize = 60;
/// What a process may grow by under garbage, KiB.
const GROWTH_MAX: u64 = 24 * 1024;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_listening_socket_is_counted_and_harmless() -> anyhow::Result<()> {
    let mut world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let attacker = world.west.site.gateway().clone();
    let public = world.east.underlay;
    let sizes: Vec<(String, u64)> = world
        .east
        .services()
        .map(|service| (service.label(), service.memory_kib()))
        .collect();
    let before = world
        .east
        .router("red")?
        .metric("vl3_router_drops_total", "unauthentic")
        .await?;

    datagrams(&attacker, SocketAddr::new(public, 51820))?;
    for port in [5002, 5010] {
        streams(&attacker, SocketAddr::new(public, port))?;
    }
    // The name server's own sockets, from a workload.
    let resolver = world.east_a.host.namespace().resolv_conf()?;
    let server = resolver
        .lines()
        .find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    let server = server.ok_or_else(|| anyhow::anyhow!("no resolver in {resolver:?}"))?;
    datagrams(&world.east_a.host, SocketAddr::new(server, 53))?;
    streams(&world.east_a.host, SocketAddr::new(server, 53))?;
    let directories: Vec<_> = world
        .east
        .services()
        .map(|service| service.run_dir().to_path_buf())
        .collect();
    for directory in directories {
        for name in ["admin.sock", "nsm.sock"] {
            if directory.join(name).exists() {
                unix_streams(&directory.join(name))?;
            }
        }
        if directory.join("fd.sock").exists() {
            unix_packets(&directory.join("fd.sock"))?;
        }
    }

    // Everything still runs, serves and is not larger.
    world.east.ready().await?;
    world
        .east_a
        .reaches_both(world.at_west_a, Duration::from_secs(10))
        .await?;
    world
        .east_a
        .resolves(
            "west-a.west.red.vl3",
            world.at_west_a.v6,
            Duration::from_secs(10),
        )
        .await?;
    for service in world.east.services() {
        service.check_alive()?;
        let size = sizes
            .iter()
            .find(|(label, _)| *label == service.label())
            .map_or(0, |(_, size)| *size);
        let grown = service.memory_kib().saturating_sub(size);
        anyhow::ensure!(
            grown < GROWTH_MAX,
            "{} grew by {grown} KiB",
            service.label()
        );
    }
    let router = world.east.router("red")?;
    let counted = router
        .metric("vl3_router_drops_total", "unauthentic")
        .await?
        - before;
    anyhow::ensure!(
        counted > 1_000.0,
        "of the datagrams {counted} are counted:\n{}",
        router.metrics().await?
    );
    let refused = router
        .metric("vl3_grpc_connections_refused_total", "")
        .await?;
    anyhow::ensure!(
        refused > 0.0,
        "no gRPC connection is counted:\n{}",
        router.metrics().await?
    );
    let dns = world
        .east
        .dns
        .get("red")
        .ok_or_else(|| anyhow::anyhow!("no name server"))?;
    let malformed = dns.metric("vl3_dns_malformed_total", "").await?;
    anyhow::ensure!(
        malformed > 0.0,
        "no question is counted:\n{}",
        dns.metrics().await?
    );
    Ok(())
}
