//! The hosts of one layout, with one program's tunnels up.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use vl3_lab::{Host, Lab, Process, ProcessSpec, Route, tools};

const TUNNEL_MTU: u16 = 1420;
const LINK_MTU: u16 = 1500;
const UDP_PORT: u16 = 51820;
/// Until a tunnel answers.
const PATIENCE: Duration = Duration::from_secs(15);
/// For the baseline at its best; our data plane takes one worker per tunnel.
const BASELINE_THREADS: &str = "2";

/// Fixed X25519 key pairs of the four nodes (private, public): nothing secret is carried.
const KEYS: [(&str, &str); 4] = [
    (
        "0807070707070707070707070707070707070707070707070707070707070740",
        "26961d8825ce8dbc82948a077b5aa41532bccdbf9b998cb113e6851cd0c84400",
    ),
    (
        "1007070707070707070707070707070707070707070707070707070707070740",
        "5db12d8b74b0756557371b2a18d37319da6b3b55378c4d380e26da9d90a49b48",
    ),
    (
        "1807070707070707070707070707070707070707070707070707070707070740",
        "bcd4590d35929adef2593d91151fb4a8c84e8181ac8ae188d5b51f307eaf043e",
    ),
    (
        "2007070707070707070707070707070707070707070707070707070707070740",
        "681ff02d3c065d6dc9c5e76fc62614f7be887843bce389ced710dc4a26437a22",
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Veth,
    Attached,
    Transit,
}

impl Layout {
    pub(super) const ALL: [Self; 3] = [Self::Veth, Self::Attached, Self::Transit];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Attached => "attached",
            Self::Transit => "transit",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Program {
    Ours(PathBuf),
    Boringtun(PathBuf),
}

impl Program {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "vl3",
            Self::Boringtun(_) => "boringtun-cli",
        }
    }
}

/// Four hosts in a row: client, router, router, client. Attached, the routers are the ends.
#[derive(Debug)]
pub(super) struct World {
    hosts: Vec<Host>,
    ends: [usize; 2],
    target: IpAddr,
    /// Of both routers.
    routers: Vec<Process>,
    /// Kept alive.
    _clients: Vec<Process>,
    /// Control sockets that a killed baseline leaves behind.
    sockets: Vec<PathBuf>,
}

impl Drop for World {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // Ours make none.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// One tunnel program's settings.
struct Tunnel {
    node: usize,
    address: &'static str,
    peers: Vec<Peer>,
}

struct Peer {
    node: usize,
    endpoint: Ipv4Addr,
    allowed: Vec<&'static str>,
}

impl World {
    pub(super) async fn build(
        lab: &Lab,
        layout: Layout,
        program: &Program,
    ) -> anyhow::Result<Self> {
        let mut hosts = Vec::new();
        for part in ["client-a", "router-a", "router-b", "client-b"] {
            hosts.push(lab.add_host(&format!("{}-{}-{part}", program.name(), layout.name()))?);
        }
        for (left, net) in [(0, 1), (1, 0), (2, 2)] {
            let end = |number: u8| -> anyhow::Result<[IpNet; 1]> {
                Ok([format!("192.168.{net}.{number}/24").parse()?])
            };
            let names = (format!("r{left}"), format!("l{}", left + 1));
            // Counted from the routers outwards, so that a router's number is 1 on its own side.
            let (first, second) = if left == 0 { (2, 1) } else { (1, 2) };
            lab.join(
                &hosts[left],
                &hosts[left + 1],
                (&names.0, &names.1),
                (&end(first)?, &end(second)?),
                LINK_MTU,
            )
            .await?;
        }
        for router in [1, 2] {
            hosts[router].forward()?;
        }
        let tunnels = tunnels(layout);
        let mut routers = Vec::new();
        let mut clients = Vec::new();
        let mut sockets = Vec::new();
        for tunnel in &tunnels {
            // The baseline's control socket has the interface's name, in a directory of the
            // machine.
            let interface = format!(
                "vb{:x}",
                (std::process::id() as usize * 64 + sequence()) & 0xfff_ffff
            );
            sockets.push(control_socket(&interface));
            let process = start(
                &hosts[tunnel.node],
                tunnel,
                &interface,
                program,
                lab.scratch(),
            )
            .await?;
            if matches!(tunnel.node, 1 | 2) {
                routers.push(process)
            } else {
                clients.push(process)
            }
        }
        let (ends, target) = match layout {
            Layout::Veth => {
                // The clients know their router only.
                for (client, interface, gateway) in
                    [(0, "r0", [192, 168, 1, 1]), (3, "l3", [192, 168, 2, 1])]
                {
                    let all: IpNet = "0.0.0.0/0".parse()?;
                    let route = Route::to(all).dev(interface).via(IpAddr::from(gateway));
                    hosts[client].netlink().replace_route(&route).await?;
                }
                ([0, 3], IpAddr::from([192, 168, 2, 2]))
            }
            Layout::Attached => ([1, 2], IpAddr::from([10, 9, 0, 2])),
            Layout::Transit => ([0, 3], IpAddr::from([10, 9, 0, 4])),
        };
        let world = Self {
            hosts,
            ends,
            target,
            routers,
            _clients: clients,
            sockets,
        };
        world.wait_until_up().await?;
        Ok(world)
    }

    pub(super) fn ends(&self) -> (&Host, &Host) {
        (&self.hosts[self.ends[0]], &self.hosts[self.ends[1]])
    }

    /// The receiving end's address.
    pub(super) fn target(&self) -> IpAddr {
        self.target
    }

    /// What both routers' processes have used so far, all threads.
    pub(super) fn router_cpu(&self) -> anyhow::Result<Duration> {
        self.routers
            .iter()
            .map(|process| cpu_of(process.id()))
            .sum()
    }

    async fn wait_until_up(&self) -> anyhow::Result<()> {
        let (from, _) = self.ends();
        let answer = tools::echo_until(from, None, self.target, PATIENCE).await;
        answer?.with_context(|| format!("the tunnel carries nothing in {PATIENCE:?}"))?;
        Ok(())
    }
}

fn tunnels(layout: Layout) -> Vec<Tunnel> {
    let peer = |node, endpoint: [u8; 4], allowed: &[&'static str]| Peer {
        node,
        endpoint: endpoint.into(),
        allowed: allowed.to_vec(),
    };
    let tunnel = |node, address, peers| Tunnel {
        node,
        address,
        peers,
    };
    match layout {
        Layout::Veth | Layout::Attached => vec![
            tunnel(
                1,
                "10.9.0.1/32",
                vec![peer(
                    2,
                    [192, 168, 0, 2],
                    &["10.9.0.2/32", "192.168.2.0/24"],
                )],
            ),
            tunnel(
                2,
                "10.9.0.2/32",
                vec![peer(
                    1,
                    [192, 168, 0, 1],
                    &["10.9.0.1/32", "192.168.1.0/24"],
                )],
            ),
        ],
        Layout::Transit => vec![
            tunnel(
                1,
                "10.9.0.1/32",
                vec![
                    peer(0, [192, 168, 1, 2], &["10.9.0.3/32"]),
                    peer(2, [192, 168, 0, 2], &["10.9.0.2/32", "10.9.0.4/32"]),
                ],
            ),
            tunnel(
                2,
                "10.9.0.2/32",
                vec![
                    peer(3, [192, 168, 2, 2], &["10.9.0.4/32"]),
                    peer(1, [192, 168, 0, 1], &["10.9.0.1/32", "10.9.0.3/32"]),
                ],
            ),
            tunnel(
                0,
                "10.9.0.3/32",
                vec![peer(1, [192, 168, 1, 1], &["10.9.0.0/24"])],
            ),
            tunnel(
                3,
                "10.9.0.4/32",
                vec![peer(2, [192, 168, 2, 1], &["10.9.0.0/24"])],
            ),
        ],
    }
}

async fn start(
    host: &Host,
    tunnel: &Tunnel,
    interface: &str,
    program: &Program,
    scratch: &Path,
) -> anyhow::Result<Process> {
    match program {
        Program::Ours(binary) => {
            let file = scratch.join(format!("{}.toml", host.name()));
            std::fs::write(&file, our_config(tunnel, interface, scratch)?)?;
            let spec = ProcessSpec::new("wg", binary);
            let process =
                host.spawn(spec.args(["wg".as_ref(), "--config".as_ref(), file.as_os_str()]))?;
            wait_for_interface(host, interface).await?;
            Ok(process)
        }
        Program::Boringtun(binary) => {
            let arguments = [
                "--foreground",
                "--disable-drop-privileges",
                "--threads",
                BASELINE_THREADS,
            ];
            let spec = ProcessSpec::new("wg", binary).env("WG_LOG_LEVEL", "error");
            let process = host.spawn(spec.args(arguments).args([interface]))?;
            wait_for_interface(host, interface).await?;
            configure_baseline(tunnel, interface).await?;
            let netlink = host.netlink();
            netlink.set_mtu(interface, TUNNEL_MTU).await?;
            netlink
                .add_address(interface, tunnel.address.parse()?)
                .await?;
            netlink.link_up(interface).await?;
            for allowed in tunnel.peers.iter().flat_map(|peer| &peer.allowed) {
                netlink
                    .replace_route(&Route::to(allowed.parse()?).dev(interface))
                    .await?;
            }
            Ok(process)
        }
    }
}

fn sequence() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn our_config(tunnel: &Tunnel, interface: &str, scratch: &Path) -> anyhow::Result<String> {
    let key = scratch.join(format!("{}.key", tunnel.node));
    std::fs::write(&key, KEYS[tunnel.node].0)?;
    let mut text = format!(
        "private_key = {key:?}\nlisten = \"0.0.0.0:{UDP_PORT}\"\n[tun]\nname = \"{interface}\"\naddresses = [\"{}\"]\nmtu = {TUNNEL_MTU}\n",
        tunnel.address,
    );
    for peer in &tunnel.peers {
        text.push_str(&format!(
            "[[peer]]\npublic_key = \"{}\"\nendpoint = \"{}:{UDP_PORT}\"\nallowed_ips = {:?}\n",
            KEYS[peer.node].1, peer.endpoint, peer.allowed,
        ));
    }
    Ok(text)
}

async fn wait_for_interface(host: &Host, interface: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !host.netlink().link_exists(interface).await? {
        ensure!(
            Instant::now() < deadline,
            "{} has no interface {interface}",
            host.name()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn control_socket(interface: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{interface}.sock"))
}

/// Over the cross-platform user-space interface of WireGuard programs.
async fn configure_baseline(tunnel: &Tunnel, interface: &str) -> anyhow::Result<()> {
    let path = control_socket(interface);
    let deadline = Instant::now() + PATIENCE;
    let mut control = loop {
        match UnixStream::connect(&path) {
            Ok(control) => break control,
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("connect to {}", path.display()));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    control.set_read_timeout(Some(PATIENCE))?;
    let mut text = format!(
        "set=1\nprivate_key={}\nlisten_port={UDP_PORT}\n",
        KEYS[tunnel.node].0
    );
    for peer in &tunnel.peers {
        let endpoint = SocketAddr::V4(SocketAddrV4::new(peer.endpoint, UDP_PORT));
        text.push_str(&format!(
            "public_key={}\nendpoint={endpoint}\n",
            KEYS[peer.node].1
        ));
        for allowed in &peer.allowed {
            text.push_str(&format!("allowed_ip={allowed}\n"));
        }
    }
    control.write_all(format!("{text}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(control).read_line(&mut answer)?;
    if answer.trim() != "errno=0" {
        bail!("the baseline refused its settings: {answer}");
    }
    Ok(())
}

/// Nanoseconds on a CPU, summed over the threads.
fn cpu_of(process: u32) -> anyhow::Result<Duration> {
    let mut total = 0;
    for task in
        std::fs::read_dir(format!("/proc/{process}/task")).context("a tunnel program ended")?
    {
        // A thread that ends meanwhile has nothing to add.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        total += text
            .split_whitespace()
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}
