//! The workload and edge side of a network: attaches, keeps its interface, refreshes, heals.
//!
//! One [`AttachmentMachine`](vl3_core::heal::AttachmentMachine) per network decides; the shell
//! here moves its bytes and time. `answer` checks what a router says, `plan` turns the answers
//! of all networks into addresses, routes and rules, `host` brings them about, `names` what the
//! host shall know of their names; `tun` and
//! `wireguard` are the two mechanisms, `probe` measures that packets return.

mod answer;
mod app;
mod attachment;
mod config;
mod control;
mod document;
mod host;
mod name;
mod names;
mod plan;
mod probe;
mod request;
mod services;
mod status;
mod tun;
mod wireguard;

pub use app::{Client, run};
pub use config::{Attach, Config, ConnectTo, Mechanism};
pub use names::Names;
pub use status::Status;
