//! Answers as octets, above the resolver: a question that was asked before is answered by copying
//! and patching, without the resolver (R5.1). What the resolver would say otherwise, by its
//! stamp, is not used.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use vl3_core::names::{CacheStamp, ClientClass, Decision, NAME_OCTETS_MAX, Rcode};

use crate::slab::Slab;
use crate::wire::{Asked, Body};

/// Longest key: a name, type and class, flags, the asker's class.
const KEY_OCTETS_MAX: usize = NAME_OCTETS_MAX + 6;
/// What an entry costs beside its octets: map, slab, allocations.
const ENTRY_OCTETS: usize = 512;
/// Questions remembered to have been asked once: what is asked once is not stored, so a flood of
/// random names pushes nothing out (R5.4).
const ONCE: usize = 1 << 14;

/// Questions that differ in nothing that an answer depends on have one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    octets: [u8; KEY_OCTETS_MAX],
    length: usize,
}

impl Key {
    pub(super) fn of(asked: &Asked<'_>, class: ClientClass) -> Self {
        let mut octets = [0; KEY_OCTETS_MAX];
        let section = asked.section.len().min(KEY_OCTETS_MAX - 2);
        octets[..section].copy_from_slice(&asked.section[..section]);
        // Lengths of labels are below any letter.
        octets[..asked.name_octets().min(section)].make_ascii_lowercase();
        octets[section] =
            u8::from(asked.flags.dnssec_ok) | u8::from(asked.flags.checking_disabled) << 1;
        octets[section + 1] = match class {
            ClientClass::Sibling => 0,
            ClientClass::Remote => 1,
            ClientClass::Member => 2,
        };
        Self {
            octets,
            length: section + 2,
        }
    }

    fn octets(&self) -> &[u8] {
        &self.octets[..self.length]
    }
}

#[derive(Debug)]
pub(super) struct Packet {
    key: Arc<[u8]>,
    pub(super) body: Body,
    pub(super) rcode: Rcode,
    pub(super) decision: Decision,
    /// Which stored answer of the resolver it was made of.
    stamp: CacheStamp,
    /// Which order the next reply has.
    turn: u32,
    /// Asked for since the hand went by.
    used: bool,
}

impl Packet {
    fn octets(&self) -> usize {
        self.body.octets() + self.key.len() + ENTRY_OCTETS
    }
}

/// What is to be stored.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) body: Body,
    pub(super) rcode: Rcode,
    pub(super) decision: Decision,
    pub(super) stamp: CacheStamp,
    pub(super) turn: u32,
}

/// Bounded by octets; what was not used since the hand went by goes first.
pub(super) struct Packets {
    octets_max: usize,
    octets: usize,
    by_key: HashMap<Arc<[u8]>, u32>,
    packets: Slab<Packet>,
    hand: u32,
    hasher: RandomState,
    once: Box<[u32]>,
    pub(super) evicted: u64,
}

impl Packets {
    pub(super) fn new(octets_max: usize) -> Self {
        Self {
            octets_max,
            octets: 0,
            by_key: HashMap::new(),
            packets: Slab::default(),
            hand: 0,
            hasher: RandomState::new(),
            once: vec![0; ONCE].into_boxed_slice(),
            evicted: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.packets.len()
    }

    /// Where a packet for this key lies, and what it was made of: to be used as long as the
    /// resolver says that this still holds.
    pub(super) fn find(&self, key: &Key) -> Option<(u32, CacheStamp)> {
        let at = *self.by_key.get(key.octets())?;
        Some((at, self.packets.get(at)?.stamp))
    }

    pub(super) fn get(&self, at: u32) -> Option<&Packet> {
        self.packets.get(at)
    }

    /// The packet, and which order the reply has.
    pub(super) fn take_turn(&mut self, at: u32) -> Option<(&Packet, u32)> {
        let packet = self.packets.get_mut(at)?;
        packet.used = true;
        packet.turn = packet.turn.wrapping_add(1);
        let turn = packet.turn;
        Some((packet, turn))
    }

    /// Whether this question was asked before, lately; from now on it was.
    pub(super) fn was_asked(&mut self, key: &Key) -> bool {
        let hash = self.hasher.hash_one(key.octets());
        // The low bits choose the place, the high half tells apart.
        let place = usize::try_from(hash % (ONCE as u64)).unwrap_or(0);
        let mark = u32::try_from(hash >> 32).unwrap_or(0) | 1;
        self.once
            .get_mut(place)
            .is_some_and(|known| std::mem::replace(known, mark) == mark)
    }

    pub(super) fn store(&mut self, key: &Key, store: Store) {
        if let Some(at) = self.by_key.get(key.octets()) {
            self.remove(*at);
        }
        let key: Arc<[u8]> = Arc::from(key.octets());
        let packet = Packet {
            key: Arc::clone(&key),
            body: store.body,
            rcode: store.rcode,
            decision: store.decision,
            stamp: store.stamp,
            turn: store.turn,
            used: false,
        };
        let octets = packet.octets();
        if octets > self.octets_max {
            return;
        }
        while self.octets + octets > self.octets_max {
            self.evict();
        }
        self.octets += octets;
        let at = self.packets.insert(packet);
        self.by_key.insert(key, at);
    }

    pub(super) fn clear(&mut self) {
        self.by_key.clear();
        self.packets = Slab::default();
        self.octets = 0;
    }

    /// Two rounds at most: the first takes every mark away.
    fn evict(&mut self) {
        for _ in 0..=self.packets.places() * 2 {
            self.hand = if (self.hand as usize) < self.packets.places() {
                self.hand + 1
            } else {
                0
            };
            if let Some(packet) = self.packets.get_mut(self.hand)
                && !std::mem::take(&mut packet.used)
            {
                self.evicted += 1;
                return self.remove(self.hand);
            }
        }
        self.clear();
    }

    pub(super) fn remove(&mut self, at: u32) {
        if let Some(packet) = self.packets.remove(at) {
            self.octets -= packet.octets();
            self.by_key.remove(&packet.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Parsed, parse};

    /// `a.B` of type A: header, name, type and class, an OPT with or without DO.
    fn message(name: &[u8; 5], dnssec_ok: bool, checking_disabled: bool) -> Vec<u8> {
        let mut octets = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        octets[3] = if checking_disabled { 0x10 } else { 0 };
        octets.extend(name);
        octets.extend([0, 1, 0, 1, 0, 0, 41, 4, 0xd0, 0, 0]);
        octets.extend([if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
        octets
    }

    fn key(octets: &[u8], class: ClientClass) -> Key {
        match parse(octets) {
            Parsed::Ask(asked) => Key::of(&asked, class),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn r5_1_a_key_knows_all_that_an_answer_depends_on_and_nothing_else() {
        let member = ClientClass::Member;
        let plain = key(&message(b"\x01a\x01b\0", false, false), member);
        let upper = key(&message(b"\x01A\x01B\0", false, false), member);
        assert_eq!(plain.octets(), upper.octets(), "R1.4");
        for other in [
            key(&message(b"\x01a\x01c\0", false, false), member),
            key(&message(b"\x01a\x01b\0", true, false), member),
            key(&message(b"\x01a\x01b\0", false, true), member),
            key(&message(b"\x01a\x01b\0", false, false), ClientClass::Remote),
        ] {
            assert_ne!(plain.octets(), other.octets());
        }
    }

    #[test]
    fn r5_4_what_is_asked_once_is_not_kept() {
        let mut packets = Packets::new(1 << 20);
        let once = key(&message(b"\x01a\x01b\0", false, false), ClientClass::Member);
        assert!(!packets.was_asked(&once));
        assert!(packets.was_asked(&once));
    }
}
