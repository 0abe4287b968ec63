//! What is really so, kept by the world and seen by no machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vl3_core::Mono;
use vl3_core::allocator::Lease;
use vl3_core::document::Chain;
use vl3_core::ids::Generation;
use vl3_core::router::RouterId;

#[derive(Debug, Default)]
pub struct Truth {
    /// Echo requests under way: number -> (from, to) as workloads.
    pub tried: BTreeMap<u64, (usize, usize)>,
    /// Pairs (from, to, family) whose echo came back in the current round of trials.
    pub reached: BTreeSet<(usize, usize, bool)>,
    pub delivered: u64,
    pub answered: u64,
    /// What each router process was last granted, as long as it keeps its disk.
    pub granted: BTreeMap<usize, Lease>,
    /// Highest generation at which a process (in one life of its disk) held a link to a router.
    pub consumed: BTreeMap<(usize, RouterId), Generation>,
    /// Questions of workloads under way.
    pub asked: BTreeMap<u64, Asked>,
    /// (asker, target) pairs whose canonical name was answered right in the current round.
    pub resolved: BTreeSet<(usize, usize)>,
    /// Askers that were told that a name does not exist, as it should be.
    pub denied: BTreeSet<(usize, Wanted)>,
    /// Every address that a workload ever had.
    pub had: BTreeMap<usize, BTreeSet<IpAddr>>,
    pub names_answered: u64,
    /// Workloads that were killed and stay dead.
    pub dead: BTreeSet<usize>,
    /// The document that a person published, and where.
    pub published: Option<(usize, Chain)>,
}

/// A question of a workload and what a right answer is.
#[derive(Clone, Debug)]
pub struct Asked {
    pub asker: usize,
    pub wanted: Wanted,
    pub at: Mono,
    /// The name was live when the question was asked, and in which lives of workload and
    /// router process.
    pub live: Option<(u32, usize, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// The canonical name of that workload.
    Canonical(usize),
    /// The shared name of that workload.
    Shared(usize),
    /// A name that nobody has.
    Nobody,
    /// A name of another network under this network's zone.
    OtherNetwork(usize),
}
