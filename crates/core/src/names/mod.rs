//! Names: who is asked for a name, what their replies mean, and how they become one answer.
//!
//! [`plan()`] turns a question, the [`View`] of the network and the asker's class into an answer
//! at once or into owners to ask; [`classify`] turns each reply into a [`Vote`]; [`merge()`] turns
//! votes into an [`Answer`]. [`Resolution`] drives one question in time, [`Resolver`] all
//! questions of one view: it stores answers ([`Cache`]), knows which upstreams live
//! ([`Condition`]) and what each client may ask ([`ClientLimits`]). Rule numbers (R1.1 and so
//! on) are those of `docs/dns.md`. Who holds a name in its domain (R1.10) is the registry's matter.

mod answer;
mod cache;
mod clients;
mod explain;
mod health;
mod index;
mod limits;
mod loops;
mod memory;
mod merge;
mod name;
mod overlay;
mod pending;
mod plan;
mod record;
mod resolution;
mod resolver;
mod rtt;
mod services;
mod special;
mod suffix;
mod union;
mod upstream;
mod view;
mod vote;

#[cfg(test)]
mod tests;

pub use answer::{Answer, Decision, ExtendedError, Rcode, Reading, Turns};
pub use cache::{
    CACHE_OCTETS, Cache, CacheCounters, CacheSize, CacheStamp, Hit, Key, Look, STALE_MAX,
    STALE_TTL, Sources,
};
pub use clients::ByPrefix;
pub use explain::{STEPS_MAX, Step, Trace};
pub use health::{Condition, FAILURES_MAX, IN_FLIGHT_MAX, LOOP_PAUSE, PROBE_PAUSE, UpstreamStatus};
pub use limits::{CLIENTS_MAX, ClientLimits};
pub use loops::{HOPS_MAX, Hop, LoopMark};
pub use merge::{Ballot, MERGED_RECORDS_MAX, Merge, Merged, merge};
pub use name::{LABEL_OCTETS_MAX, NAME_OCTETS_MAX, Name, NameError};
pub use overlay::{
    ClientClass, DNS_PORT, DomainServer, LOCAL_TTL, LocalName, Network, NetworkParts, ResolverState,
};
pub use plan::{Ask, Plan, plan};
pub use record::{CLASS_IN, Data, Flags, Question, Record, RecordType, Soa};
pub use resolution::{
    Asked, DEADLINE, Manner, Query, Resolution, ResolutionEffect, ResolutionInput,
};
pub use resolver::{
    Admission, Answered, Asking, Resolver, ResolverCounters, ResolverEffect, ResolverInput,
    ResolverSettings, WAITING_MAX,
};
pub use rtt::{Rtt, TRY_MAX, TRY_MIN};
pub use services::{
    CLUSTERSET_ZONE, Endpoint, SERVICE_TTL, Service, ServiceKind, ServiceName, ServicePort,
    Services,
};
pub use upstream::{Owner, Preference, Tags, Transport, Upstream, UpstreamId, Voter};
pub use view::{NEGATIVE_TTL, PREFER_WAIT, Policy, UNSURE_TTL, View, ViewError, ViewParts};
pub use vote::{Classed, Failure, Negative, Positive, Reply, Vote, classify};
