//! A job as transactions: one where it fits, else several, each of which leaves a valid state.

use etcd_client::{Compare, CompareOp, DeleteOptions, TxnOp};

use super::entries::encode_entry;
use super::keys::{Head, Keys};
use crate::store::history::{replaced, surplus};
use crate::store::{Entry, Job, Swap};

/// etcd refuses more than 128 operations (`--max-txn-ops`); one of them is the head's.
const OPERATIONS_MAX: usize = 100;

/// etcd refuses requests of more than 1.5 MiB (`--max-request-bytes`).
const BYTES_MAX: usize = 1024 * 1024;

/// One transaction.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) compares: Vec<Compare>,
    pub(super) operations: Vec<TxnOp>,
    /// As it stands afterwards.
    pub(super) head: Head,
    /// How many swaps of the job it carries out.
    pub(super) swaps: usize,
}

/// What a rewrite has to know about what stands there.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Number and entry.
    pub(super) journal: Vec<(u64, Entry)>,
    /// Number and size in bytes.
    pub(super) history: Vec<(u64, usize)>,
}

/// Gathers operations until a transaction is full.
struct Planner {
    parts: Vec<Part>,
    open: Part,
    bytes: usize,
}

impl Planner {
    fn new(head: &Head, batch: String) -> Self {
        let head = Head {
            batch,
            part: 0,
            ..head.clone()
        };
        Self {
            parts: Vec::new(),
            open: Part {
                compares: Vec::new(),
                operations: Vec::new(),
                head,
                swaps: 0,
            },
            bytes: 0,
        }
    }

    /// Begins another transaction where this one would become too large.
    fn room_for(&mut self, bytes: usize) {
        let full = self.open.operations.len() >= OPERATIONS_MAX || self.bytes + bytes > BYTES_MAX;
        if full {
            self.close();
        }
        self.bytes += bytes;
    }

    /// Ends the transaction, if it does anything.
    fn close(&mut self) {
        if self.open.operations.is_empty() {
            return;
        }
        self.open.head.part += 1;
        self.parts.push(self.open.clone());
        self.open.compares.clear();
        self.open.operations.clear();
        self.open.swaps = 0;
        self.bytes = 0;
    }

    fn put(&mut self, key: String, value: Vec<u8>) {
        self.room_for(key.len() + value.len());
        self.open.operations.push(TxnOp::put(key, value, None));
    }

    fn delete(&mut self, key: String, options: Option<DeleteOptions>) {
        self.room_for(key.len());
        self.open.operations.push(TxnOp::delete(key, options));
    }

    /// Its parts before it, where it is large.
    fn entry(&mut self, key: String, entry: &Entry) {
        for (key, value) in encode_entry(key, entry) {
            self.put(key, value);
        }
    }

    /// The next entry of that generation, and its number: used once the entry stands as a whole.
    fn append(&mut self, keys: &Keys, generation: u64, entry: &Entry) -> u64 {
        let number = self.open.head.next;
        self.entry(keys.entry(generation, number), entry);
        self.open.head.next = number + 1;
        number
    }

    fn swap(&mut self, keys: &Keys, swap: &Swap) {
        let key = keys.object(&swap.key);
        let compare = match swap.expected {
            Some(revision) => {
                let revision = i64::try_from(revision).unwrap_or(i64::MAX);
                Compare::mod_revision(key.clone(), CompareOp::Equal, revision)
            }
            None => Compare::create_revision(key.clone(), CompareOp::Equal, 0),
        };
        match &swap.value {
            Some(value) => self.put(key, value.clone()),
            None => self.delete(key, None),
        }
        self.open.compares.push(compare);
        self.open.swaps += 1;
    }

    /// The snapshot in a generation of its own, which counts from the last transaction on.
    fn rewrite(&mut self, keys: &Keys, snapshot: &[Entry], standing: Standing) {
        let Standing {
            journal,
            mut history,
        } = standing;
        let (numbers, entries): (Vec<u64>, Vec<Entry>) = journal.into_iter().unzip();
        let mut snapshot = snapshot.to_vec();
        for position in replaced(&entries, &mut snapshot) {
            let (number, entry) = (numbers[position], &entries[position]);
            // Numbers are used once: a rewrite that crashed and is done again writes the same.
            self.entry(keys.replaced(number), entry);
            history.push((number, entry.bytes.len()));
        }
        let (old, first) = (self.open.head.generation, self.open.head.next);
        for entry in &snapshot {
            self.append(keys, old + 1, entry);
        }
        self.close();
        self.open.head.generation = old + 1;
        self.open.head.first = first;
        let prefix = DeleteOptions::new().with_prefix();
        self.delete(keys.journal(old), Some(prefix));
        let sizes: Vec<_> = history.iter().map(|(_, size)| *size).collect();
        if let Some((last, _)) = surplus(&sizes)
            .checked_sub(1)
            .and_then(|at| history.get(at))
        {
            let range = DeleteOptions::new().with_range(keys.replaced(*last + 1));
            self.delete(keys.history(), Some(range));
        }
        self.close();
    }
}

/// The transactions of a job; `standing` is asked for where it has a rewrite.
pub(super) fn plan(keys: &Keys, head: &Head, job: &Job, standing: Option<Standing>) -> Vec<Part> {
    let mut planner = Planner::new(head, format!("{:032x}", job.id));
    let appended: Vec<_> = job
        .append
        .iter()
        .map(|entry| (planner.append(keys, head.generation, entry), entry.clone()))
        .collect();
    for swap in &job.swaps {
        planner.swap(keys, swap);
    }
    if let (Some(snapshot), Some(mut standing)) = (&job.rewrite, standing) {
        standing.journal.extend(appended);
        planner.close();
        planner.rewrite(keys, snapshot, standing);
    }
    planner.close();
    planner.parts
}
