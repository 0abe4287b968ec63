//! What is fixed for a router's life, and its limits.

use core::time::Duration;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::ids::{InstanceId, NetworkUid, PublicKey};
use crate::router::RouterId;

#[derive(Clone, Debug)]
pub struct Config {
    pub router: RouterId,
    pub uid: NetworkUid,
    /// Random per state directory.
    pub instance: InstanceId,
    pub public_key: PublicKey,
    /// Cannot be dialled from outside its site.
    pub dials_only: bool,
    pub udp_port: u16,
    /// Underlay address told to peers; unset: that of the TCP connection of their Request.
    pub advertise: Option<IpAddr>,
    /// Ranges that this router must not be given and gives to nobody.
    pub exclusions: Vec<IpNet>,
    /// Wanted length of the IPv4 prefix, 0 = the registry's default.
    pub prefix_len4: u8,
    /// Largest inner packet over WireGuard on this router's underlay, bytes.
    pub mtu: u16,
    pub limits: Limits,
    pub times: Times,
    /// For jitter only.
    pub seed: u64,
}

/// What bounds memory, and what happens there.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Served workloads; one more is refused.
    pub workloads: usize,
    /// Addresses reserved for workloads that are gone; the one that ends first gives way.
    pub reserved: usize,
    /// Links; one more is neither dialled nor accepted.
    pub links: usize,
    /// Routers known from the registry; further ones are ignored.
    pub discovered: usize,
    /// Routes accepted from one link; further ones are ignored.
    pub routes_per_link: usize,
    /// Records that wait for the store; Requests that need one more are refused.
    pub pending_records: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workloads: 4096,
            reserved: 8192,
            links: 256,
            discovered: 1024,
            routes_per_link: 1024,
            pending_records: 65_536,
        }
    }
}

/// Durations that an operator or a test may want otherwise.
#[derive(Clone, Debug)]
pub struct Times {
    /// An address stays reserved for its identity that long.
    pub claim_grace: Duration,
    /// No authentic receipt for that long = silent.
    pub silent_after: Duration,
    /// The other side of the dial preference waits that long, plus up to a quarter of jitter.
    pub dial_wait: Duration,
    /// Between two probes of a link that answers, plus jitter.
    pub probe_idle: Duration,
    /// Between two probes of a link that does not.
    pub probe_fast: Duration,
    /// Sending without receipt for that long = data down.
    pub data_down_after: Duration,
    /// Between two looks at the data plane's counters.
    pub sample_every: Duration,
    /// A ticket for `fd.sock` lives that long.
    pub ticket: Duration,
    /// Life of what was restored, until its owner refreshes it.
    pub restored_life: Duration,
    /// Between two claims of one name.
    pub name_refresh: Duration,
    /// After a (re-)opened watch, what was not shown again is gone.
    pub watch_grace: Duration,
    /// Without renewal for that long the lease's prefixes are no longer announced.
    pub lease_silent_max: Duration,
}

impl Default for Times {
    fn default() -> Self {
        const fn secs(secs: u64) -> Duration {
            Duration::from_secs(secs)
        }
        Self {
            claim_grace: secs(3600),
            silent_after: secs(20),
            dial_wait: secs(5),
            probe_idle: secs(5),
            probe_fast: Duration::from_millis(500),
            data_down_after: secs(4),
            sample_every: Duration::from_millis(500),
            ticket: secs(10),
            restored_life: secs(600),
            name_refresh: secs(60),
            watch_grace: secs(10),
            lease_silent_max: secs(6 * 86_400),
        }
    }
}
