//! Whether kept records make sense: the invariants of a registry's store, looked at from
//! outside of the machine that writes it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::record::{Claim, Record};
use crate::allocator::{Lease, LeaseRecord};
use crate::document::{Chain, Document};
use crate::ids::{Generation, NetworkUid, RouterName, SpiffeId, WorkloadName};

/// Prefix lengths of every lease.
const PREFIX_LEN6: u8 = 96;
const PREFIX_LEN4_MAX: u8 = 30;

/// What is wrong, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule is broken, in a few words.
    pub rule: &'static str,
    pub what: String,
}

/// What a store holds, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub records: usize,
    pub networks: usize,
    pub leases: usize,
    pub names: usize,
    pub services: usize,
    pub endpoints: usize,
    /// Endpoints of other domains.
    pub remote: usize,
    /// Networks in the period after a restore.
    pub readopting: usize,
    /// No way of the registry leads there.
    pub violations: Vec<Violation>,
    /// Worth a look: a later document excludes a lease or takes its block away, an exclusion of
    /// a backup lies over a lease that was taken back.
    pub notices: Vec<Violation>,
}

#[derive(Debug)]
struct Network {
    chain: Chain,
    leases: BTreeMap<RouterName, (Lease, Vec<IpNet>)>,
    excluded: Vec<IpNet>,
    /// The highest generation of those that ended. What a snapshot says of it is left out: it
    /// stands before leases that are older.
    ended: Generation,
    names: BTreeMap<WorkloadName, (Claim, SpiffeId)>,
    readopting: bool,
}

#[derive(Debug, Default)]
struct Checker {
    networks: BTreeMap<NetworkUid, Network>,
    services: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    remote: BTreeMap<(String, String), NetworkUid>,
    report: Report,
}

/// Replays the records (journal in order, then objects) and looks at every step and at the end.
pub fn check(records: &[Record]) -> Report {
    let mut checker = Checker::default();
    for record in records {
        checker.take(record);
    }
    checker.finish(records.len())
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

impl Checker {
    fn broken(&mut self, rule: &'static str, what: String) {
        self.report.violations.push(Violation { rule, what });
    }

    fn take(&mut self, record: &Record) {
        match record {
            Record::Document { chain } => self.document(chain),
            Record::Lease { uid, record } => self.lease(*uid, record),
            Record::Name { uid, claim, by } => match self.networks.get_mut(uid) {
                Some(network) => {
                    let held = (claim.clone(), by.clone());
                    network.names.insert(claim.name.clone(), held);
                }
                None => self.unknown(*uid, "a name"),
            },
            Record::NameReleased { uid, name } => match self.networks.get_mut(uid) {
                Some(network) => drop(network.names.remove(name)),
                None => self.unknown(*uid, "a released name"),
            },
            Record::Service { service, .. } => {
                self.object_name("service", &service.name);
                self.services.insert(service.name.clone());
            }
            Record::ServiceRemoved { name } => {
                self.services.remove(name);
            }
            Record::Endpoint { endpoint, .. } => {
                self.object_name("endpoint", &endpoint.name);
                self.endpoints.insert(endpoint.name.clone());
            }
            Record::EndpointRemoved { name } => {
                self.endpoints.remove(name);
            }
            Record::Remote {
                uid,
                domain,
                endpoint,
            } => {
                self.object_name("endpoint of another domain", endpoint.name());
                let key = (domain.to_string(), endpoint.name().to_owned());
                self.remote.insert(key, *uid);
            }
            Record::RemoteRemoved { domain, name } => {
                self.remote.remove(&(domain.to_string(), name.clone()));
            }
        }
    }

    fn unknown(&mut self, uid: NetworkUid, what: &str) {
        let what = format!("{what} of network {uid}, of which no document was recorded before");
        self.broken("a record belongs to a known network", what);
    }

    fn object_name(&mut self, kind: &str, name: &str) {
        if !(1..=253).contains(&name.len()) || name.contains('@') {
            let what = format!("the {kind} {name:?}");
            self.broken("objects are well-formed", what);
        }
    }

    fn document(&mut self, chain: &Chain) {
        if let Err(error) = Chain::verify(chain.links().to_vec()) {
            let what = format!("network {}: {error}", chain.uid());
            self.broken("document chains verify", what);
        }
        let version = chain.document().version;
        match self.networks.get_mut(&chain.uid()) {
            Some(network) => {
                let held = network.chain.document().version;
                network.chain = chain.clone();
                if version < held {
                    let what = format!("network {}: {version} after {held}", chain.uid());
                    self.broken("document versions only grow", what);
                }
            }
            None => {
                let network = Network {
                    chain: chain.clone(),
                    leases: BTreeMap::new(),
                    excluded: Vec::new(),
                    ended: Generation(0),
                    names: BTreeMap::new(),
                    readopting: false,
                };
                self.networks.insert(chain.uid(), network);
            }
        }
    }

    fn lease(&mut self, uid: NetworkUid, record: &LeaseRecord) {
        let Some(network) = self.networks.get_mut(&uid) else {
            return self.unknown(uid, "a lease");
        };
        match record {
            LeaseRecord::Granted {
                lease, exclusions, ..
            } => {
                let broken = network.granted(lease, exclusions);
                self.report.violations.extend(broken);
            }
            LeaseRecord::Ended { router } => {
                if let Some((lease, _)) = network.leases.remove(router) {
                    network.ended = network.ended.max(lease.generation);
                }
            }
            LeaseRecord::Floor { .. } => {}
            LeaseRecord::Excluded { range } => network.excluded.push(*range),
            LeaseRecord::Included { range } => network.excluded.retain(|held| held != range),
            LeaseRecord::Restored { .. } => network.readopting = true,
            LeaseRecord::Readopted => network.readopting = false,
        }
    }

    fn finish(mut self, records: usize) -> Report {
        for (uid, network) in &self.networks {
            let document = network.chain.document();
            let report = &mut self.report;
            report.leases += network.leases.len();
            report.names += network.names.len();
            report.readopting += usize::from(network.readopting);
            for (lease, _) in network.leases.values() {
                place(document, lease, report);
                report.notices.extend(network.exclusions_over(lease));
            }
            for (claim, _) in network.names.values() {
                report.violations.extend(network.name(*uid, claim));
            }
        }
        let mut strangers = Vec::new();
        for ((domain, name), uid) in &self.remote {
            let members = self.networks.get(uid).map(|network| {
                let members = network.chain.document().members.keys();
                members.map(|member| member.to_string()).collect::<Vec<_>>()
            });
            if !members.is_some_and(|members| members.contains(domain)) {
                strangers.push(format!("{name}@{domain} in network {uid}"));
            }
        }
        for what in strangers {
            self.broken("endpoints of other domains are members'", what);
        }
        let report = &mut self.report;
        report.records = records;
        report.networks = self.networks.len();
        report.services = self.services.len();
        report.endpoints = self.endpoints.len();
        report.remote = self.remote.len();
        self.report
    }
}

impl Network {
    /// Takes a grant; what is wrong with it.
    fn granted(&mut self, lease: &Lease, exclusions: &[IpNet]) -> Vec<Violation> {
        let mut broken = Vec::new();
        let mut violation = |rule, what| broken.push(Violation { rule, what });
        let shown = |lease: &Lease| {
            let prefixes: Vec<_> = lease.prefixes().map(|prefix| prefix.to_string()).collect();
            format!(
                "{} of {} (generation {})",
                prefixes.join(" and "),
                lease.router,
                lease.generation.0
            )
        };
        let form = lease.prefixes().all(|prefix| prefix.trunc() == prefix)
            && lease.prefix6.prefix_len() == PREFIX_LEN6
            && lease
                .prefix4
                .is_none_or(|prefix| prefix.prefix_len() <= PREFIX_LEN4_MAX);
        if !form || lease.generation == Generation(0) || lease.uid != self.chain.uid() {
            violation("leases are well-formed", shown(lease));
        }
        match self.leases.get(&lease.router) {
            Some((before, _)) if before.generation > lease.generation => {
                let what = format!("{} after {}", shown(lease), before.generation.0);
                violation("a router's generation never falls", what);
            }
            // What is taken back after a restore goes on in its round.
            None if lease.generation <= self.ended && !self.readopting => {
                let what = format!("{}, {} had ended", shown(lease), self.ended.0);
                violation("a new lease stands above those that ended", what);
            }
            Some(_) | None => {}
        }
        let others = self
            .leases
            .values()
            .filter(|(other, _)| other.router != lease.router);
        for (other, _) in others {
            for prefix in lease.prefixes() {
                if other.prefixes().any(|range| overlap(&range, &prefix)) {
                    let what = format!("{} and {}", shown(lease), shown(other));
                    violation("leases never overlap", what);
                }
            }
        }
        self.leases
            .insert(lease.router.clone(), (lease.clone(), exclusions.to_vec()));
        broken
    }

    /// An exclusion moves no lease, and a lease that is taken back after a restore may lie in
    /// one of the backup.
    fn exclusions_over(&self, lease: &Lease) -> Vec<Violation> {
        let others = self
            .leases
            .values()
            .filter(|(other, _)| other.router != lease.router);
        let excluded = others.flat_map(|(_, excluded)| excluded);
        let over = excluded
            .chain(&self.excluded)
            .filter(|range| lease.prefixes().any(|prefix| overlap(range, &prefix)));
        over.map(|range| Violation {
            rule: "leases avoid exclusions",
            what: format!("the lease of {}, excluded by {range}", lease.router),
        })
        .collect()
    }

    fn name(&self, uid: NetworkUid, claim: &Claim) -> Option<Violation> {
        let leased = self.leases.contains_key(&claim.router);
        (!leased).then(|| Violation {
            rule: "a name lives as long as its router's lease",
            what: format!(
                "{} of network {uid}: {} holds no lease",
                claim.name, claim.router
            ),
        })
    }
}

/// Where a lease lies by the newest document.
fn place(document: &Document, lease: &Lease, report: &mut Report) {
    for prefix in lease.prefixes() {
        let what = || format!("{prefix} of {} in network {}", lease.router, document.name);
        let in_pool = match prefix {
            IpNet::V4(prefix) => document.pool4.is_some_and(|pool| pool.contains(&prefix)),
            IpNet::V6(prefix) => document.pool6.contains(&prefix),
        };
        if !in_pool {
            let rule = "leases lie in the network's pools";
            report.violations.push(Violation { rule, what: what() });
        }
        if !document.members.values().any(|member| member.owns(&prefix)) {
            let rule = "leases lie in a member's block";
            report.notices.push(Violation { rule, what: what() });
        }
        let excluded = document.policy.exclusions.iter();
        for range in excluded.filter(|range| overlap(range, &prefix)) {
            let what = format!("{}, excluded by {range}", what());
            let rule = "leases avoid the document's exclusions";
            report.notices.push(Violation { rule, what });
        }
    }
}
