//! The one shape of every control machine.

use crate::time::{Mono, Now};

/// A pure state machine. Same inputs, same effects, byte for byte.
///
/// Whatever has an answer (append, call, install, probe) is an effect with a [`Ticket`]
/// whose completion comes back as an input. A reply that rests on an append leaves only
/// after it. A crash is "drop the machine, keep the disk", between any two effects.
pub trait Machine {
    type Input;
    type Effect;

    /// Takes one input. Emits a bounded number of effects, in order.
    fn handle(&mut self, input: Self::Input, now: Now, out: &mut Outbox<Self::Effect>);

    /// Runs the timers that are due. Harmless when none is.
    fn wake(&mut self, now: Now, out: &mut Outbox<Self::Effect>);

    /// The exact next deadline and its reason; changes only when the state changes.
    fn next_wake(&self) -> Option<(Mono, &'static str)>;
}

/// Effects in the order in which the shell must start them.
#[derive(Debug)]
pub struct Outbox<E> {
    effects: Vec<E>,
}

impl<E> Default for Outbox<E> {
    fn default() -> Self {
        Self {
            effects: Vec::new(),
        }
    }
}

impl<E> Outbox<E> {
    pub fn push(&mut self, effect: E) {
        self.effects.push(effect);
    }

    pub fn drain(&mut self) -> impl Iterator<Item = E> + '_ {
        self.effects.drain(..)
    }

    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    pub fn as_slice(&self) -> &[E] {
        &self.effects
    }

    pub fn take(&mut self) -> Vec<E> {
        core::mem::take(&mut self.effects)
    }
}

/// Names one outstanding effect of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Hands out tickets, each once.
#[derive(Clone, Debug, Default)]
pub struct TicketCounter(u64);

impl TicketCounter {
    pub fn issue(&mut self) -> Ticket {
        self.0 += 1;
        Ticket(self.0)
    }
}
