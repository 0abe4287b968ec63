//! Calls that other processes make: a Request, its answer, its refusal.

use core::time::Duration;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::ids::{PublicKey, SpiffeId, WorkloadName};

use super::io::{ConnectionId, Hello};

/// How the other end's packets reach us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MechanismWish {
    /// A descriptor over `fd.sock`; `secret` is 128 fresh random bits drawn by the shell, used
    /// if the machine needs a ticket.
    Tun {
        secret: [u8; 16],
    },
    WireGuard {
        public_key: PublicKey,
    },
}

/// One NSM Request (first or refresh), checked for form by the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub connection: ConnectionId,
    /// SPIFFE ID of the direct TLS peer: the authority.
    pub peer: SpiffeId,
    /// Where `peer` is a listed intermediary: whom it speaks for, by the path. Else unset; any
    /// other combination is refused.
    pub claimed: Option<SpiffeId>,
    /// Absent from stock peers, which are served as workloads.
    pub hello: Option<Hello>,
    /// Workload name: label `podName`, else the Hello's, else the first path segment's.
    pub name: Option<WorkloadName>,
    pub mechanism: MechanismWish,
    /// Addresses that the client says it has (`src_ip_addrs`); empty on a plain refresh.
    pub addresses: Vec<IpAddr>,
    pub excluded: Vec<IpNet>,
    /// Smallest MTU on the way so far, 0 = unset.
    pub mtu: u16,
    /// Until the client's token ends.
    pub expires_in: Duration,
    /// Our address of the TCP connection that carried the Request; unset on a unix socket.
    pub local: Option<IpAddr>,
}

/// A Request's success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Workload(WorkloadAnswer),
    Link(LinkAnswer),
    /// A Close, always successful for its owner.
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadAnswer {
    /// The workload's, host prefixes.
    pub addresses: Vec<IpNet>,
    /// The router's, host prefixes.
    pub router: Vec<IpNet>,
    /// The network's pools, by way of the router's address of the same family.
    pub routes: Vec<IpNet>,
    pub mtu: u16,
    pub dns_servers: Vec<IpAddr>,
    pub search: String,
    pub hello: Hello,
    pub mechanism: MechanismAnswer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MechanismAnswer {
    /// The ticket to present on `fd.sock`, once. The value that the client knows already says
    /// that its descriptor is in place and its end of `fd.sock` open.
    Tun { secret: [u8; 16] },
    WireGuard {
        public_key: PublicKey,
        address: IpAddr,
        port: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAnswer {
    pub hello: Hello,
    pub public_key: PublicKey,
    pub address: IpAddr,
    pub port: u16,
    pub mtu: u16,
    /// Our addresses in the overlay, host prefixes.
    pub router: Vec<IpNet>,
}

/// Why a call was refused. The variant says what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Never with this content.
    #[error("{field}: {value:?} is refused: {allowed}")]
    Invalid {
        field: &'static str,
        value: String,
        allowed: String,
    },
    /// Never with this identity.
    #[error("{id} may not {what}")]
    Denied { id: SpiffeId, what: String },
    /// Not while something else holds it: a higher generation, another network, a fence.
    #[error("{reason}")]
    Precondition { reason: String },
    /// Later, or elsewhere: a limit is reached.
    #[error("{what} is full: {limit}")]
    Exhausted { what: &'static str, limit: usize },
    /// Not before this identity gives something back: others need room as well.
    #[error("{id} has {limit} workloads here, one identity gets no more")]
    Share { id: SpiffeId, limit: usize },
    /// Later: something this router needs is not there yet.
    #[error("{reason}")]
    Unavailable { reason: String },
}

impl Refusal {
    /// Every label, for counters.
    pub const LABELS: [&'static str; 6] = [
        "invalid",
        "denied",
        "precondition",
        "exhausted",
        "share",
        "unavailable",
    ];

    pub const fn label(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::Denied { .. } => "denied",
            Self::Precondition { .. } => "precondition",
            Self::Exhausted { .. } => "exhausted",
            Self::Share { .. } => "share",
            Self::Unavailable { .. } => "unavailable",
        }
    }
}
