//! What the parts of the router share while one input is handled.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::document::{Document, Member};
use crate::forward::PortId;
use crate::machine::{Ticket, TicketCounter};
use crate::rng::Rng;
use crate::router::call::Refusal;
use crate::router::config::Config;
use crate::router::state::{Record, State};
use crate::router::{CallId, Effect, Hello, HelloRole, VERSION};
use crate::time::Now;

/// Hands out ports, each once in a process's life.
#[derive(Clone, Debug)]
pub(crate) struct PortCounter(pub(crate) u32);

impl PortCounter {
    fn issue(&mut self) -> PortId {
        self.0 = self
            .0
            .checked_add(1)
            .expect("four billion ports in one process life");
        PortId(self.0)
    }
}

/// The router's shared state, lent to one part for the length of one input. Records are
/// applied to the state at once; effects wait until the records before them are durable.
pub(crate) struct Context<'a> {
    pub(crate) config: &'a Config,
    pub(crate) document: &'a Document,
    pub(crate) state: &'a mut State,
    pub(crate) tickets: &'a mut TicketCounter,
    pub(crate) ports: &'a mut PortCounter,
    pub(crate) rng: &'a mut Rng,
    pub(crate) records: &'a mut Vec<Record>,
    pub(crate) effects: &'a mut Vec<Effect>,
    /// A newer life of this router exists: nothing is granted or announced.
    pub(crate) fenced: bool,
    pub(crate) now: Now,
}

impl Context<'_> {
    pub(crate) fn record(&mut self, record: Record) {
        self.state.apply(&record);
        self.records.push(record);
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn refuse(&mut self, call: CallId, refusal: Refusal) {
        self.effect(Effect::Answer {
            call,
            result: Err(refusal),
        });
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.tickets.issue()
    }

    pub(crate) fn port(&mut self) -> PortId {
        self.ports.issue()
    }

    /// The member that this router belongs to.
    pub(crate) fn own_member(&self) -> Option<&Member> {
        self.document
            .member(&self.config.router.domain, self.now.wall)
    }

    /// The router's own addresses as host prefixes, the IPv4 one first.
    pub(crate) fn own_addresses(&self) -> Vec<IpNet> {
        own_addresses(self.state)
    }

    pub(crate) fn own_ips(&self) -> Vec<IpAddr> {
        self.state
            .lease
            .as_ref()
            .map(|lease| lease.addresses().collect())
            .unwrap_or_default()
    }

    pub(crate) fn hello(&self) -> Hello {
        let config = self.config;
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            uid: config.uid,
            domain: config.router.domain.clone(),
            name: config.router.name.to_string(),
            instance: config.instance,
            generation: self
                .state
                .lease
                .as_ref()
                .map(|lease| lease.generation)
                .unwrap_or_default(),
            dials_only: config.dials_only,
            role: HelloRole::Router,
        }
    }

    /// Checks what every Hello must satisfy, whoever sends it.
    pub(crate) fn check_hello(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.uid != self.config.uid {
            let reason = format!(
                "hello is for network {}, this router serves {}",
                hello.uid, self.config.uid
            );
            return Err(Refusal::Precondition { reason });
        }
        if hello.version_min > VERSION || hello.version_max < VERSION {
            let reason = format!(
                "hello speaks versions {} to {}, this router speaks {VERSION}",
                hello.version_min, hello.version_max
            );
            return Err(Refusal::Precondition { reason });
        }
        Ok(())
    }
}

pub(crate) fn own_addresses(state: &State) -> Vec<IpNet> {
    state
        .lease
        .as_ref()
        .map(|lease| lease.addresses().map(IpNet::from).collect())
        .unwrap_or_default()
}
