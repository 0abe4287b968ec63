//! The router's machine: serves workloads, links to other routers, believes and announces
//! routes, keeps its lease. It owns the parts ([`crate::attach`], [`crate::links`],
//! [`crate::routes`]) and drains them; they do not know each other.

pub mod config;
pub mod io;
pub mod state;

pub use config::{Config, Limits, Times};
pub use io::*;
pub use state::{Record, State};

use crate::document::Document;
use crate::forward::PortId;
use crate::machine::{Machine, Outbox};
use crate::time::{Mono, Now};

/// The router's own address: set by the shell before [`Input::Start`].
pub const OWN_PORT: PortId = PortId(0);

/// The whole router of one network in one domain.
#[derive(Debug)]
pub struct RouterMachine {
    config: Config,
}

impl RouterMachine {
    /// From what is stored (empty for a first start). `document` is the decoded form of
    /// `state.document`, or the one from the configuration.
    pub fn new(config: Config, _state: State, _document: Document) -> Self {
        Self { config }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Machine for RouterMachine {
    type Input = Input;
    type Effect = Effect;

    fn handle(&mut self, _input: Input, _now: Now, _out: &mut Outbox<Effect>) {}

    fn wake(&mut self, _now: Now, _out: &mut Outbox<Effect>) {}

    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        None
    }
}
