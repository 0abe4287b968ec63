//! When what is due: an ordered queue of keys, so that the next deadline costs nothing to
//! know and a moved one costs little.

use std::collections::BTreeSet;

use crate::time::Mono;

/// Keys with at most one deadline each, which their owner keeps beside them.
#[derive(Clone, Debug)]
pub(crate) struct Deadlines<K> {
    queue: BTreeSet<(Mono, K)>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self {
            queue: BTreeSet::new(),
        }
    }
}

impl<K: Ord + Clone> Deadlines<K> {
    /// Moves the deadline of `key`; None is none.
    pub(crate) fn set(&mut self, key: &K, before: Option<Mono>, after: Option<Mono>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.queue.remove(&(before, key.clone()));
        }
        if let Some(after) = after {
            self.queue.insert((after, key.clone()));
        }
    }

    /// The earliest one and whose it is.
    pub(crate) fn first(&self) -> Option<(Mono, &K)> {
        self.queue.first().map(|(at, key)| (*at, key))
    }

    pub(crate) fn next(&self) -> Option<Mono> {
        self.first().map(|(at, _)| at)
    }

    /// Earliest first.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> + '_ {
        self.queue.iter().map(|(_, key)| key)
    }

    /// Those that are due, earliest first.
    pub(crate) fn due(&self, now: Mono) -> impl Iterator<Item = &K> + '_ {
        let due = self.queue.iter().take_while(move |(at, _)| *at <= now);
        due.map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_due_at_its_last_deadline_only() {
        let (early, late) = (Mono::from_secs(1), Mono::from_secs(2));
        let mut deadlines = Deadlines::default();
        deadlines.set(&"a", None, Some(early));
        deadlines.set(&"b", None, Some(late));
        assert_eq!(deadlines.first(), Some((early, &"a")));
        deadlines.set(&"a", Some(early), Some(late));
        assert_eq!(deadlines.next(), Some(late));
        assert_eq!(deadlines.due(early).count(), 0);
        assert_eq!(deadlines.due(late).collect::<Vec<_>>(), [&"a", &"b"]);
        deadlines.set(&"a", Some(late), None);
        deadlines.set(&"b", Some(late), None);
        assert_eq!(deadlines.next(), None);
    }
}
