//! Events in virtual time. Equal times come out in the order in which they went in.

use std::collections::BTreeMap;

use vl3_core::Mono;

#[derive(Debug)]
pub struct Queue<E> {
    events: BTreeMap<(Mono, u64), E>,
    sequence: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            events: BTreeMap::new(),
            sequence: 0,
        }
    }
}

impl<E> Queue<E> {
    pub fn push(&mut self, at: Mono, event: E) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    pub fn next_at(&self) -> Option<Mono> {
        self.events.keys().next().map(|(at, _)| *at)
    }

    pub fn pop(&mut self) -> Option<(Mono, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_first_then_first_come() {
        let mut queue = Queue::default();
        queue.push(Mono(2), 'c');
        queue.push(Mono(1), 'a');
        queue.push(Mono(1), 'b');
        let order: String = std::iter::from_fn(|| queue.pop())
            .map(|(_, event)| event)
            .collect();
        assert_eq!(order, "abc");
    }
}
