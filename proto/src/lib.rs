//! The wire contract: NSM v1 as `proto/nsm` states it, our own services under `proto/vl3`,
//! and the checked conversions between messages and core types.

mod generated;

pub use generated::{connection, connectioncontext, ipam, networkservice, registry, vl3};
