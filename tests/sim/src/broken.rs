//! The end of a run that found something.

use core::fmt;

/// An invariant of the design, by its number, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub invariant: u8,
    pub what: String,
}

impl Broken {
    pub fn new(invariant: u8, what: impl Into<String>) -> Self {
        Self {
            invariant,
            what: what.into(),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "breaks invariant {}: {}", self.invariant, self.what)
    }
}
