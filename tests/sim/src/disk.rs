//! A virtual disk: what was appended and synced survives a crash, what was not may or may not.

use vl3_core::Rng;

/// The journal of one node.
#[derive(Clone, Debug)]
pub struct Disk<R> {
    durable: Vec<R>,
    /// What was started and is not yet reported done, in order.
    pending: Vec<Write<R>>,
    backup: Option<Vec<R>>,
}

#[derive(Clone, Debug)]
enum Write<R> {
    Append(Vec<R>),
    /// Replaces the whole journal, atomically.
    Rewrite(Vec<R>),
}

impl<R> Default for Disk<R> {
    fn default() -> Self {
        Self {
            durable: Vec::new(),
            pending: Vec::new(),
            backup: None,
        }
    }
}

impl<R: Clone> Disk<R> {
    /// Starts an append. The caller schedules [`Disk::sync_first`] for its completion.
    pub fn start_append(&mut self, records: Vec<R>) {
        self.pending.push(Write::Append(records));
    }

    /// As [`Disk::start_append`], for a snapshot in place of everything.
    pub fn start_rewrite(&mut self, records: Vec<R>) {
        self.pending.push(Write::Rewrite(records));
    }

    /// The oldest write is on the disk.
    pub fn sync_first(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match self.pending.remove(0) {
            Write::Append(records) => self.durable.extend(records),
            Write::Rewrite(records) => self.durable = records,
        }
    }

    /// The machine is gone. Of the appends under way a prefix may have reached the disk,
    /// although nobody was told.
    pub fn crash(&mut self, rng: &mut Rng) {
        let reached = rng.below(self.pending.len() as u64 + 1);
        for _ in 0..reached {
            self.sync_first();
        }
        self.pending.clear();
    }

    /// The writes under way failed: nothing of them is there.
    pub fn fail(&mut self) {
        self.pending.clear();
    }

    /// Another disk in its place. The backup stands elsewhere and remains.
    pub fn lose(&mut self) {
        self.durable.clear();
        self.pending.clear();
    }

    pub fn back_up(&mut self) {
        self.backup = Some(self.durable.clone());
    }

    /// Puts the backup in place of what is there; false when none was made.
    pub fn restore(&mut self) -> bool {
        let Some(backup) = self.backup.clone() else {
            return false;
        };
        self.durable = backup;
        self.pending.clear();
        true
    }

    /// Nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    pub fn records(&self) -> &[R] {
        &self.durable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_keeps_what_was_synced_and_at_most_a_prefix_of_the_rest() {
        for seed in 0..50 {
            let mut disk = Disk::default();
            disk.start_append(vec![1]);
            disk.sync_first();
            disk.start_append(vec![2]);
            disk.start_append(vec![3]);
            disk.crash(&mut Rng::new(seed));
            assert!(
                [&[1][..], &[1, 2], &[1, 2, 3]].contains(&disk.records()),
                "{disk:?}"
            );
        }
    }

    #[test]
    fn a_restore_brings_back_the_state_of_the_backup() {
        let mut disk = Disk::default();
        assert!(!disk.restore());
        disk.start_append(vec![1]);
        disk.sync_first();
        disk.back_up();
        disk.start_append(vec![2]);
        disk.sync_first();
        assert!(disk.restore());
        assert_eq!(disk.records(), [1]);
    }
}
