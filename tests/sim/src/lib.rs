//! Many domains in virtual time, under faults, against what is really so.
//!
//! The machines are those of production, unchanged; the world around them is a queue of
//! events drawn from one seed. What the invariants of the design forbid ends a run, with the
//! seed that plays it again.

pub mod broken;
pub mod cast;
pub mod checks;
pub mod director;
pub mod disk;
pub mod dns;
pub mod event;
pub mod examine;
pub mod faults;
pub mod federation;
pub mod internet;
pub mod packets;
pub mod pipes;
pub mod plane;
pub mod queue;
pub mod registry;
pub mod router;
pub mod router_calls;
pub mod router_streams;
pub mod run;
pub mod trace;
pub mod truth;
pub mod workload;
pub mod world;
