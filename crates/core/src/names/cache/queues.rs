//! Which entry goes when room is needed: S3-FIFO per class (Yang et al., SOSP 2023). What is new
//! passes through a small queue first and reaches the main one only if it was used meanwhile, so
//! names that are asked once push out each other. Names that come back soon after they went are
//! remembered by their hash and go to the main queue at once.

use crate::names::index::NOWHERE;

/// Answers that say no have a share of their own (R5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Positive,
    Negative,
}

/// Part of a class's octets that its small queue may take before it gives.
const SMALL_PART: usize = 10;
/// Part of everything that negative answers may take.
const NEGATIVE_PART: usize = 3;
/// Uses that are remembered of an entry.
const USES_MAX: u8 = 3;
/// Hashes remembered of entries that went, a power of two.
const GHOSTS: usize = 1 << 16;

pub(super) const NODE_OCTETS: usize = core::mem::size_of::<Node>();

#[derive(Clone, Copy, Debug)]
struct Node {
    before: u32,
    after: u32,
    hash: u32,
    octets: u32,
    queue: u8,
    uses: u8,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    /// The newest.
    head: u32,
    /// The oldest.
    tail: u32,
    count: usize,
    octets: usize,
}

const NO_QUEUE: u8 = u8::MAX;

const SMALL: [u8; 2] = [0, 2];
const MAIN: [u8; 2] = [1, 3];

/// Four queues over the places of the cache.
#[derive(Debug)]
pub(super) struct Queues {
    nodes: Vec<Node>,
    queues: [Queue; 4],
    ghosts: Vec<u32>,
}

impl Default for Queues {
    fn default() -> Self {
        let empty = Queue {
            head: NOWHERE,
            tail: NOWHERE,
            count: 0,
            octets: 0,
        };
        Self {
            nodes: Vec::new(),
            queues: [empty; 4],
            ghosts: Vec::new(),
        }
    }
}

impl Queues {
    /// Entries and octets.
    pub(super) fn size(&self, class: Class) -> (usize, usize) {
        let queues = [SMALL, MAIN].map(|kind| &self.queues[usize::from(kind[class as usize])]);
        (
            queues.iter().map(|queue| queue.count).sum(),
            queues.iter().map(|queue| queue.octets).sum(),
        )
    }

    pub(super) fn insert(&mut self, place: u32, class: Class, hash: u32, octets: usize) {
        let at = index(place);
        if at >= self.nodes.len() {
            let none = Node {
                before: NOWHERE,
                after: NOWHERE,
                hash: 0,
                octets: 0,
                queue: NO_QUEUE,
                uses: 0,
            };
            self.nodes.resize(at + 1, none);
        }
        let came_back = self.forget_ghost(hash);
        let kind = if came_back { MAIN } else { SMALL };
        self.nodes[at].hash = hash;
        self.nodes[at].octets = u32::try_from(octets).unwrap_or(u32::MAX);
        self.nodes[at].uses = 0;
        self.link(place, kind[class as usize]);
    }

    pub(super) fn touch(&mut self, place: u32) {
        if let Some(node) = self.nodes.get_mut(index(place)) {
            node.uses = (node.uses + 1).min(USES_MAX);
        }
    }

    pub(super) fn remove(&mut self, place: u32) {
        self.unlink(place);
    }

    /// The entry that must go, until everything fits; `None` then.
    pub(super) fn victim(&mut self, octets_max: usize) -> Option<u32> {
        let negative = self.size(Class::Negative).1;
        let positive = self.size(Class::Positive).1;
        if negative > octets_max / NEGATIVE_PART {
            return self.oldest(Class::Negative, octets_max / NEGATIVE_PART);
        }
        (negative + positive > octets_max)
            .then(|| self.oldest(Class::Positive, octets_max))
            .flatten()
    }

    /// The victim of one class; moves entries that were used meanwhile. Ends: each step moves one
    /// from small to main, or takes one use from one in main.
    fn oldest(&mut self, class: Class, octets_max: usize) -> Option<u32> {
        let (small, main) = (SMALL[class as usize], MAIN[class as usize]);
        loop {
            let from_small = self.queues[usize::from(small)].octets > octets_max / SMALL_PART
                || self.queues[usize::from(main)].count == 0;
            let queue = if from_small { small } else { main };
            let place = self.queues[usize::from(queue)].tail;
            let node = *self.nodes.get(index(place))?;
            if node.uses == 0 {
                if from_small {
                    self.remember_ghost(node.hash);
                }
                return Some(place);
            }
            self.unlink(place);
            // What passed the small queue starts anew; in the main one each round costs a use.
            self.nodes[index(place)].uses = if from_small { 0 } else { node.uses - 1 };
            self.link(place, main);
        }
    }

    fn link(&mut self, place: u32, queue: u8) {
        let at = index(place);
        let list = &mut self.queues[usize::from(queue)];
        let head = list.head;
        list.head = place;
        if list.tail == NOWHERE {
            list.tail = place;
        }
        list.count += 1;
        list.octets += index(self.nodes[at].octets);
        self.nodes[at].queue = queue;
        self.nodes[at].before = NOWHERE;
        self.nodes[at].after = head;
        if let Some(head) = self.nodes.get_mut(index(head)) {
            head.before = place;
        }
    }

    fn unlink(&mut self, place: u32) {
        let Some(node) = self.nodes.get(index(place)).copied() else {
            return;
        };
        let Some(list) = self.queues.get_mut(usize::from(node.queue)) else {
            return;
        };
        list.count -= 1;
        list.octets -= index(node.octets);
        if list.head == place {
            list.head = node.after;
        }
        if list.tail == place {
            list.tail = node.before;
        }
        if let Some(before) = self.nodes.get_mut(index(node.before)) {
            before.after = node.after;
        }
        if let Some(after) = self.nodes.get_mut(index(node.after)) {
            after.before = node.before;
        }
        self.nodes[index(place)].queue = NO_QUEUE;
    }

    fn remember_ghost(&mut self, hash: u32) {
        if self.ghosts.is_empty() {
            self.ghosts = vec![0; GHOSTS];
        }
        self.ghosts[index(hash) % GHOSTS] = hash;
    }

    /// Whether a name went not long ago.
    fn forget_ghost(&mut self, hash: u32) -> bool {
        let Some(ghost) = self.ghosts.get_mut(index(hash) % GHOSTS) else {
            return false;
        };
        let known = *ghost == hash && hash != 0;
        if known {
            *ghost = 0;
        }
        known
    }
}

fn index(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}
