//! One file per promise. Each returns what it saw, or why the promise does not hold.

pub(super) mod addresses;
pub(super) mod connect_time;
pub(super) mod documents;
pub(super) mod explained;
pub(super) mod foreign_route;
pub(super) mod forged_source;
pub(super) mod isolation;
pub(super) mod late_domain;
pub(super) mod leftovers;
pub(super) mod memory;
pub(super) mod names;
pub(super) mod partition;
pub(super) mod reachability;
pub(super) mod router_crash;
pub(super) mod servers_down;
pub(super) mod throughput;
pub(super) mod underlay;
