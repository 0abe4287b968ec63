//! Names: who is asked for a name, what their replies mean, and how they become one answer.
//!
//! [`plan()`] turns a question, the [`View`] of the network and the asker's class into an answer
//! at once or into owners to ask; [`classify`] turns each reply into a [`Vote`]; [`merge()`] turns
//! votes into an [`Answer`]. [`Resolution`] drives one question in time, [`Resolver`] all
//! questions of one view. Rule numbers (R1.1 and so on) are
//! those of `docs/dns.md`. Who holds a name in its domain (R1.10) is the registry's matter.

mod merge;
mod name;
mod plan;
mod record;
mod resolution;
mod resolver;
mod rtt;
mod special;
mod view;
mod vote;

#[cfg(test)]
mod tests;

pub use merge::{MERGED_RECORDS_MAX, merge};
pub use name::{LABEL_OCTETS_MAX, NAME_OCTETS_MAX, Name, NameError};
pub use plan::{Ask, Plan, plan};
pub use record::{
    Answer, CLASS_IN, Data, Decision, ExtendedError, Flags, Question, Rcode, Record, RecordType,
    Soa,
};
pub use resolution::{DEADLINE, Query, Resolution, ResolutionEffect, ResolutionInput, Transport};
pub use resolver::{Resolver, ResolverCounters, ResolverEffect, ResolverInput, WAITING_MAX};
pub use rtt::{Rtt, TRY_MAX, TRY_MIN};
pub use view::{
    ClientClass, DomainServer, LOCAL_TTL, LocalName, NEGATIVE_TTL, Policy, ResolverState,
    UNSURE_TTL, Upstream, View, Voter,
};
pub use vote::{Failure, Reply, Vote, classify};
