//! Network namespaces as hosts, and a small internet between them: for the demo, the
//! multi-cluster tests and the benchmarks alike. Needs root and no program of the machine.
//!
//! * A [`Host`] is an anonymous network namespace with a mount namespace of its own, in which
//!   `/etc/resolv.conf` is a private file. It has no name in `/run/netns` and ends with its last
//!   handle and process.
//! * An [`Internet`] is a routing namespace. A [`Site`] is a gateway on it with a public IPv4 and
//!   IPv6 address and a private pod network, **the same 10.244.0.0/16 at every site**; pods hang
//!   on the gateway. Unimpaired links are plain veth with all offloads.
//! * A host [behind a relay](Internet::behind_relay) has one link of two TUNs and a thread
//!   between them, which adds delay, loss and a source-NAT (outgoing only, mappings expire).
//! * [`Internet::partition`] cuts two sites off from each other by blackhole routes.
//! * [`Host::spawn`] starts a real process inside, with its log in a file; it dies with the
//!   [`Process`] handle, with the lab, and with the program that holds the lab, however that ends.
//! * [`tools`] measure from inside a host without any helper program: echo, TCP streams, DNS
//!   queries, forged packets.
//!
//! Everything is torn down by dropping it. The only files are logs below the scratch directory
//! that the caller gives (and removes).
//!
//! ```no_run
//! use std::time::Duration;
//! use vl3_lab::{Internet, Lab, ProcessSpec, RelaySpec, SiteSpec, tools};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let scratch = std::path::Path::new("/tmp/lab-of-this-test");
//! let lab = Lab::new(scratch)?;
//! let internet = Internet::build(&lab).await?;
//! let east = internet.add_site("east", SiteSpec::default()).await?;
//! let north = internet.add_site("north", SiteSpec { mtu: 1280, ..SiteSpec::default() }).await?;
//! let pod = east.add_pod("east-a").await?;                       // 10.244.0.2, default route to its gateway
//! let nat = RelaySpec { delay: Duration::from_millis(5), ..RelaySpec::nat() };
//! let kiosk = internet.behind_relay("kiosk", nat).await?;
//!
//! let mut registry = east.gateway().spawn(
//!     ProcessSpec::new("registry", "/proc/self/exe").args(["registry", "--config", "east.toml"]),
//! )?;
//! let answered = tools::echo(kiosk.host(), None, east.public_ipv4().into(), Duration::from_secs(1)).await?;
//! println!("{answered:?}");
//!
//! internet.partition(&east, &north).await?;
//! internet.heal(&east, &north).await?;
//! registry.kill()?;                                              // kill -9
//! registry.wait().await?;
//! # drop(pod); Ok(()) }
//! ```

pub mod admin;
pub mod etcd;
mod host;
mod internet;
mod nat;
mod packet;
mod process;
mod relay;
pub mod tools;

pub use host::{Host, Lab};
pub use internet::{Internet, POD_NETWORK_V4, POD_NETWORK_V6, RelayedHost, Site, SiteSpec};
pub use nat::NatSpec;
pub use packet::{Datagram, udp_packet};
pub use process::{Process, ProcessSpec};
pub use relay::{Relay, RelayCounters, RelaySpec};
pub use vl3_net::{Namespace, Netlink, Route, Rule};
