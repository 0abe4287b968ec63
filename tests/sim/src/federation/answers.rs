//! What registries refused, by kind: a table beside the faults.

use vl3_core::allocator;
use vl3_core::registry::{Refusal, Reply};

/// A refusal, or a name that somebody else holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Invalid,
    Denied,
    UnknownNetwork,
    Limit,
    Unavailable,
    Collision,
    HeldByOther,
    Fenced,
    AcquireAgain,
    Exhausted,
    ReadoptOnly,
    NameHeld,
}

impl Answer {
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::Denied,
        Self::UnknownNetwork,
        Self::Limit,
        Self::Unavailable,
        Self::Collision,
        Self::HeldByOther,
        Self::Fenced,
        Self::AcquireAgain,
        Self::Exhausted,
        Self::ReadoptOnly,
        Self::NameHeld,
    ];

    pub fn parse(name: &str) -> Option<Self> {
        let named = |answer: &Self| format!("{answer:?}") == name;
        Self::ALL.into_iter().find(named)
    }

    /// None: what was asked for was done.
    pub(super) fn of(result: &Result<Reply, Refusal>) -> Option<Self> {
        let refusal = match result {
            Ok(Reply::Name { held_by: Some(_) }) => return Some(Self::NameHeld),
            Ok(_) => return None,
            Err(refusal) => refusal,
        };
        Some(match refusal {
            Refusal::Invalid { .. }
            | Refusal::Lease(
                allocator::Refusal::Invalid { .. } | allocator::Refusal::GenerationTooHigh { .. },
            ) => Self::Invalid,
            Refusal::Denied { .. } => Self::Denied,
            Refusal::UnknownNetwork { .. } => Self::UnknownNetwork,
            Refusal::Limit { .. } => Self::Limit,
            Refusal::Unavailable { .. } => Self::Unavailable,
            Refusal::Lease(allocator::Refusal::Collision { .. }) => Self::Collision,
            Refusal::Lease(allocator::Refusal::HeldByOther { .. }) => Self::HeldByOther,
            Refusal::Lease(allocator::Refusal::Fenced { .. }) => Self::Fenced,
            Refusal::Lease(allocator::Refusal::AcquireAgain { .. }) => Self::AcquireAgain,
            Refusal::Lease(allocator::Refusal::Exhausted { .. }) => Self::Exhausted,
            Refusal::Lease(allocator::Refusal::ReadoptOnly { .. }) => Self::ReadoptOnly,
        })
    }
}
