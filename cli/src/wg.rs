//! `vl3 wg`: the data plane alone, with one TUN and static peers; no control plane. For
//! benchmarks, for interoperability, and where a plain WireGuard tunnel is all that is needed.
//!
//! ```toml
//! private_key = "/etc/vl3/wg.key"      # a file: base64 as `wg genkey` writes it
//! listen = "0.0.0.0:51820"             # default: a free port, both families
//! workers = 1
//!
//! [tun]
//! name = "vl3-wg"
//! addresses = ["10.0.0.1/24", "fd00::1/64"]
//! mtu = 1420
//! queue_length = 4096                  # packets that may wait for a worker
//! routes = true                        # kernel routes for allowed_ips, default routes excepted
//!
//! [[peer]]
//! public_key = "base64"
//! preshared_key = "/etc/vl3/psk"       # a file
//! endpoint = "192.0.2.1:51820"
//! allowed_ips = ["10.0.0.2/32"]
//! persistent_keepalive = 25
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vl3_core::forward::{PortClass, PortId, Route};
use vl3_core::ids::PublicKey;
use vl3_dataplane::{
    Config as PlaneConfig, DataPlane, Endpoint, Event, PeerSpec, TunSpec, bind_udp,
};
use vl3_net::{Netlink, tun};
use vl3_runtime::config::{Configure, Flags, Section, load_plain};

use crate::app::Failure;
use crate::output::Output;

const TUN_PORT: PortId = PortId(0);
const MTU_DEFAULT: u16 = 1420;
/// What IPv6 needs; what fits one datagram.
const MTU_ALLOWED: std::ops::RangeInclusive<u16> = 1280..=65_000;
/// Longer ones only add delay.
const QUEUE_LENGTH_ALLOWED: std::ops::RangeInclusive<u32> = 1..=65_536;
const WORKERS_MAX: usize = 64;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and exit
    #[arg(long)]
    check_config: bool,
}

/// The checked file. Keys are read already.
struct Config {
    private_key: [u8; 32],
    listen: SocketAddr,
    workers: usize,
    tun: Tun,
    peers: Vec<Peer>,
}

struct Tun {
    name: String,
    addresses: Vec<IpNet>,
    mtu: u16,
    queue_length: u32,
    routes: bool,
}

struct Peer {
    public_key: PublicKey,
    preshared_key: Option<[u8; 32]>,
    endpoint: Option<SocketAddr>,
    allowed: Vec<IpNet>,
    persistent_keepalive: Option<u16>,
}

/// Runs until SIGINT or SIGTERM, or until the TUN is gone.
pub(crate) async fn run(args: Args, out: &Output) -> Result<(), Failure> {
    let flags = Flags {
        config: Some(args.config.clone()),
        set: Vec::new(),
    };
    let config: Config = load_plain(&flags).map_err(|invalid| Failure {
        error: invalid.into(),
        next: Some(format!(
            "vl3 wg --config {} --check-config",
            args.config.display()
        )),
        code: 2,
    })?;
    if args.check_config {
        out.line("the configuration is fine");
        return Ok(());
    }
    Ok(serve(config, out).await?)
}

async fn serve(config: Config, out: &Output) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (sender, mut events) = mpsc::channel(16);
    let sockets = bind_udp(config.listen, config.workers)
        .with_context(|| format!("bind UDP {}", config.listen))?;
    let port = sockets
        .first()
        .map(vl3_dataplane::UdpSockets::local_port)
        .transpose()?
        .unwrap_or_default();
    let plane = DataPlane::start(PlaneConfig {
        private_key: config.private_key,
        sockets,
        own_addresses: config.tun.addresses.iter().map(IpNet::addr).collect(),
        events: Box::new(move |event| {
            // Sessions and endpoints need no reaction here; a full channel already holds the
            // news that ends the process.
            if matches!(event, Event::TunFailed { .. } | Event::WorkerDied { .. }) {
                let _ = sender.try_send(event);
            }
        }),
    })?;
    let name = open_tun(&plane, &config).await?;
    plane.set_routes(table(&config));
    for (index, peer) in config.peers.iter().enumerate() {
        plane.set_peer(PeerSpec {
            port: port_of(index),
            class: PortClass::Member,
            public_key: peer.public_key,
            preshared_key: peer.preshared_key,
            endpoint: peer.endpoint.map(|remote| Endpoint {
                remote,
                local: None,
            }),
            persistent_keepalive: peer.persistent_keepalive,
            initiate: false,
        })?;
    }
    out.line(&format!(
        "{name} is up, UDP port {port}, public key {}",
        STANDARD.encode(plane.public_key().0)
    ));
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        event = events.recv() => Err(match event {
            Some(Event::TunFailed { error, .. }) => anyhow!("the interface {name} failed: {error}"),
            _ => anyhow!("a worker thread died"),
        }),
    }
}

/// Makes the TUN, one queue per worker, and sets it up. The data plane has it before it is up.
async fn open_tun(plane: &DataPlane, config: &Config) -> anyhow::Result<String> {
    let several = config.workers > 1;
    let (first, name) = tun::create(&config.tun.name, several)?;
    let spec = |descriptor: OwnedFd| TunSpec {
        port: TUN_PORT,
        // The host behind it is the end of the tunnel, not a hop.
        class: PortClass::Own,
        descriptor,
        mtu: config.tun.mtu,
    };
    plane.set_tun(spec(first))?;
    for _ in 1..config.workers {
        plane.add_tun_queue(spec(tun::create(&name, true)?.0))?;
    }
    let netlink = Netlink::open()?;
    netlink.set_mtu(&name, config.tun.mtu).await?;
    netlink
        .set_queue_length(&name, config.tun.queue_length)
        .await?;
    for address in &config.tun.addresses {
        netlink.add_address(&name, *address).await?;
    }
    netlink.link_up(&name).await?;
    if config.tun.routes {
        let on_link: Vec<IpNet> = config.tun.addresses.iter().map(IpNet::trunc).collect();
        let allowed = config.peers.iter().flat_map(|peer| &peer.allowed);
        for prefix in allowed.filter(|prefix| prefix.prefix_len() > 0 && !on_link.contains(prefix))
        {
            netlink
                .replace_route(&vl3_net::Route::to(*prefix).dev(&name))
                .await?;
        }
    }
    Ok(name)
}

/// AllowedIPs both ways by longest prefix: a peer's networks are its own, everything else is
/// the host's (the first of equal prefixes stands).
fn table(config: &Config) -> Vec<Route> {
    let route = |prefix: IpNet, port, class| Route {
        prefix,
        port,
        class,
        mtu: config.tun.mtu,
    };
    let own = |prefix| route(prefix, TUN_PORT, PortClass::Own);
    let hosts = config
        .tun
        .addresses
        .iter()
        .map(|address| own(IpNet::from(address.addr())));
    let peers = config.peers.iter().enumerate().flat_map(|(index, peer)| {
        peer.allowed
            .iter()
            .map(move |prefix| route(*prefix, port_of(index), PortClass::Member))
    });
    let everything = [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    ];
    hosts.chain(peers).chain(everything.map(own)).collect()
}

/// Port 0 is the TUN.
fn port_of(peer: usize) -> PortId {
    PortId(u32::try_from(peer + 1).unwrap_or(u32::MAX))
}

impl Configure for Config {
    const ROLE: &'static str = "wg";

    fn read(section: &mut Section<'_>) -> Option<Self> {
        let private_key = key_file(section, "private_key", true);
        let listen = section.or("listen", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        let workers = section.or("workers", 1_usize);
        if !(1..=WORKERS_MAX).contains(&workers) {
            section.problem("workers", Some(workers.to_string()), "1 to 64");
        }
        let tun = section.table("tun", read_tun);
        let peers: Vec<Option<Peer>> = section.tables("peer", read_peer);
        refuse_repeats(section, &peers);
        Some(Self {
            private_key: private_key?,
            listen,
            workers,
            tun: tun?,
            peers: peers.into_iter().collect::<Option<_>>()?,
        })
    }
}

fn read_tun(section: &mut Section<'_>) -> Option<Tun> {
    let name = section.or("name", "vl3-wg".to_owned());
    if name.len() > tun::NAME_LEN_MAX {
        section.problem(
            "name",
            Some(format!("{name:?}")),
            "an interface name of at most 15 bytes",
        );
    }
    let texts: Vec<String> = section.list("addresses");
    let mut addresses = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        // A bare address is a host's.
        match text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        {
            Ok(address) => addresses.push(address),
            Err(_) => section.problem(
                &format!("addresses[{at}]"),
                Some(format!("{text:?}")),
                "an address with its prefix length, as 10.0.0.1/24 or fd00::1/64",
            ),
        }
    }
    let mtu = section.or("mtu", MTU_DEFAULT);
    if !MTU_ALLOWED.contains(&mtu) {
        section.problem("mtu", Some(mtu.to_string()), "1280 to 65000");
    }
    let queue_length = section.or("queue_length", tun::QUEUE_LENGTH);
    if !QUEUE_LENGTH_ALLOWED.contains(&queue_length) {
        section.problem("queue_length", Some(queue_length.to_string()), "1 to 65536");
    }
    let routes = section.or("routes", true);
    Some(Tun {
        name,
        addresses,
        mtu,
        queue_length,
        routes,
    })
}

fn read_peer(section: &mut Section<'_>) -> Option<Peer> {
    let public_key = section.required::<String>("public_key");
    let public_key = public_key.and_then(|text| {
        let key = decode_key(&text);
        if key.is_none() {
            section.problem("public_key", Some(format!("{text:?}")), KEY_ALLOWED);
        }
        key.map(PublicKey)
    });
    let preshared_key = key_file(section, "preshared_key", false);
    let endpoint = section.optional("endpoint");
    let allowed = section.list_required("allowed_ips");
    let persistent_keepalive = section.optional("persistent_keepalive");
    Some(Peer {
        public_key: public_key?,
        preshared_key,
        endpoint,
        allowed: allowed?,
        persistent_keepalive,
    })
}

/// One key is one peer, one prefix is one peer's.
fn refuse_repeats(section: &mut Section<'_>, peers: &[Option<Peer>]) {
    for (index, peer) in peers.iter().enumerate() {
        let Some(peer) = peer else { continue };
        let earlier = || peers[..index].iter().flatten();
        if earlier().any(|other| other.public_key == peer.public_key) {
            let key = STANDARD.encode(peer.public_key.0);
            section.problem(
                &format!("peer[{index}].public_key"),
                Some(key),
                "a key that no other peer has",
            );
        }
        for prefix in &peer.allowed {
            if earlier().any(|other| other.allowed.contains(prefix)) {
                let field = format!("peer[{index}].allowed_ips");
                section.problem(
                    &field,
                    Some(prefix.to_string()),
                    "a prefix that no other peer has",
                );
            }
        }
    }
}

const KEY_ALLOWED: &str = "32 bytes in base64 (44 characters) or hexadecimal (64)";

/// Reads the key that the file at `key` holds. The message never shows the content.
fn key_file(section: &mut Section<'_>, key: &'static str, required: bool) -> Option<[u8; 32]> {
    let path = if required {
        section.required::<PathBuf>(key)
    } else {
        section.optional::<PathBuf>(key)
    };
    let path = path?;
    let found = read_key(&path);
    if let Err(allowed) = &found {
        section.problem(key, Some(format!("{path:?}")), allowed);
    }
    found.ok()
}

fn read_key(path: &Path) -> Result<[u8; 32], String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("a readable key file: {error}"))?;
    decode_key(text.trim()).ok_or_else(|| format!("a file that holds {KEY_ALLOWED}"))
}

fn decode_key(text: &str) -> Option<[u8; 32]> {
    if text.len() == 64 {
        return text.parse::<PublicKey>().ok().map(|key| key.0);
    }
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    fn read(text: &str) -> Result<Config, vl3_runtime::config::Invalid> {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("key"), format!("{KEY}\n")).expect("a key");
        let file = dir.path().join("wg.toml");
        let text = text.replace("DIR", &dir.path().display().to_string());
        std::fs::write(&file, text).expect("a file");
        load_plain(&Flags {
            config: Some(file),
            set: Vec::new(),
        })
    }

    #[test]
    fn a_whole_file_is_understood() {
        let config = read(&format!(
            r#"
            private_key = "DIR/key"
            listen = "127.0.0.1:51820"
            [tun]
            addresses = ["10.0.0.1/24", "fd00::1/64"]
            [[peer]]
            public_key = "{OTHER}"
            preshared_key = "DIR/key"
            endpoint = "192.0.2.1:51820"
            allowed_ips = ["10.0.0.2/32", "fd00::2/128"]
            persistent_keepalive = 25
            "#
        ))
        .unwrap_or_else(|invalid| panic!("{invalid}"));
        assert_eq!(config.private_key, [1; 32]);
        assert_eq!(config.peers[0].public_key, PublicKey([2; 32]));
        assert_eq!(config.peers[0].preshared_key, Some([1; 32]));
        assert_eq!(config.tun.mtu, MTU_DEFAULT);
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let text = format!(
            r#"
            private_key = "DIR/none"
            listen = "here"
            workers = 0
            surprise = 1
            [tun]
            name = "an-interface-name-that-is-too-long"
            addresses = ["10.0.0.1/24", "nowhere"]
            mtu = 100
            queue_length = 0
            [[peer]]
            public_key = "short"
            allowed_ips = ["10.0.0.2/24"]
            [[peer]]
            public_key = "{OTHER}"
            allowed_ips = ["10.1.0.0/24"]
            [[peer]]
            public_key = "{OTHER}"
            allowed_ips = ["10.1.0.0/24"]
            "#
        );
        let invalid = read(&text).err().expect("mistakes");
        let keys: Vec<&str> = invalid
            .problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        for key in [
            "private_key",
            "listen",
            "workers",
            "surprise",
            "tun.name",
            "tun.addresses[1]",
            "tun.mtu",
            "tun.queue_length",
            "peer[0].public_key",
            "peer[0].allowed_ips[0]",
            "peer[2].public_key",
            "peer[2].allowed_ips",
        ] {
            assert!(keys.contains(&key), "{key} is missing in {keys:?}");
        }
        assert!(!invalid.to_string().contains(KEY));
    }

    #[test]
    fn what_no_peer_has_is_the_hosts() {
        let config = read(&format!(
            r#"
            private_key = "DIR/key"
            [tun]
            addresses = ["10.0.0.1/24"]
            [[peer]]
            public_key = "{OTHER}"
            allowed_ips = ["0.0.0.0/0"]
            "#
        ))
        .unwrap_or_else(|invalid| panic!("{invalid}"));
        let fib = vl3_core::fib::Fib::compile(table(&config));
        let port = |address: &str| {
            let address = address.parse().expect("an address");
            vl3_core::forward::Table::lookup(&fib, address).map(|hop| hop.port)
        };
        assert_eq!(port("10.0.0.1"), Some(TUN_PORT));
        assert_eq!(port("10.0.0.2"), Some(PortId(1)));
        assert_eq!(port("192.0.2.1"), Some(PortId(1)));
        assert_eq!(port("fd00::1"), Some(TUN_PORT));
    }
}
