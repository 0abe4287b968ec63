//! One stored answer: its key, its age, its size.

use core::mem::size_of;
use std::sync::Arc;

use super::queues::{self, Class};
use super::{Key, PREFETCH_HITS, Slot, Sources, size};
use crate::names::{Answer, ClientClass, Flags, Name, RecordType};
use crate::time::{Mono, Now};

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    /// 0: NXDOMAIN, of every type (R5.2).
    pub(super) rtype: RecordType,
    pub(super) class: u16,
    pub(super) checks: u8,
    pub(super) asker: ClientClass,
    pub(super) hash: u32,
    /// The next entry of the same name.
    pub(super) next: u32,
    pub(super) choices: Choices,
    pub(super) sources: Sources,
    pub(super) stored: Mono,
    pub(super) expires: Mono,
    /// Expired and not confirmed at that time (R5.3).
    pub(super) rechecked: Option<Mono>,
    pub(super) hits: u32,
    pub(super) prefetched: bool,
    pub(super) octets: usize,
}

#[derive(Debug)]
pub(super) enum Choices {
    One(Arc<Answer>),
    Weighted(Box<[(u32, Arc<Answer>)]>),
}

impl Choices {
    fn octets(&self) -> usize {
        match self {
            Self::One(answer) => size::answer(answer),
            Self::Weighted(choices) => {
                size::allocated(core::mem::size_of_val::<[_]>(choices))
                    + choices
                        .iter()
                        .map(|(_, answer)| size::answer(answer))
                        .sum::<usize>()
            }
        }
    }
}

/// DO and CD, as part of a key; RD makes no difference to an answer.
pub(super) const fn checks(flags: Flags) -> u8 {
    (flags.dnssec_ok as u8) << 1 | flags.checking_disabled as u8
}

/// Stands for every type (R5.2).
pub(super) const NX_DOMAIN: RecordType = RecordType(0);

impl Entry {
    pub(super) fn is_of(&self, key: Key<'_>) -> bool {
        self.class == key.question.class
            && self.checks == checks(key.flags)
            && self.asker == key.asker
    }

    pub(super) fn is_for(&self, key: Key<'_>, rtype: RecordType) -> bool {
        self.rtype == rtype && self.is_of(key)
    }

    pub(super) fn is_negative(&self) -> bool {
        match &self.choices {
            Choices::One(answer) => answer.is_denial(),
            Choices::Weighted(_) => false,
        }
    }

    pub(super) fn class(&self) -> Class {
        if self.is_negative() {
            Class::Negative
        } else {
            Class::Positive
        }
    }

    pub(super) fn age(&self, now: Now) -> u32 {
        let seconds = now.mono.saturating_since(self.stored).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// R5.5: a tenth of its life is left, and it was asked for at least twice.
    pub(super) fn wants_prefetch(&self, now: Now) -> bool {
        let life = self.expires.saturating_since(self.stored);
        let left = self.expires.saturating_since(now.mono);
        !self.prefetched && self.hits >= PREFETCH_HITS && left * 10 <= life
    }

    pub(super) fn measure(&self) -> usize {
        // A cell of the index at three quarters, a node of the queues, a free-list entry.
        let places = 8 * 4 / 3 + queues::NODE_OCTETS + size_of::<u32>();
        size_of::<Slot>()
            + places
            + size::name(&self.name)
            + size::allocated(core::mem::size_of_val::<[u32]>(&self.sources.all))
            + size::allocated(core::mem::size_of_val::<[u32]>(&self.sources.givers))
            + self.choices.octets()
    }
}
