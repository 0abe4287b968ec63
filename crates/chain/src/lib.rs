//! NSM's composition: a component is an ordered list of small elements, each with one concern.
//!
//! A call enters at the head, each element works on it and calls the next one; the answer
//! travels back the same way. `request` is also refresh, `close` is idempotent. The chain does
//! wire concerns (path, order, token, authority, expiry, monitoring) and ends in one element
//! that hands the call to the role's machine.
//!
//! [`Server`] is the list for components that serve `networkservice.NetworkService`;
//! [`client`] holds what a component needs that consumes one; [`registry_path`] is the path of
//! registry calls, which travels in a header.

mod call;
mod chain;
pub mod client;
pub mod elements;
mod error;
mod identity;
pub mod path;
pub mod registry_path;
mod server;
mod tokens;

pub use call::{Call, Connections, Family, Slots};
pub use chain::{BoxFuture, BuildError, Builder, Chain, Element, Next};
pub use elements::monitor::{Monitor, MonitorLimits};
pub use error::Error;
pub use identity::SvidTokens;
pub use server::{Limits, Server};
pub use tokens::{Claims, Peer, Tokens};
