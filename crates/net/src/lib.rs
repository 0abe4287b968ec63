//! Kernel set-up without any program: network namespaces, netlink, TUN devices, descriptor
//! passing, children that start inside a namespace. The only user of rtnetlink.
//!
//! Three rules hold everywhere:
//!
//! * A netlink socket, TUN descriptor or any other socket belongs to the namespace of the thread
//!   that opened it, for ever. So a descriptor is opened once inside ([`Namespace::run`]) and then
//!   used from any thread or runtime.
//! * No thread of an async runtime ever changes its namespace: entering happens on a thread that
//!   lives for one call ([`Namespace::run`]) or in a child before `exec` ([`process`]).
//! * Operations state what shall be, not what to change: adding what is there and deleting what is
//!   gone succeed.
//!
//! ```no_run
//! use vl3_net::{Namespace, Netlink, Route};
//! # async fn example() -> Result<(), vl3_net::Error> {
//! let namespace = Namespace::new()?;                      // anonymous; loopback is up
//! let netlink = Netlink::open_in(&namespace)?;            // or Netlink::open() for this thread's
//! let (descriptor, name) = namespace.run(|| vl3_net::tun::create("vl3-red", false))?;
//! netlink.add_address(&name, "10.9.0.1/32".parse().expect("a constant")).await?;
//! netlink.set_mtu(&name, 1420).await?;
//! netlink.link_up(&name).await?;
//! netlink.replace_route(&Route::to("10.9.0.0/16".parse().expect("a constant")).dev(&name)).await?;
//! # drop(descriptor); Ok(()) }
//! ```

pub mod datagrams;
mod error;
pub mod fdpass;
mod namespace;
mod netlink;
pub mod privileges;
pub mod process;
mod sys;
pub mod sysctl;
pub mod tun;

pub use error::Error;
pub use namespace::Namespace;
pub use netlink::{Link, Netlink, Route, Rule, TABLE_MAIN};
pub use sys::async_descriptor;
