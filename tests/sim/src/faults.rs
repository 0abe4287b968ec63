//! What can go wrong, how often in which profile, and how often it did.

use core::fmt;
use std::collections::BTreeMap;

use vl3_core::Rng;

/// Everything that the world does to its inhabitants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A message is lost (a call fails, a stream breaks, a packet disappears).
    Drop,
    /// A message takes a hundred times as long.
    Delay,
    /// A datagram arrives after its successor.
    Reorder,
    /// A message is handled twice.
    Duplicate,
    /// An answer is lost although the request was carried out.
    LostReply,
    /// Two domains cannot talk for a while.
    Partition,
    /// A registry stops and returns with its disk.
    RegistryCrash,
    RegistryLosesDisk,
    /// A registry returns with the disk of an earlier day.
    StaleRestore,
    /// A router stops and returns with its disk.
    RouterCrash,
    RouterLosesDisk,
    /// A second router process of the same name, with a state directory of its own.
    TwoInstances,
    /// Wall time jumps, forwards or back.
    ClockStep,
    /// A router announces prefixes of another domain.
    ForeignPrefix,
    /// A domain answers or registers names and addresses of another.
    ForeignName,
    /// A workload goes without Close.
    WorkloadDies,
    /// A packet with a source that its sender does not own.
    ForgedPacket,
}

impl Fault {
    pub const ALL: [Self; 17] = [
        Self::Drop,
        Self::Delay,
        Self::Reorder,
        Self::Duplicate,
        Self::LostReply,
        Self::Partition,
        Self::RegistryCrash,
        Self::RegistryLosesDisk,
        Self::StaleRestore,
        Self::RouterCrash,
        Self::RouterLosesDisk,
        Self::TwoInstances,
        Self::ClockStep,
        Self::ForeignPrefix,
        Self::ForeignName,
        Self::WorkloadDies,
        Self::ForgedPacket,
    ];
}

/// How often each fault was injected; a simulation that injects nothing proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<Fault, u64>);

impl Tally {
    pub fn count(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (fault, times) in &other.0 {
            *self.0.entry(*fault).or_default() += times;
        }
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }
}

/// One line per fault, injected or not.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in Fault::ALL {
            writeln!(f, "  {:<20}{:>10}", format!("{fault:?}"), self.of(fault))?;
        }
        Ok(())
    }
}

/// Which faults a run draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Nothing goes wrong: what fails here is simply broken.
    Calm,
    /// Messages suffer, machines live.
    Lossy,
    /// Messages, partitions and crashes with their disks.
    Crashes,
    /// Everything.
    Hostile,
    /// One of the others, by seed.
    Mixed,
}

impl Profile {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "calm" => Self::Calm,
            "lossy" => Self::Lossy,
            "crashes" => Self::Crashes,
            "hostile" => Self::Hostile,
            "mixed" => Self::Mixed,
            _ => return None,
        })
    }

    /// The profile of one run.
    pub fn settle(self, rng: &mut Rng) -> Self {
        match self {
            Self::Mixed => match rng.below(10) {
                0 => Self::Calm,
                1 | 2 => Self::Lossy,
                3..=5 => Self::Crashes,
                _ => Self::Hostile,
            },
            settled => settled,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Lossy => "lossy",
            Self::Crashes => "crashes",
            Self::Hostile => "hostile",
            Self::Mixed => "mixed",
        }
    }

    /// Whether this profile injects the fault at all.
    pub const fn injects(self, fault: Fault) -> bool {
        match fault {
            Fault::Drop | Fault::Delay | Fault::Reorder | Fault::Duplicate | Fault::LostReply => {
                !matches!(self, Self::Calm)
            }
            Fault::Partition | Fault::RegistryCrash | Fault::RouterCrash | Fault::WorkloadDies => {
                matches!(self, Self::Crashes | Self::Hostile)
            }
            Fault::RegistryLosesDisk
            | Fault::StaleRestore
            | Fault::RouterLosesDisk
            | Fault::TwoInstances
            | Fault::ClockStep
            | Fault::ForeignPrefix
            | Fault::ForeignName
            | Fault::ForgedPacket => matches!(self, Self::Hostile),
        }
    }
}
