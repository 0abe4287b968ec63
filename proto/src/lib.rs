//! The wire contract: NSM v1 as `proto/nsm` states it, our own services under `proto/vl3`,
//! and the checked conversions between messages and core types.
//!
//! Everything that arrives is checked once, here; errors name the field, the value and what
//! is allowed.

mod convert;
pub mod document;
mod generated;
pub mod lease;
pub mod objects;

pub use convert::address::{prefix, prefixes, single_address};
pub use convert::hello::{HELLO_KEY, Hello, HelloRole};
pub use convert::mechanism::{
    LOCAL, REMOTE, TUN, TunAnswer, VL3_ENDPOINTS, WIREGUARD, WireguardParameters, mechanism_mtu,
};
pub use convert::time::{timestamp, wall};
pub use convert::{FieldError, instance_id, network_uid};
pub use generated::{connection, connectioncontext, ipam, networkservice, registry, vl3};
