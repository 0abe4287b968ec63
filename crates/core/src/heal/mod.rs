//! How a workload joins one network, keeps its connection fresh and heals it.
//!
//! ```text
//!            Start            found             answered           installed
//!  Idle ------------> Find ----------> Request ----------> Install ----------> Up
//!                       ^                 ^                                     |
//!                       |   back-off      |  refresh: due, asked, control down  |
//!                       +---- failed <----+-------------------------------------+
//!                                         |  reselect: data down (Close first)  |
//!                                         +-------------------------------------+
//! ```
//!
//! One call (find, request, install, close) is outstanding at a time. Healing rests on two
//! facts, control and data, each up or down; see [`verdict()`].

mod health;
mod machine;
mod outcomes;
mod verdict;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

pub use health::DataHealth;
pub use machine::{AttachmentMachine, State};
pub use verdict::{Heal, verdict};

use crate::ids::{Generation, InstanceId, RouterName};
use crate::machine::Ticket;
use crate::time::Mono;

/// Where a router may be found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Candidate {
    /// `unix:///path` or `tcp://host:port`.
    Url(String),
    /// Whoever offers the service at the registry.
    Registry,
}

/// What one attachment is; fixed for its life.
#[derive(Clone, Debug)]
pub struct AttachmentConfig {
    /// In order of preference; must not be empty.
    pub candidates: Vec<Candidate>,
    pub timing: Timing,
    /// Of jitter, so that a crowd does not move in step.
    pub seed: u64,
}

/// Every period of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub find_timeout: Duration,
    pub request_timeout: Duration,
    pub install_timeout: Duration,
    pub close_timeout: Duration,
    /// Retries over the network.
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// Retries at a unix socket: cheap, and a restarted router must be found at once.
    pub local_retry_first: Duration,
    pub local_retry_max: Duration,
    /// How long a connection must have been healthy before its next failure starts the
    /// back-off anew.
    pub steady_after: Duration,
    /// With both facts down, the router in use is tried for this long before the next
    /// candidate is: a restarted router gives the same addresses back, another one does not.
    pub sticky: Duration,
    /// How often the data plane is looked at.
    pub sample_every: Duration,
    /// Second probe of a path that was installed just now; each further gap is twice as long.
    pub probe_first: Duration,
    /// Probes while nothing is sent.
    pub probe_idle: Duration,
    /// Probes while packets leave and none returns.
    pub probe_fast: Duration,
    /// Sending without any authentic receipt for this long means that data is down.
    pub data_down_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            find_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            install_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(2),
            retry_first: Duration::from_millis(200),
            retry_max: Duration::from_secs(5),
            local_retry_first: Duration::from_millis(40),
            local_retry_max: Duration::from_millis(300),
            steady_after: Duration::from_secs(5),
            sticky: Duration::from_secs(5),
            sample_every: Duration::from_millis(500),
            probe_first: Duration::from_millis(10),
            probe_idle: Duration::from_secs(5),
            probe_fast: Duration::from_millis(500),
            data_down_after: Duration::from_secs(4),
        }
    }
}

/// Why a Request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RequestKind {
    /// No connection is held at that router.
    First,
    /// The connection as last answered, with a new token.
    Refresh,
    /// Mechanism unset, endpoint name empty, state `RESELECT_REQUESTED`; the addresses held
    /// are asked for.
    Reselect,
}

/// What the machine has the shell do. `Find`, `Request`, `Install` and `Close` are answered
/// by the input of the same ticket; an answer after the machine's own deadline is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the registry for urls of the service's live endpoints -> [`Input::Found`].
    Find {
        ticket: Ticket,
    },
    /// -> [`Input::Answered`].
    Request {
        ticket: Ticket,
        url: String,
        kind: RequestKind,
    },
    /// Bring interface, addresses, routes and data path to what the answer of this ticket
    /// says; idempotent -> [`Input::Installed`].
    Install {
        ticket: Ticket,
    },
    /// Close the connection last answered by `url` -> [`Input::Closed`].
    Close {
        ticket: Ticket,
        url: String,
    },
    /// Take away interface, addresses, routes: the attachment ends.
    Uninstall,
    /// Open the monitor stream of the connection, instead of any open one -> [`Input::Monitor`]
    /// with this ticket.
    Monitor {
        ticket: Ticket,
        url: String,
    },
    StopMonitor,
    /// Look at the data plane -> [`Input::Traffic`].
    Sample,
    /// Send one echo request to the router's overlay address.
    Probe,
}

/// A failed find or request, by what the machine does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody answered: control is down there.
    Unreachable,
    /// The router answered with a refusal.
    Refused,
    /// The answer broke our rules; the connection it opened is to be closed.
    BadAnswer,
}

/// A checked answer; the shell keeps the connection itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub router: RouterLife,
    pub addresses: Vec<IpAddr>,
    /// Least remaining lifetime over all path segments.
    pub lifetime: Duration,
    /// Path segments in the answer.
    pub segments: u32,
}

/// Which life of which router answered. A stock router has no generation and no instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterLife {
    pub name: RouterName,
    pub generation: Option<Generation>,
    pub instance: Option<InstanceId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Start,
    Found {
        ticket: Ticket,
        result: Result<Vec<String>, Failure>,
    },
    Answered {
        ticket: Ticket,
        result: Result<Answer, Failure>,
    },
    Installed {
        ticket: Ticket,
        ok: bool,
    },
    /// `ok`: the router has answered.
    Closed {
        ticket: Ticket,
        ok: bool,
    },
    Monitor {
        ticket: Ticket,
        event: MonitorEvent,
    },
    Traffic {
        last_send: Option<Mono>,
        last_receipt: Option<Mono>,
    },
    /// The data path itself reported its end (TUN: `fd.sock` closed).
    DataPathLost,
    /// Leave the network; ends in [`State::Stopped`].
    Stop,
}

/// What the monitor stream says about our connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MonitorEvent {
    /// The initial state arrived and holds our connection.
    Opened,
    /// The router does not know our connection (initial state without it, or DELETE).
    Gone,
    /// State DOWN.
    Down,
    /// State REFRESH_REQUESTED.
    RefreshRequested,
    /// State RESELECT_REQUESTED.
    ReselectRequested,
    /// The stream ended or could not be opened.
    Ended,
}

/// When to refresh after an answer: a third of the lifetime for a path of one segment, else
/// a fifth (NSM's rule for the first segment of a path).
pub fn refresh_after(lifetime: Duration, segments: u32) -> Duration {
    if segments <= 1 {
        lifetime / 3
    } else {
        lifetime / 5
    }
}
