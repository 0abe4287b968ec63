//! What is counted.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use vl3_core::registry::{Refusal, RegistryMachine, Reply};
use vl3_runtime::Metrics;

use crate::limits::Met;

#[derive(Clone, Debug, Default)]
pub(crate) struct RegistryMetrics {
    records: Counter,
    pub(crate) appends: Counter,
    pub(crate) rewrites: Counter,
    pub(crate) watches_cut: Counter,
    pub(crate) takeovers: Counter,
    pub(crate) takeovers_late: Counter,
    pub(crate) stepped_back: Counter,
    role: Family<RoleLabel, Gauge>,
    pub(crate) alarms: Counter,
    pub(crate) met: Met,
    replies: Family<Outcome, Counter>,
    leases: Gauge,
    names: Gauge,
    endpoints: Gauge,
    remote_bytes: Gauge,
    remote_refused: Gauge,
    watches: Gauge,
    domains_connected: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl RegistryMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        let registered = own.clone();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("registry");
            registry.register("journal_records", "Records written", registered.records);
            registry.register(
                "journal_appends",
                "Commits, each with one sync of the disk",
                registered.appends,
            );
            registry.register(
                "journal_rewrites",
                "Snapshots that replaced the journal",
                registered.rewrites,
            );
            registry.register(
                "watches_cut",
                "Watchers that were too slow",
                registered.watches_cut,
            );
            registry.register(
                "replica_takeovers",
                "How often this replica became the active one",
                registered.takeovers,
            );
            registry.register(
                "replica_takeovers_late",
                "How often its claim went while it read the store",
                registered.takeovers_late,
            );
            registry.register(
                "replica_steps_back",
                "How often another one took its place, or may have",
                registered.stepped_back,
            );
            registry.register(
                "replica_role",
                "1 at the role of this replica: sole, starting, following, active",
                registered.role,
            );
            registry.register(
                "alarms",
                "Things that an operator must see",
                registered.alarms,
            );
            registry.register("calls", "Calls by outcome", registered.replies);
            registry.register(
                "limits_met",
                "Calls that were refused by a limit, by its name",
                registered.met.0,
            );
            registry.register("leases", "Leases held", registered.leases);
            registry.register("names", "Names held", registered.names);
            registry.register(
                "endpoints",
                "Endpoints known, those of other domains included",
                registered.endpoints,
            );
            registry.register(
                "remote_endpoint_bytes",
                "Memory that endpoints of other domains take",
                registered.remote_bytes,
            );
            registry.register(
                "remote_endpoints_refused",
                "Endpoints of other domains not taken for want of room, since the start",
                registered.remote_refused,
            );
            registry.register("watches", "Watches open", registered.watches);
            registry.register(
                "domains_connected",
                "Other domains with a sync stream",
                registered.domains_connected,
            );
        });
        own
    }

    pub(crate) fn count_records(&self, count: usize) {
        self.records.inc_by(u64::try_from(count).unwrap_or(0));
    }

    pub(crate) fn count_reply(&self, result: &Result<Reply, Refusal>) {
        if let Err(refusal) = result {
            self.met.count(refusal);
        }
        let outcome = match result {
            Ok(_) => "done",
            Err(Refusal::Invalid { .. } | Refusal::UnknownNetwork { .. }) => "invalid",
            Err(Refusal::Denied { .. }) => "denied",
            Err(Refusal::Lease(_)) => "lease_refused",
            Err(Refusal::Limit { .. }) => "limit",
            Err(Refusal::Unavailable { .. }) => "unavailable",
        };
        self.replies.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn show_role(&self, now: &'static str) {
        for role in ["sole", "starting", "following", "active"] {
            let is_now = i64::from(role == now);
            self.role.get_or_create(&RoleLabel { role }).set(is_now);
        }
    }

    pub(crate) fn observe(&self, machine: &RegistryMachine) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let counts = machine.counts();
        self.leases.set(count(counts.leases));
        self.names.set(count(counts.names));
        self.endpoints.set(count(counts.endpoints));
        self.remote_bytes.set(count(counts.remote_bytes));
        self.remote_refused
            .set(i64::try_from(counts.remote_refused).unwrap_or(i64::MAX));
        self.met
            .reach("changes per second of a domain", counts.streams_too_fast);
        self.met.reach(
            "records of other domains that wait",
            counts.streams_congested,
        );
        self.watches.set(count(counts.watchers));
        self.domains_connected.set(count(counts.domains_connected));
    }
}
