//! A table from hashes to places, with a keyed hash: no order to depend on, nobody can choose
//! names that fall together, and the same seed gives the same table.

use super::Name;

/// Secret of one table's hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct HashKey {
    start: u64,
    end: u64,
}

impl HashKey {
    pub(super) const fn new(start: u64, end: u64) -> Self {
        // Weak seeds, as tests have them, become strong multipliers.
        Self {
            start: start ^ 0xa076_1d64_78bd_642f,
            end: end ^ 0xe703_7ed1_a0b4_28db,
        }
    }

    /// Of octets and a number; multiplies and folds 16 octets at a time.
    pub(super) fn hash(self, octets: &[u8], number: u64) -> u32 {
        let mut state = fold(self.start ^ number, self.end);
        let (chunks, rest) = octets.as_chunks::<16>();
        for chunk in chunks {
            let (low, high) = chunk.split_at(8);
            state = fold(word(low) ^ self.end, word(high) ^ state);
        }
        let (low, high) = rest.split_at(rest.len().min(8));
        state = fold(word(low) ^ self.end, word(high) ^ state);
        let length = u64::try_from(octets.len()).unwrap_or(u64::MAX);
        let folded = fold(state ^ length, self.end);
        let [.., a, b, c, d] = folded.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    pub(super) fn hash_name(self, name: &Name, number: u64) -> u32 {
        self.hash(name.octets(), number)
    }
}

/// At most eight octets, little-endian.
fn word(octets: &[u8]) -> u64 {
    let mut word = [0_u8; 8];
    for (to, from) in word.iter_mut().zip(octets) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

/// The two halves of a product together: every bit of both factors counts.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let low = u64::try_from(product & u128::from(u64::MAX)).unwrap_or(0);
    let high = u64::try_from(product >> 64).unwrap_or(0);
    low ^ high
}

/// A place that stands for none.
pub(super) const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Cell {
    hash: u32,
    place: u32,
}

const EMPTY: Cell = Cell {
    hash: 0,
    place: NOWHERE,
};

/// Open addressing with linear probes; at most seven eighths full, so a probe is short. What
/// stands at a place is compared by the caller.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    cells: Vec<Cell>,
    count: usize,
}

impl Index {
    pub(super) const fn new() -> Self {
        Self {
            cells: Vec::new(),
            count: 0,
        }
    }

    /// The place under `hash` for which `is_it`.
    pub(super) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.probe(hash)
            .map(|(_, cell)| cell)
            .find(|cell| cell.hash == hash && is_it(cell.place))
            .map(|cell| cell.place)
    }

    pub(super) fn insert(&mut self, hash: u32, place: u32) {
        if (self.count + 1) * 8 > self.cells.len() * 7 {
            self.grow();
        }
        self.count += 1;
        let at = self.free_cell(hash);
        if let Some(cell) = self.cells.get_mut(at) {
            *cell = Cell { hash, place };
        }
    }

    /// Puts `to` in the place of `from`.
    pub(super) fn replace(&mut self, hash: u32, from: u32, to: u32) {
        let found = self
            .probe(hash)
            .find(|(_, cell)| cell.hash == hash && cell.place == from);
        if let Some((at, _)) = found
            && let Some(cell) = self.cells.get_mut(at)
        {
            cell.place = to;
        }
    }

    pub(super) fn remove(&mut self, hash: u32, place: u32) {
        let found = self
            .probe(hash)
            .find(|(_, cell)| cell.hash == hash && cell.place == place);
        let Some((mut hole, _)) = found else {
            return;
        };
        self.count -= 1;
        // Cells that were pushed past the hole move back into it.
        let mask = self.cells.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let cell = self.cells[at];
            if cell.place == NOWHERE {
                break;
            }
            let home = self.home(cell.hash);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.cells[hole] = cell;
                hole = at;
            }
        }
        self.cells[hole] = EMPTY;
    }

    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    fn home(&self, hash: u32) -> usize {
        usize::try_from(hash).unwrap_or(0) & (self.cells.len() - 1)
    }

    /// The cells from the home of `hash` up to the first empty one.
    fn probe(&self, hash: u32) -> impl Iterator<Item = (usize, Cell)> {
        let home = if self.cells.is_empty() {
            0
        } else {
            self.home(hash)
        };
        (0..self.cells.len()).map_while(move |step| {
            let at = (home + step) & (self.cells.len() - 1);
            let cell = self.cells[at];
            (cell.place != NOWHERE).then_some((at, cell))
        })
    }

    fn free_cell(&self, hash: u32) -> usize {
        let mask = self.cells.len() - 1;
        let mut at = self.home(hash);
        while self.cells[at].place != NOWHERE {
            at = (at + 1) & mask;
        }
        at
    }

    fn grow(&mut self) {
        let size = (self.cells.len() * 2).max(16);
        let before = core::mem::replace(&mut self.cells, vec![EMPTY; size]);
        for cell in before {
            if cell.place != NOWHERE {
                let at = self.free_cell(cell.hash);
                self.cells[at] = cell;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rng::Rng;

    #[test]
    fn an_index_holds_what_was_put_into_it_and_not_removed() {
        let mut rng = Rng::new(3);
        let mut index = Index::default();
        let mut model = BTreeMap::new();
        for round in 0..20_000_u32 {
            // Few hashes: long probes, many that share a home.
            let hash = u32::try_from(rng.below(97)).unwrap() * 16;
            if rng.one_in(2) {
                index.insert(hash, round);
                model.insert(round, hash);
            } else if let Some((&place, &hash)) =
                model.iter().nth(usize::try_from(rng.below(50)).unwrap())
            {
                index.remove(hash, place);
                model.remove(&place);
            }
            assert_eq!(index.len(), model.len());
        }
        for (place, hash) in &model {
            assert_eq!(index.find(*hash, |at| at == *place), Some(*place));
        }
        index.replace(
            model[model.keys().next().unwrap()],
            *model.keys().next().unwrap(),
            1 << 30,
        );
        assert_eq!(
            index.find(model[model.keys().next().unwrap()], |at| at == 1 << 30),
            Some(1 << 30)
        );
        assert_eq!(index.find(1, |_| true), None);
    }

    #[test]
    fn the_hash_depends_on_every_octet_the_length_and_the_key() {
        let key = HashKey::new(1, 2);
        let base = b"a-name-that-is-longer-than-two-words.example".to_vec();
        let mut seen = std::collections::BTreeSet::from([key.hash(&base, 0)]);
        for at in 0..base.len() {
            let mut other = base.clone();
            other[at] ^= 1;
            assert!(seen.insert(key.hash(&other, 0)), "octet {at}");
        }
        assert!(seen.insert(key.hash(&base[1..], 0)));
        assert!(seen.insert(key.hash(&base, 1)));
        assert!(seen.insert(HashKey::new(2, 2).hash(&base, 0)));
        assert!(seen.insert(HashKey::new(1, 5).hash(&base, 0)));
        assert_ne!(key.hash(b"", 0), key.hash(b"\0", 0));
    }
}
