//! Data planes and hosts of one test: real sockets on a loopback of their own, real TUNs in
//! namespaces of their own.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use vl3_core::forward::{DropReason, PortClass, PortId, Route};
use vl3_core::ids::PublicKey;
use vl3_dataplane::{Config, DataPlane, Endpoint, Event, PeerSpec, TunSpec, bind_udp};
use vl3_net::{Namespace, Netlink};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const MTU: u16 = 1420;

/// Waits for a level.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A router: a data plane whose sockets are in the shared underlay.
pub(crate) struct Router {
    pub(crate) plane: DataPlane,
    pub(crate) address: SocketAddr,
    pub(crate) underlay: Namespace,
    events: Mutex<Receiver<Event>>,
}

impl Router {
    pub(crate) fn start(underlay: &Namespace, key: u8, workers: usize) -> Self {
        Self::start_at(underlay, key, workers, "127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn start_at(
        underlay: &Namespace,
        key: u8,
        workers: usize,
        listen: SocketAddr,
    ) -> Self {
        let sockets = underlay.run(|| bind_udp(listen, workers)).unwrap();
        let address = SocketAddr::new(listen.ip(), sockets[0].local_port().unwrap());
        let (sender, events) = channel();
        let plane = DataPlane::start(Config {
            private_key: private_key(key),
            sockets,
            own_addresses: vec![own_v4(key).into(), own_v6(key).into()],
            events: Box::new(move |event| {
                let _ = sender.send(event);
            }),
        })
        .unwrap();
        Self {
            plane,
            address,
            underlay: underlay.clone(),
            events: Mutex::new(events),
        }
    }

    /// Waits for an event that `pick` takes.
    pub(crate) fn event<T>(&self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        let events = self.events.lock().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = events
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("in vain: {what}"));
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    }

    pub(crate) fn peer(&self, port: u32, key: u8, endpoint: Option<SocketAddr>) -> PeerSpec {
        PeerSpec {
            port: PortId(port),
            class: PortClass::Member,
            public_key: public_key(key),
            preshared_key: None,
            endpoint: endpoint.map(|remote| Endpoint {
                remote,
                local: None,
            }),
            persistent_keepalive: None,
            initiate: false,
        }
    }

    pub(crate) fn tun(&self, port: u32, class: PortClass, descriptor: OwnedFd) {
        self.plane
            .set_tun(TunSpec {
                port: PortId(port),
                class,
                descriptor,
                mtu: MTU,
            })
            .unwrap();
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.plane
            .drops()
            .iter()
            .find(|(held, _)| *held == reason)
            .map_or(0, |(_, count)| *count)
    }

    pub(crate) fn established(&self, port: u32) -> bool {
        self.plane
            .port_status(PortId(port))
            .is_some_and(|status| status.established)
    }
}

/// The router's own addresses: where ICMP errors come from.
pub(crate) fn own_v4(key: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, key)
}

pub(crate) fn own_v6(key: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, u16::from(key))
}

pub(crate) fn private_key(key: u8) -> [u8; 32] {
    let mut bytes = [7; 32];
    bytes[0] = key << 3;
    bytes[31] = 0x40;
    bytes
}

pub(crate) fn public_key(key: u8) -> PublicKey {
    let private = boringtun::x25519::StaticSecret::from(private_key(key));
    PublicKey(boringtun::x25519::PublicKey::from(&private).to_bytes())
}

/// A workload's namespace with one TUN.
pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    pub(crate) interface: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// Both families of host `number`.
pub(crate) fn host(number: u8) -> (Host, OwnedFd) {
    let namespace = Namespace::new().expect("tests run as root");
    let (descriptor, interface) = namespace
        .run(|| vl3_net::tun::create("tun0", false))
        .unwrap();
    let host = Host {
        namespace,
        interface,
        v4: Ipv4Addr::new(10, 1, 0, number),
        v6: Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, u16::from(number)),
    };
    host.configure();
    (host, descriptor)
}

impl Host {
    /// Addresses, MTU and a way to everything.
    pub(crate) fn configure(&self) {
        block_on(async {
            let netlink = Netlink::open_in(&self.namespace).unwrap();
            let name = self.interface.as_str();
            netlink
                .add_address(name, format!("{}/32", self.v4).parse().unwrap())
                .await
                .unwrap();
            netlink
                .add_address(name, format!("{}/128", self.v6).parse().unwrap())
                .await
                .unwrap();
            netlink.set_mtu(name, MTU).await.unwrap();
            netlink.link_up(name).await.unwrap();
            for all in ["0.0.0.0/0", "::/0"] {
                let route = vl3_net::Route::to(all.parse().unwrap()).dev(name);
                netlink.replace_route(&route).await.unwrap();
            }
        });
    }

    pub(crate) fn udp(&self, v6: bool) -> UdpSocket {
        self.namespace.run(|| {
            let socket = UdpSocket::bind((self.ip(v6), 0)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            socket
        })
    }

    pub(crate) fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }

    pub(crate) fn listen(&self, v6: bool) -> TcpListener {
        self.namespace
            .run(|| TcpListener::bind((self.ip(v6), 0)).unwrap())
    }

    pub(crate) fn connect(&self, to: SocketAddr) -> TcpStream {
        let stream = self
            .namespace
            .run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// Routes to both addresses of a host by `port`.
pub(crate) fn routes_to(host: &Host, port: u32, class: PortClass) -> [Route; 2] {
    [
        Route {
            prefix: IpAddr::from(host.v4).into(),
            port: PortId(port),
            class,
            mtu: MTU,
        },
        Route {
            prefix: IpAddr::from(host.v6).into(),
            port: PortId(port),
            class,
            mtu: MTU,
        },
    ]
}

/// Sends until an answer comes: the first packet may meet a tunnel without session.
pub(crate) fn exchange(from: &UdpSocket, to: &UdpSocket, message: &[u8]) {
    let target = to.local_addr().unwrap();
    let mut buffer = [0; 2048];
    eventually("a datagram there", || {
        let _ = from.send_to(message, target);
        matches!(to.recv_from(&mut buffer), Ok((len, sender)) if &buffer[..len] == message && sender == from.local_addr().unwrap())
    });
    let back = from.local_addr().unwrap();
    eventually("a datagram back", || {
        let _ = to.send_to(message, back);
        matches!(from.recv_from(&mut buffer), Ok((len, _)) if &buffer[..len] == message)
    });
}

/// One TCP stream with checked content. Returns bytes per second.
pub(crate) fn stream(from: &Host, to: &Host, v6: bool, bytes: usize) -> f64 {
    let listener = to.listen(v6);
    let target = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut buffer = vec![0; 1 << 16];
            let mut total = 0;
            while total < bytes {
                let len = stream.read(&mut buffer).expect("the stream goes on");
                assert!(len > 0, "ended after {total} bytes");
                for (index, byte) in buffer[..len].iter().enumerate() {
                    assert_eq!(*byte, pattern(total + index), "at byte {}", total + index);
                }
                total += len;
            }
        });
        let started = Instant::now();
        let mut stream = from.connect(target);
        let block: Vec<u8> = (0..1 << 16).map(pattern).collect();
        let mut left = bytes;
        while left > 0 {
            let len = left.min(block.len());
            stream.write_all(&block[..len]).expect("the stream goes on");
            left -= len;
        }
        reader.join().unwrap();
        bytes as f64 / started.elapsed().as_secs_f64()
    })
}

/// Repeats every 2^16 bytes.
fn pattern(at: usize) -> u8 {
    let at = at & 0xffff;
    (at ^ (at >> 8)) as u8
}
