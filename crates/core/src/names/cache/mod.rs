//! Stored answers (R5): bounded by octets, with admission that a flood of names cannot beat.
//! Pure: whoever asks brings the time.
//!
//! Entries of one name are chained, so a name's other types, its NXDOMAIN and its removal are
//! found with one probe. What goes when room is needed is [`queues`]' matter.

mod entry;
mod queues;
mod size;

use std::sync::Arc;

use self::entry::{Choices, Entry, NX_DOMAIN, checks};
use self::queues::{Class, Queues};
use super::index::{HashKey, Index, NOWHERE};
use super::merge::choose;
use super::{Answer, ClientClass, Flags, Name, Question, Rcode, RecordType};
use crate::time::Now;
use core::time::Duration;

/// Room for answers, octets (R5.4).
pub const CACHE_OCTETS: usize = 32 * 1024 * 1024;
/// How long an expired answer may still be served (R5.3).
pub const STALE_MAX: Duration = Duration::from_secs(3_600);
/// TTL of an expired answer that is served, seconds (R5.3).
pub const STALE_TTL: u32 = 30;
/// A failed recheck of an expired answer is not repeated before (R5.3).
const RECHECK_PAUSE: Duration = Duration::from_secs(5);
/// Entries of one name: types and flags; the oldest goes.
const PER_NAME_MAX: usize = 64;
/// Asked so often within its life, an answer is fetched anew before it expires (R5.5).
const PREFETCH_HITS: u32 = 2;

/// What an answer is stored under (R5.1, R4.1); the view is the cache's own.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    pub question: &'a Question,
    pub flags: Flags,
    pub asker: ClientClass,
}

/// Names one stored answer as it is: no longer valid once the answer is replaced or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStamp {
    slot: u32,
    generation: u32,
}

impl CacheStamp {
    /// Of an answer that follows from a view alone.
    pub(super) const fn for_view(number: u32) -> Self {
        Self {
            slot: NOWHERE,
            generation: number,
        }
    }

    pub(super) const fn of_view(self) -> Option<u32> {
        if self.slot == NOWHERE {
            Some(self.generation)
        } else {
            None
        }
    }
}

/// A stored answer.
#[derive(Clone, Debug)]
pub struct Hit {
    pub answer: Arc<Answer>,
    /// Whole seconds since it was stored.
    pub age: u32,
    /// `None`: each reply chooses anew (weighted), nothing may be kept of this one.
    pub stamp: Option<CacheStamp>,
    /// It is popular and about to expire: fetch it anew (R5.5). Said once.
    pub prefetch: bool,
}

#[derive(Clone, Debug)]
pub enum Look {
    Fresh(Hit),
    /// Expired, positive; `recheck` says whether a recheck is due, `givers` whose records it has.
    Stale {
        hit: Hit,
        recheck: bool,
        givers: Box<[u32]>,
    },
    Miss,
}

/// What happened, since the start (R7.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    pub hits_positive: u64,
    pub hits_negative: u64,
    pub misses: u64,
    pub served_stale: u64,
    pub evictions: u64,
    pub prefetches: u64,
}

/// How much is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSize {
    pub positive_entries: usize,
    pub negative_entries: usize,
    pub positive_octets: usize,
    pub negative_octets: usize,
}

/// Who had a part in an answer: numbers that the caller gives to upstreams.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Everybody who had a say (R3.9).
    pub all: Box<[u32]>,
    /// Those whose records it has (R5.3).
    pub givers: Box<[u32]>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

#[derive(Debug)]
pub struct Cache {
    key: HashKey,
    octets_max: usize,
    stale_max: Duration,
    /// First entry of each name.
    names: Index,
    slots: Vec<Slot>,
    free: Vec<u32>,
    queues: Queues,
    counters: CacheCounters,
}

impl Cache {
    /// `seeds` key the hash.
    pub fn new(octets_max: usize, stale_max: Duration, seeds: (u64, u64)) -> Self {
        Self {
            key: HashKey::new(seeds.0, seeds.1),
            octets_max,
            stale_max,
            names: Index::default(),
            slots: Vec::new(),
            free: Vec::new(),
            queues: Queues::default(),
            counters: CacheCounters::default(),
        }
    }

    pub const fn counters(&self) -> CacheCounters {
        self.counters
    }

    pub fn size(&self) -> CacheSize {
        let (positive_entries, positive_octets) = self.queues.size(Class::Positive);
        let (negative_entries, negative_octets) = self.queues.size(Class::Negative);
        CacheSize {
            positive_entries,
            negative_entries,
            positive_octets,
            negative_octets,
        }
    }

    /// The answer for a key, by `random` where there are several. Counts as a use.
    pub fn look(&mut self, key: Key<'_>, random: u64, now: Now) -> Look {
        let hash = self.key.hash_name(&key.question.name, 0);
        let Some(place) = self.best(hash, key, now) else {
            self.counters.misses += 1;
            return Look::Miss;
        };
        let Some((hit, is_fresh, recheck)) = self.use_entry(place, random, now) else {
            self.counters.misses += 1;
            return Look::Miss;
        };
        if is_fresh {
            Look::Fresh(hit)
        } else {
            self.counters.misses += 1;
            let givers = self.entry(place).map(|entry| entry.sources.givers.clone());
            Look::Stale {
                hit,
                recheck,
                givers: givers.unwrap_or_default(),
            }
        }
    }

    /// Whether a stored answer still is what `stamp` names and has not expired: its age, whole
    /// seconds. Counts as a use; `None` also when it is due to be fetched anew (R5.5): ask then.
    pub fn reuse(&mut self, stamp: CacheStamp, now: Now) -> Option<u32> {
        let slot = self.slots.get_mut(usize::try_from(stamp.slot).ok()?)?;
        if slot.generation != stamp.generation {
            return None;
        }
        let entry = slot.entry.as_mut()?;
        if entry.expires <= now.mono || entry.wants_prefetch(now) {
            return None;
        }
        entry.hits = entry.hits.saturating_add(1);
        let negative = entry.is_negative();
        let age = entry.age(now);
        self.queues.touch(stamp.slot);
        self.count_hit(negative);
        Some(age)
    }

    const fn count_hit(&mut self, negative: bool) {
        if negative {
            self.counters.hits_negative += 1;
        } else {
            self.counters.hits_positive += 1;
        }
    }

    /// Whether a name has fresh records of another type (R2.10).
    pub fn knows(&self, key: Key<'_>, rtype: RecordType, now: Now) -> bool {
        let hash = self.key.hash_name(&key.question.name, 0);
        self.chain(hash, &key.question.name).any(|place| {
            self.entry(place).is_some_and(|entry| {
                entry.is_for(key, rtype) && !entry.is_negative() && entry.expires > now.mono
            })
        })
    }

    /// Stores an answer for `life` from now on; zero removes what was stored. Returns the stamp of
    /// one that may be kept.
    pub fn store(
        &mut self,
        key: Key<'_>,
        choices: &[(u32, Arc<Answer>)],
        life: Duration,
        sources: Sources,
        now: Now,
    ) -> Option<CacheStamp> {
        let (_, first) = choices.first()?;
        let question = key.question;
        let hash = self.key.hash_name(&question.name, 0);
        let is_nx_domain = first.rcode == Rcode::NX_DOMAIN;
        let rtype = if is_nx_domain {
            NX_DOMAIN
        } else {
            question.rtype
        };
        self.make_way(hash, key, rtype, now);
        if life.is_zero() {
            return None;
        }
        let choices = match choices {
            [(_, only)] => Choices::One(Arc::clone(only)),
            several => Choices::Weighted(several.into()),
        };
        let mut entry = Entry {
            name: question.name.clone(),
            rtype,
            class: question.class,
            checks: checks(key.flags),
            asker: key.asker,
            hash,
            next: NOWHERE,
            choices,
            sources,
            stored: now.mono,
            expires: now.mono + life,
            rechecked: None,
            hits: 0,
            prefetched: false,
            octets: 0,
        };
        entry.octets = entry.measure();
        if entry.octets > self.octets_max / 10 {
            return None;
        }
        let stays = matches!(entry.choices, Choices::One(_));
        let place = self.insert(entry)?;
        self.shrink();
        let slot = self.slots.get(usize::try_from(place).ok()?)?;
        (stays && slot.entry.is_some()).then_some(CacheStamp {
            slot: place,
            generation: slot.generation,
        })
    }

    /// A recheck of an expired answer failed: it is served without another for a while (R5.3).
    pub fn not_confirmed(&mut self, key: Key<'_>, now: Now) {
        let hash = self.key.hash_name(&key.question.name, 0);
        let found = self.chain(hash, &key.question.name).find(|place| {
            self.entry(*place)
                .is_some_and(|entry| entry.is_for(key, key.question.rtype))
        });
        if let Some(entry) = found.and_then(|place| self.entry_mut(place)) {
            entry.rechecked = Some(now.mono);
            // Due again when it is asked for again.
            entry.prefetched = false;
        }
    }

    /// An expired answer whose giver says "no" now: it is told no more (R5.3).
    pub fn withdraw(&mut self, key: Key<'_>, now: Now) {
        let hash = self.key.hash_name(&key.question.name, 0);
        self.make_way(hash, key, key.question.rtype, now);
    }

    pub const fn count_stale(&mut self) {
        self.counters.served_stale += 1;
    }

    /// Removes everything stored about one name (R5.6).
    pub fn remove_name(&mut self, name: &Name) {
        let hash = self.key.hash_name(name, 0);
        let places: Vec<u32> = self.chain(hash, name).collect();
        for place in places {
            self.remove(place);
        }
    }

    pub fn clear(&mut self) {
        self.remove_where(|_, _| true);
    }

    /// Removes answers by their name and by who had a part in them (R3.9). Looks at all entries:
    /// for changes of configuration.
    pub fn remove_where(&mut self, gone: impl Fn(&Name, &[u32]) -> bool) {
        let is_gone = |entry: &Entry| gone(&entry.name, &entry.sources.all);
        let places: Vec<u32> = (0_u32..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.entry.as_ref().is_some_and(is_gone))
            .map(|(place, _)| place)
            .collect();
        for place in places {
            self.remove(place);
        }
    }

    /// The entry that answers a key: the type's own while fresh, else an NXDOMAIN, else the
    /// type's own although expired.
    fn best(&mut self, hash: u32, key: Key<'_>, now: Now) -> Option<u32> {
        let mut stale = None;
        let mut denial = None;
        let mut dead = None;
        for place in self.chain(hash, &key.question.name) {
            let Some(entry) = self.entry(place) else {
                continue;
            };
            if entry.is_for(key, key.question.rtype) {
                if entry.expires > now.mono {
                    return Some(place);
                }
                if !entry.is_negative() && entry.expires + self.stale_max > now.mono {
                    stale = Some(place);
                } else {
                    dead = Some(place);
                }
            } else if entry.is_for(key, NX_DOMAIN) && entry.expires > now.mono {
                denial = Some(place);
            }
        }
        if let Some(dead) = dead {
            self.remove(dead);
        }
        denial.or(stale)
    }

    fn use_entry(&mut self, place: u32, random: u64, now: Now) -> Option<(Hit, bool, bool)> {
        let slot = self.slots.get_mut(usize::try_from(place).ok()?)?;
        let generation = slot.generation;
        let entry = slot.entry.as_mut()?;
        let is_fresh = entry.expires > now.mono;
        entry.hits = entry.hits.saturating_add(1);
        let prefetch = is_fresh && entry.wants_prefetch(now);
        entry.prefetched |= prefetch;
        let recheck = entry
            .rechecked
            .is_none_or(|at| at + RECHECK_PAUSE <= now.mono);
        let (answer, stays) = match &entry.choices {
            Choices::One(answer) => (Arc::clone(answer), true),
            Choices::Weighted(choices) => {
                let at = choose(choices.iter().map(|(weight, _)| *weight), random);
                (Arc::clone(&choices.get(at)?.1), false)
            }
        };
        let negative = entry.is_negative();
        let hit = Hit {
            answer,
            age: entry.age(now),
            stamp: stays.then_some(CacheStamp {
                slot: place,
                generation,
            }),
            prefetch,
        };
        self.queues.touch(place);
        if is_fresh {
            self.count_hit(negative);
            self.counters.prefetches += u64::from(prefetch);
        }
        Some((hit, is_fresh, recheck))
    }

    /// Removes what a newer answer makes wrong: its predecessor; with an NXDOMAIN the expired
    /// entries of the name (R5.3), with anything else the name's NXDOMAIN. The oldest entry of a
    /// name that has too many goes as well.
    fn make_way(&mut self, hash: u32, key: Key<'_>, rtype: RecordType, now: Now) {
        let mut gone = Vec::new();
        let mut last = None;
        let mut count = 0;
        for place in self.chain(hash, &key.question.name) {
            let Some(entry) = self.entry(place) else {
                continue;
            };
            count += 1;
            last = Some(place);
            let is_wrong = entry.is_for(key, rtype)
                || entry.is_for(key, key.question.rtype)
                || entry.is_for(key, NX_DOMAIN)
                || (rtype == NX_DOMAIN && entry.is_of(key) && entry.expires <= now.mono);
            if is_wrong {
                gone.push(place);
            }
        }
        if gone.is_empty() && count >= PER_NAME_MAX {
            gone.extend(last);
        }
        for place in gone {
            self.remove(place);
        }
    }

    fn insert(&mut self, mut entry: Entry) -> Option<u32> {
        let hash = entry.hash;
        let first = self.names.find(hash, |place| {
            self.entry(place)
                .is_some_and(|known| known.name == entry.name)
        });
        let class = entry.class();
        let octets = entry.octets;
        entry.next = first.unwrap_or(NOWHERE);
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                let place = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot::default());
                place
            }
        };
        let slot = self.slots.get_mut(usize::try_from(place).ok()?)?;
        slot.entry = Some(entry);
        match first {
            Some(first) => self.names.replace(hash, first, place),
            None => self.names.insert(hash, place),
        }
        self.queues.insert(place, class, hash, octets);
        Some(place)
    }

    fn remove(&mut self, place: u32) {
        let Some(slot) = usize::try_from(place)
            .ok()
            .and_then(|at| self.slots.get_mut(at))
        else {
            return;
        };
        let Some(entry) = slot.entry.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.queues.remove(place);
        self.free.push(place);
        // Out of the chain of its name.
        let first = self.names.find(entry.hash, |first| {
            first == place
                || self
                    .entry(first)
                    .is_some_and(|known| known.name == entry.name)
        });
        match first {
            Some(first) if first == place && entry.next == NOWHERE => {
                self.names.remove(entry.hash, place);
            }
            Some(first) if first == place => self.names.replace(entry.hash, place, entry.next),
            Some(first) => {
                let mut at = first;
                while let Some(known) = self.entry_mut(at) {
                    if known.next == place {
                        known.next = entry.next;
                        break;
                    }
                    at = known.next;
                }
            }
            None => {}
        }
    }

    /// Evicts until everything fits.
    fn shrink(&mut self) {
        while let Some(place) = self.queues.victim(self.octets_max) {
            self.counters.evictions += 1;
            self.remove(place);
        }
    }

    fn chain(&self, hash: u32, name: &Name) -> impl Iterator<Item = u32> {
        let first = self.names.find(hash, |place| {
            self.entry(place).is_some_and(|entry| entry.name == *name)
        });
        core::iter::successors(first, |place| {
            let next = self.entry(*place)?.next;
            (next != NOWHERE).then_some(next)
        })
    }

    fn entry(&self, place: u32) -> Option<&Entry> {
        self.slots.get(usize::try_from(place).ok()?)?.entry.as_ref()
    }

    fn entry_mut(&mut self, place: u32) -> Option<&mut Entry> {
        self.slots
            .get_mut(usize::try_from(place).ok()?)?
            .entry
            .as_mut()
    }
}
