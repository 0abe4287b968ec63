//! Who asks how much (R6.6): one client never takes what is there for all.

use std::collections::HashMap;
use std::net::IpAddr;

use vl3_core::Mono;
use vl3_core::names::{ClientClass, View};

/// Clients remembered at one time; more share one allowance.
const CLIENTS_MAX: usize = 65_536;
const SECOND: u64 = 1_000_000_000;

/// What one client may do at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientLimits {
    /// Questions per second, as many at once; 0: as many as it likes.
    pub(crate) per_second: u32,
    /// Questions that wait for others.
    pub(crate) in_flight: u32,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    /// Of which view the class is; another one is looked up anew.
    of: u64,
    class: Option<ClientClass>,
    /// When what it asked so far would be used up (GCRA).
    used_up: u64,
    in_flight: u32,
}

/// What a client may do with this question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Welcome(ClientClass),
    /// Nobody we serve.
    Stranger,
    TooMany,
}

#[derive(Debug)]
pub(super) struct Clients {
    limits: ClientLimits,
    known: HashMap<IpAddr, Client>,
    others: Client,
    /// Counts views.
    view: u64,
}

const UNKNOWN: Client = Client {
    of: 0,
    class: None,
    used_up: 0,
    in_flight: 0,
};

impl Clients {
    pub(super) fn new(limits: ClientLimits) -> Self {
        Self {
            limits,
            known: HashMap::new(),
            others: UNKNOWN,
            view: 1,
        }
    }

    /// Classes may have changed.
    pub(super) const fn new_view(&mut self) {
        self.view += 1;
    }

    pub(super) const fn set_limits(&mut self, limits: ClientLimits) {
        self.limits = limits;
    }

    pub(super) fn admit(&mut self, source: IpAddr, view: &View, now: Mono) -> Admission {
        let current = self.view;
        let limits = self.limits;
        let client = self.client(source, now);
        if client.of != current {
            client.of = current;
            client.class = view.client_class(source);
        }
        let Some(class) = client.class else {
            return Admission::Stranger;
        };
        if limits.per_second > 0 {
            let used_up = client.used_up.max(now.0);
            if used_up - now.0 > SECOND {
                return Admission::TooMany;
            }
            client.used_up = used_up + SECOND / u64::from(limits.per_second);
        }
        Admission::Welcome(class)
    }

    /// A question of this client waits for others; false beyond its limit.
    pub(super) fn begin(&mut self, source: IpAddr, now: Mono) -> bool {
        let max = self.limits.in_flight;
        let client = self.client(source, now);
        if max > 0 && client.in_flight >= max {
            return false;
        }
        client.in_flight += 1;
        true
    }

    pub(super) fn end(&mut self, source: IpAddr) {
        let client = self.known.get_mut(&source).unwrap_or(&mut self.others);
        client.in_flight = client.in_flight.saturating_sub(1);
    }

    fn client(&mut self, source: IpAddr, now: Mono) -> &mut Client {
        if self.known.len() >= CLIENTS_MAX && !self.known.contains_key(&source) {
            // Who has its whole allowance again is as good as unknown.
            self.known
                .retain(|_, client| client.in_flight > 0 || client.used_up > now.0);
            if self.known.len() >= CLIENTS_MAX {
                self.others.of = 0;
                return &mut self.others;
            }
        }
        self.known.entry(source).or_insert(UNKNOWN)
    }
}

/// R6.6.
impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            per_second: 1_000,
            in_flight: 200,
        }
    }
}
