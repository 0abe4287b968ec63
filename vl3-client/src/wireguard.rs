//! Mechanism WIREGUARD: the own data plane with one peer, the router, and one TUN.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use ipnet::IpNet;
use vl3_core::forward::{DomainIndex, DropReason, PortClass, PortId, Route};
use vl3_core::ids::PublicKey;
use vl3_core::time::Mono;
use vl3_dataplane::{Config, DataPlane, Endpoint, Event, PeerSpec, TunSpec, bind_udp};
use vl3_net::Netlink;
use vl3_proto::WireguardParameters;
use vl3_proto::connection::Mechanism;
use vl3_runtime::grpc::DialUrl;

/// Keeps NAT mappings open (NSM's own value, nsm-wire 2).
const KEEPALIVE_SECONDS: u16 = 10;
const TUN_PORT: PortId = PortId(0);
/// The router: everything that is not our own lies behind it.
const ROUTER: PortClass = PortClass::Remote(DomainIndex(0));
/// WireGuard and UDP over IPv4 and IPv6 (nsm-wire 2).
const OVERHEAD_4: u32 = 60;
const OVERHEAD_6: u32 = 80;
const KEY_LEN: usize = 32;

/// The data plane of one attachment.
pub(crate) struct Wireguard {
    plane: DataPlane,
    udp_port: u16,
    tun: Option<Tun>,
    peer: Option<Peer>,
    next_port: u32,
}

struct Tun {
    descriptor: OwnedFd,
    mtu: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Peer {
    port: PortId,
    key: PublicKey,
    endpoint: SocketAddr,
}

impl std::fmt::Debug for Wireguard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wireguard")
            .field("udp_port", &self.udp_port)
            .finish_non_exhaustive()
    }
}

impl Wireguard {
    /// Binds the sockets in this process's namespace and starts the workers.
    pub(crate) fn start(
        key: [u8; KEY_LEN],
        listen: SocketAddr,
        workers: usize,
        events: impl Fn(Event) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let sockets = bind_udp(listen, workers).with_context(|| format!("bind UDP {listen}"))?;
        let udp_port = match sockets.first() {
            Some(first) => first.local_port().context("read the UDP port")?,
            None => listen.port(),
        };
        let plane = DataPlane::start(Config {
            private_key: key,
            sockets,
            own_addresses: Vec::new(),
            events: Box::new(events),
        })
        .context("start the data plane")?;
        Ok(Self {
            plane,
            udp_port,
            tun: None,
            peer: None,
            next_port: TUN_PORT.0 + 1,
        })
    }

    /// The preference to offer for a router at `url`.
    pub(crate) async fn preference(
        &self,
        url: &DialUrl,
        interface: &str,
        netlink: &Netlink,
    ) -> Mechanism {
        let source = source_towards(url).await;
        let mtu = match source {
            Some(source) => tunnel_mtu(netlink, source).await,
            None => None,
        };
        let mut mechanism = WireguardParameters {
            src_ip: source,
            src_port: Some(self.udp_port),
            src_public_key: Some(self.plane.public_key()),
            mtu,
            ..WireguardParameters::default()
        }
        .into_mechanism();
        mechanism
            .parameters
            .insert("name".to_owned(), interface.to_owned());
        mechanism
    }

    /// Makes the interface where there is none, and points the peer at the router.
    pub(crate) fn install(
        &mut self,
        interface: &str,
        addresses: &[IpAddr],
        routes: &[IpNet],
        mtu: u16,
        endpoint: SocketAddr,
        key: PublicKey,
    ) -> anyhow::Result<()> {
        self.install_tun(interface, mtu)?;
        let port = self.install_peer(endpoint, key)?;
        self.plane.set_own_addresses(addresses.to_vec());
        let own = addresses.iter().map(|address| Route {
            prefix: IpNet::from(*address),
            port: TUN_PORT,
            class: PortClass::Member,
            mtu,
        });
        let remote = routes.iter().map(|prefix| Route {
            prefix: *prefix,
            port,
            class: ROUTER,
            mtu,
        });
        self.plane.set_routes(own.chain(remote).collect());
        Ok(())
    }

    fn install_tun(&mut self, interface: &str, mtu: u16) -> anyhow::Result<()> {
        if self.tun.as_ref().is_some_and(|tun| tun.mtu == mtu) {
            return Ok(());
        }
        let descriptor = match self.tun.take() {
            Some(tun) => tun.descriptor,
            None => crate::tun::create(interface)?,
        };
        let given = descriptor
            .as_fd()
            .try_clone_to_owned()
            .context("duplicate the TUN descriptor")?;
        let spec = TunSpec {
            port: TUN_PORT,
            class: PortClass::Member,
            descriptor: given,
            mtu,
        };
        let outcome = self
            .plane
            .set_tun(spec)
            .context("give the TUN to the data plane");
        self.tun = outcome.is_ok().then_some(Tun { descriptor, mtu });
        outcome
    }

    fn install_peer(&mut self, endpoint: SocketAddr, key: PublicKey) -> anyhow::Result<PortId> {
        let same = self.peer.filter(|peer| peer.key == key);
        let port = match same {
            Some(peer) if peer.endpoint == endpoint => return Ok(peer.port),
            Some(peer) => peer.port,
            None => {
                if let Some(old) = self.peer.take() {
                    self.plane.remove_port(old.port);
                }
                let port = PortId(self.next_port);
                self.next_port += 1;
                port
            }
        };
        self.plane
            .set_peer(PeerSpec {
                port,
                class: ROUTER,
                public_key: key,
                preshared_key: None,
                endpoint: Some(Endpoint {
                    remote: endpoint,
                    local: None,
                }),
                persistent_keepalive: Some(KEEPALIVE_SECONDS),
                initiate: true,
            })
            .context("set the router as peer")?;
        self.peer = Some(Peer {
            port,
            key,
            endpoint,
        });
        Ok(port)
    }

    /// Packets dropped since the start, by reason.
    pub(crate) fn drops(&self) -> Vec<(DropReason, u64)> {
        let mut drops = self.plane.drops();
        drops.retain(|(_, count)| *count > 0);
        drops
    }

    /// Last data sent and last authentic receipt.
    pub(crate) fn traffic(&self) -> (Option<Mono>, Option<Mono>) {
        let status = self.peer.and_then(|peer| self.plane.port_status(peer.port));
        status.map_or((None, None), |status| {
            (status.last_send, status.last_receive)
        })
    }
}

/// Which local address packets to the router leave from. Nothing is sent.
async fn source_towards(url: &DialUrl) -> Option<IpAddr> {
    let DialUrl::Tcp { host, port } = url else {
        return None;
    };
    let target = tokio::net::lookup_host((host.as_str(), *port))
        .await
        .ok()?
        .next()?;
    let any: IpAddr = if target.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// MTU of the interface that holds the address, less the tunnel's overhead.
async fn tunnel_mtu(netlink: &Netlink, source: IpAddr) -> Option<u16> {
    let links = netlink.links().await.ok()?;
    let link = links
        .iter()
        .find(|link| link.addresses.iter().any(|(address, _)| *address == source))?;
    let overhead = if source.is_ipv4() {
        OVERHEAD_4
    } else {
        OVERHEAD_6
    };
    u16::try_from(link.mtu.saturating_sub(overhead).min(u32::from(u16::MAX)))
        .ok()
        .filter(|mtu| *mtu >= 1280)
}

/// The key in `path`, made and stored (mode 0600) where there is none; without a path a key for
/// this run alone.
pub(crate) fn load_or_make_key(path: Option<&Path>) -> anyhow::Result<[u8; KEY_LEN]> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let fresh = || rand::random::<[u8; KEY_LEN]>();
    let Some(path) = path else { return Ok(fresh()) };
    match std::fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| {
            anyhow::anyhow!(
                "{} is no key of 32 bytes; remove it to get a new one",
                path.display()
            )
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = fresh();
            let new = path.with_extension("new");
            let write = || -> std::io::Result<()> {
                let mut options = std::fs::OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&new)?;
                file.write_all(&key)?;
                // Stored before it is used: a crash must not leave the router with a dead key.
                file.sync_all()?;
                std::fs::rename(&new, path)
            };
            write().with_context(|| format!("store the key {}", path.display()))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("read the key {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("red.key");
        let key = load_or_make_key(Some(&path)).unwrap();
        assert_eq!(load_or_make_key(Some(&path)).unwrap(), key);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        std::fs::write(&path, b"short").unwrap();
        assert!(
            load_or_make_key(Some(&path))
                .unwrap_err()
                .to_string()
                .contains("32 bytes")
        );
    }
}
