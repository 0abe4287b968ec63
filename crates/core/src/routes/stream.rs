//! One routes stream: numbered changes in both directions, a snapshot first.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::router::{RouterId, RoutesMessage};
use crate::time::Mono;

/// Prefix to (preference, MTU).
pub(super) type RouteMap = BTreeMap<IpNet, (u32, u16)>;

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) router: RouterId,
    pub(super) dialled: bool,
    /// Streams of one link, in the order in which they started.
    pub(super) order: u64,
    pub(super) inbound: RouteMap,
    /// The snapshot is complete.
    pub(super) complete: bool,
    /// Closed from here: its end is not reported yet, and nothing more is heard on it.
    pub(super) ended: bool,
    received: u64,
    pub(super) outbound: RouteMap,
    sent: u64,
    pub(super) heard: Mono,
    pub(super) spoke: Mono,
    snapshot_sent: bool,
}

/// What one message did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    Nothing,
    Changed,
    /// A number is missing: the stream is of no use any more.
    Gap,
}

impl Stream {
    pub(super) fn new(router: RouterId, dialled: bool, order: u64, now: Mono) -> Self {
        Self {
            router,
            dialled,
            order,
            inbound: RouteMap::new(),
            complete: false,
            ended: false,
            received: 0,
            outbound: RouteMap::new(),
            sent: 0,
            heard: now,
            spoke: now,
            snapshot_sent: false,
        }
    }

    pub(super) fn take(&mut self, message: &RoutesMessage, now: Mono) -> Took {
        self.heard = now;
        let sequence = match message {
            RoutesMessage::Announce { sequence, .. }
            | RoutesMessage::Withdraw { sequence, .. }
            | RoutesMessage::End { sequence } => {
                self.received += 1;
                *sequence
            }
            RoutesMessage::KeepAlive { sequence } => *sequence,
        };
        if sequence != self.received {
            return Took::Gap;
        }
        match message {
            RoutesMessage::Announce {
                prefix,
                preference,
                mtu,
                ..
            } => {
                self.inbound.insert(*prefix, (*preference, *mtu));
            }
            RoutesMessage::Withdraw { prefix, .. } => {
                self.inbound.remove(prefix);
            }
            RoutesMessage::End { .. } => self.complete = true,
            RoutesMessage::KeepAlive { .. } => return Took::Nothing,
        }
        if self.complete {
            Took::Changed
        } else {
            Took::Nothing
        }
    }

    /// What must be sent so that the other side knows `wanted`: the first time with an end mark.
    pub(super) fn update(&mut self, wanted: &RouteMap, now: Mono) -> Vec<RoutesMessage> {
        let mut messages = Vec::new();
        let gone: Vec<_> = self
            .outbound
            .keys()
            .filter(|prefix| !wanted.contains_key(*prefix))
            .copied()
            .collect();
        for prefix in gone {
            self.outbound.remove(&prefix);
            let sequence = self.next();
            messages.push(RoutesMessage::Withdraw { sequence, prefix });
        }
        for (prefix, (preference, mtu)) in wanted {
            if self.outbound.get(prefix) != Some(&(*preference, *mtu)) {
                self.outbound.insert(*prefix, (*preference, *mtu));
                let sequence = self.next();
                messages.push(RoutesMessage::Announce {
                    sequence,
                    prefix: *prefix,
                    preference: *preference,
                    mtu: *mtu,
                });
            }
        }
        if !self.snapshot_sent {
            self.snapshot_sent = true;
            let sequence = self.next();
            messages.push(RoutesMessage::End { sequence });
        }
        if !messages.is_empty() {
            self.spoke = now;
        }
        messages
    }

    pub(super) fn keep_alive(&mut self, now: Mono) -> RoutesMessage {
        self.spoke = now;
        RoutesMessage::KeepAlive {
            sequence: self.sent,
        }
    }

    fn next(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }
}
