//! What goes wrong between and inside registries, and how often it did.

use core::fmt;
use std::collections::BTreeMap;

use super::answers::Answer;

/// Everything that this world does to its registries and their clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A call is lost, its answer is lost, a call is handled twice.
    CallLost,
    ReplyLost,
    CallTwice,
    /// Two domains cannot talk for a while, or one of them is not heard.
    Partition,
    OneWay,
    /// A stream ends.
    StreamLost,
    /// What is said of a domain takes seconds; its streams end again and again.
    SlowDomain,
    Flapping,
    /// A registry stops between two effects and returns with its disk.
    Crash,
    /// It stopped while an append was under way.
    TornAppend,
    /// It returns with the disk of an earlier moment.
    Restore,
    /// Its wall clock jumps.
    ClockStep,
    /// A registry says what is not so.
    LieDomain,
    LieAddress,
    LieNetwork,
    LieTooMany,
    LieHuge,
    LieSequence,
    MemberAdded,
    MemberRevoked,
    KeyRotated,
    /// Two contents of one version of a document.
    DocumentConflict,
    /// A reader that is too slow is cut and watches again.
    WatchCut,
    /// A router starts with an empty state directory.
    RouterRestart,
    /// An identity of another domain asks what it may see, or watches it.
    Stranger,
    StrangerWatch,
    /// A write to the disk fails; the registry stops and starts again.
    DiskFailed,
    /// A router is silent for longer than its lease lives, then goes on.
    RouterSilent,
    /// A second process acts under a router's name.
    RouterTwice,
    /// Somebody else asks for a router's name, or for a name that a workload holds.
    OthersName,
    /// A router asks for as much as the whole block.
    Greedy,
    /// A stock router leases.
    StockRouter,
    /// The operator ends a lease, excludes a range or takes that back.
    LeaseEnded,
    Excluded,
    /// Names are released, services come and go.
    NameReleased,
    ServiceChanged,
}

impl Fault {
    pub const ALL: [Self; 36] = [
        Self::CallLost,
        Self::ReplyLost,
        Self::CallTwice,
        Self::Partition,
        Self::OneWay,
        Self::StreamLost,
        Self::SlowDomain,
        Self::Flapping,
        Self::Crash,
        Self::TornAppend,
        Self::Restore,
        Self::ClockStep,
        Self::LieDomain,
        Self::LieAddress,
        Self::LieNetwork,
        Self::LieTooMany,
        Self::LieHuge,
        Self::LieSequence,
        Self::MemberAdded,
        Self::MemberRevoked,
        Self::KeyRotated,
        Self::DocumentConflict,
        Self::WatchCut,
        Self::RouterRestart,
        Self::Stranger,
        Self::StrangerWatch,
        Self::DiskFailed,
        Self::RouterSilent,
        Self::RouterTwice,
        Self::OthersName,
        Self::Greedy,
        Self::StockRouter,
        Self::LeaseEnded,
        Self::Excluded,
        Self::NameReleased,
        Self::ServiceChanged,
    ];

    pub fn parse(name: &str) -> Option<Self> {
        let named = |fault: &Self| format!("{fault:?}") == name;
        Self::ALL.into_iter().find(named)
    }
}

/// How often each fault was injected, and each refusal met, and in how many seeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<Fault, (u64, u64)>, BTreeMap<Answer, (u64, u64)>);

impl Tally {
    /// Within one seed.
    pub fn count(&mut self, fault: Fault) {
        let (times, seeds) = self.0.entry(fault).or_default();
        (*times, *seeds) = (*times + 1, 1);
    }

    /// Within one seed.
    pub fn met(&mut self, answer: Answer) {
        let (times, seeds) = self.1.entry(answer).or_default();
        (*times, *seeds) = (*times + 1, 1);
    }

    pub fn add_met(&mut self, answer: Answer, times: u64, seeds: u64) {
        if times == 0 {
            return;
        }
        let sum = self.1.entry(answer).or_default();
        *sum = (sum.0 + times, sum.1 + seeds);
    }

    pub fn of_met(&self, answer: Answer) -> (u64, u64) {
        self.1.get(&answer).copied().unwrap_or_default()
    }

    pub fn add(&mut self, fault: Fault, times: u64, seeds: u64) {
        if times == 0 {
            return;
        }
        let sum = self.0.entry(fault).or_default();
        *sum = (sum.0 + times, sum.1 + seeds);
    }

    pub fn add_all(&mut self, other: &Self) {
        for (fault, (times, seeds)) in &other.0 {
            self.add(*fault, *times, *seeds);
        }
        for (answer, (times, seeds)) in &other.1 {
            self.add_met(*answer, *times, *seeds);
        }
    }

    pub fn of(&self, fault: Fault) -> (u64, u64) {
        self.0.get(&fault).copied().unwrap_or_default()
    }
}

/// One line per fault, injected or not, and per refusal, met or not.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in Fault::ALL {
            let (times, seeds) = self.of(fault);
            let name = format!("{fault:?}");
            writeln!(f, "  {name:<20}{times:>10} times in {seeds} seeds")?;
        }
        writeln!(f, "refusals met:")?;
        for answer in Answer::ALL {
            let (times, seeds) = self.of_met(answer);
            let name = format!("{answer:?}");
            writeln!(f, "  {name:<20}{times:>10} times in {seeds} seeds")?;
        }
        Ok(())
    }
}
