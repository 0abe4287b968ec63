//! A domain's registry and IPAM service: the NSM registry, leases of our routers, names, the
//! network document, and the sync with other domains' registries, all on one port.
//!
//! Decisions are [`vl3_core::registry::RegistryMachine`]'s; this crate moves bytes and time.
//! Read `app.rs` for the start-up in order, `driver.rs` for the one task that owns the
//! machine, `services/` for what is served, `store/` for what is kept.

mod app;
mod backlog;
mod commands;
mod config;
mod dialler;
mod driver;
mod handle;
mod limits;
pub mod maintenance;
mod metrics;
mod operator;
mod reading;
mod replica;
mod services;
mod status;
pub mod store;

pub use app::{Running, run, start};
pub use config::{Config, Family, NetworkConfig, PrefixesConfig};
pub use limits::Limits;
