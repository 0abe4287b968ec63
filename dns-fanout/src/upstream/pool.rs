//! The sockets to one server, each on a port of its own (R3.2).

use rand::{Rng, RngExt};

#[derive(Debug)]
pub(super) struct Pool {
    places: Vec<Option<u32>>,
    /// The place that this round's queries leave by: one call sends them all.
    drawn: Option<(u64, usize)>,
}

impl Pool {
    pub(super) fn new(size: usize) -> Self {
        Self {
            places: vec![None; size.max(1)],
            drawn: None,
        }
    }

    /// Uniform over the places, anew with each round of the engine, leaving out the one that the
    /// try before went by (R3.6).
    pub(super) fn draw(&mut self, before: Option<u32>, round: u64, random: &mut impl Rng) -> usize {
        let size = self.places.len();
        let avoided = before.and_then(|at| self.places.iter().position(|place| *place == Some(at)));
        if let Some(avoided) = avoided.filter(|_| size > 1) {
            return (avoided + random.random_range(1..size)) % size;
        }
        match self.drawn {
            Some((of, place)) if of == round => place,
            _ => {
                let place = random.random_range(0..size);
                self.drawn = Some((round, place));
                place
            }
        }
    }

    pub(super) fn get(&self, place: usize) -> Option<u32> {
        self.places.get(place).copied().flatten()
    }

    /// Gives a place a socket; returns the one before.
    pub(super) fn put(&mut self, place: usize, at: u32) -> Option<u32> {
        self.places.get_mut(place)?.replace(at)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = u32> + '_ {
        self.places.iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::BTreeSet;

    #[test]
    fn r3_2_rounds_draw_from_all_sockets_and_a_repeat_leaves_by_another() {
        let mut random = StdRng::seed_from_u64(1);
        let mut pool = Pool::new(16);
        for place in 0..16 {
            pool.put(place, u32::try_from(place).unwrap() + 100);
        }
        let drawn: BTreeSet<usize> = (0..400)
            .map(|round| pool.draw(None, round, &mut random))
            .collect();
        assert_eq!(drawn.len(), 16);
        for round in 0..400 {
            let first = pool.draw(None, round, &mut random);
            assert_eq!(
                pool.draw(None, round, &mut random),
                first,
                "one round, one socket"
            );
            let at = pool.get(first);
            assert_ne!(pool.draw(at, round, &mut random), first);
        }
    }
}
