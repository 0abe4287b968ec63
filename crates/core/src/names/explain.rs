//! What happened to one question, kept when its asker wants to know (R7.3).

use core::time::Duration;
use std::net::SocketAddr;

use super::{Decision, Failure, Policy, Rcode, Transport, UpstreamId};

/// Steps kept of one question; later ones are counted only.
pub const STEPS_MAX: usize = 512;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Whom the rule chose.
    Planned {
        rule: &'static str,
        policy: Policy,
        upstreams: Vec<UpstreamId>,
    },
    /// A stored answer, or part of one, was looked at.
    Cached {
        /// `fresh`, `stale` or `miss`.
        state: &'static str,
        /// Seconds since it was stored.
        age: u64,
    },
    /// An upstream that is not asked, and why.
    LeftOut {
        upstream: UpstreamId,
        failure: Failure,
    },
    /// Joined an equal question in flight (R2.11).
    Joined,
    Asked {
        upstream: UpstreamId,
        server: SocketAddr,
        transport: Transport,
    },
    /// A reply, as the vote it is.
    Said {
        upstream: UpstreamId,
        vote: &'static str,
        records: usize,
        truncated: bool,
    },
    /// A try that ended without a reply.
    Failed {
        upstream: UpstreamId,
        failure: Failure,
    },
    Answered {
        rcode: Rcode,
        decision: Decision,
        rule: &'static str,
    },
}

/// The steps of one question in order, with the time since it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    pub steps: Vec<(Duration, Step)>,
    /// Steps beyond [`STEPS_MAX`].
    pub left_out: usize,
}

impl Trace {
    pub(super) fn push(&mut self, since: Duration, step: Step) {
        if self.steps.len() < STEPS_MAX {
            self.steps.push((since, step));
        } else {
            self.left_out += 1;
        }
    }
}
