//! Deliberate bugs of one line each, which the simulation must find. They are built with the
//! feature `plants` only, which no release has, and even then one is there only once it is
//! chosen: the one global of this crate.

use std::sync::OnceLock;

/// Which line is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A lease is avoided by its first address only.
    Allocator,
    /// Each side of a link leaves the dialling to the other.
    DialPreference,
    /// A sibling's packet goes on to another domain.
    PacketOrder,
    /// A replayed lease starts over at its first round.
    Replay,
    /// A name is denied although not everybody answered.
    Merge,
    /// What a whole snapshot of a domain does not name stays.
    Snapshot,
}

static CHOSEN: OnceLock<Plant> = OnceLock::new();

impl Plant {
    pub const ALL: [Self; 6] = [
        Self::Allocator,
        Self::DialPreference,
        Self::PacketOrder,
        Self::Replay,
        Self::Merge,
        Self::Snapshot,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocator => "allocator",
            Self::DialPreference => "dial-preference",
            Self::PacketOrder => "packet-order",
            Self::Replay => "replay",
            Self::Merge => "merge",
            Self::Snapshot => "snapshot",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plant| plant.name() == name)
    }

    /// From now on, in the whole process. The error is what was chosen before.
    pub fn choose(self) -> Result<(), Self> {
        let chosen = *CHOSEN.get_or_init(|| self);
        if chosen == self { Ok(()) } else { Err(chosen) }
    }

    pub(crate) fn is_chosen(self) -> bool {
        CHOSEN.get() == Some(&self)
    }
}
