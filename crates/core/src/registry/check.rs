//! Whether kept records make sense: the invariants of a registry's store, looked at from
//! outside of the machine that writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::access::OWN_LABELS;
use super::object::{Endpoint, Marks};
use super::record::{Claim, Record};
use super::stock::is_stock;
use crate::allocator::{Lease, LeaseRecord};
use crate::document::{Chain, Document, SignedDocument};
use crate::ids::{DomainName, Generation, NetworkUid, RouterName, SpiffeId, WorkloadName};

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
    /// a backup lies over a lease that was taken back, an admin signed two contents of a version.
    pub notices: Vec<Violation>,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    holder: SpiffeId,
    exclusions: Vec<IpNet>,
}

#[derive(Debug)]
struct Network {
    chain: Chain,
    /// What every version said that any chain showed.
    contents: BTreeMap<u64, [u8; 32]>,
    leases: BTreeMap<RouterName, Held>,
    excluded: Vec<IpNet>,
    /// The highest generation of those that ended. What a snapshot says of it is left out: it
    /// stands before leases that are older.
    ended: Generation,
    names: BTreeMap<WorkloadName, (Claim, SpiffeId)>,
    readopting: bool,
}

#[derive(Debug, Default)]
struct Checker {
    /// Whose store it is, where that is known.
    own: Option<DomainName>,
    networks: BTreeMap<NetworkUid, Network>,
    services: BTreeSet<String>,
    endpoints: BTreeMap<String, (Arc<Endpoint>, SpiffeId)>,
    remote: BTreeMap<(String, String), NetworkUid>,
    report: Report,
}

/// Replays the records (journal in order, then objects) and looks at every step and at the end.
/// `own` is the domain whose registry kept them; where it is not known, less is told apart.
pub fn check(records: &[Record], own: Option<&DomainName>) -> Report {
    let mut checker = Checker {
        own: own.cloned(),
        ..Checker::default()
    };
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
            Record::Endpoint { endpoint, owner } => {
                self.object_name("endpoint", &endpoint.name);
                let held = (endpoint.clone(), owner.clone());
                self.endpoints.insert(endpoint.name.clone(), held);
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
                network.contents(chain, &mut self.report);
                let held = network.chain.document().version;
                network.chain = chain.clone();
                if version < held {
                    let what = format!("network {}: {version} after {held}", chain.uid());
                    self.broken("document versions only grow", what);
                }
            }
            None => {
                let links = chain.links().iter();
                let network = Network {
                    chain: chain.clone(),
                    contents: links.map(content).collect(),
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
                lease,
                holder,
                exclusions,
            } => {
                let held = Held {
                    lease: lease.clone(),
                    holder: holder.clone(),
                    exclusions: exclusions.clone(),
                };
                self.report.violations.extend(network.granted(held));
            }
            LeaseRecord::Ended { router } => {
                if let Some(held) = network.leases.remove(router) {
                    network.ended = network.ended.max(held.lease.generation);
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
            for held in network.leases.values() {
                place(document, &held.lease, self.own.as_ref(), report);
                report.violations.extend(
                    self.own
                        .as_ref()
                        .and_then(|own| held.stranger(document, own)),
                );
                report.notices.extend(network.exclusions_over(&held.lease));
            }
            for (claim, _) in network.names.values() {
                report.violations.extend(network.name(*uid, claim));
            }
        }
        self.one_domain();
        self.marks();
        self.others();
        let report = &mut self.report;
        report.records = records;
        report.networks = self.networks.len();
        report.services = self.services.len();
        report.endpoints = self.endpoints.len();
        report.remote = self.remote.len();
        self.report
    }

    /// Whatever the own domain is: it is one.
    fn one_domain(&mut self) {
        let leases = self
            .networks
            .values()
            .flat_map(|network| network.leases.values());
        let holders: BTreeSet<_> = leases
            .map(|held| held.holder.trust_domain().to_owned())
            .collect();
        let marks = self
            .endpoints
            .values()
            .filter_map(|(endpoint, _)| Marks::of(endpoint));
        let marked: BTreeSet<_> = marks.map(|marks| marks.domain.to_string()).collect();
        for (names, rule) in [
            (holders, "leases are held by identities of one trust domain"),
            (marked, "own endpoints are of one domain"),
        ] {
            if names.len() > 1 {
                let names: Vec<_> = names.into_iter().collect();
                self.broken(rule, names.join(", "));
            }
        }
    }

    /// What routers of the own domain say about themselves.
    fn marks(&mut self) {
        let mut wrong = Vec::new();
        for (name, (endpoint, owner)) in &self.endpoints {
            let mut keys = endpoint.labels.values().flat_map(|labels| labels.keys());
            if !keys.any(|key| key.starts_with(OWN_LABELS)) {
                continue;
            }
            let Some(marks) = Marks::of(endpoint) else {
                wrong.push(format!(
                    "{name} has an incomplete set of {OWN_LABELS} labels"
                ));
                continue;
            };
            if marks.name != *name {
                wrong.push(format!("{name} is marked as {}", marks.name));
            }
            if let Some(own) = self.own.as_ref().filter(|own| **own != marks.domain) {
                wrong.push(format!(
                    "{name} of {own} is marked as one of {}",
                    marks.domain
                ));
            }
            let Some(network) = self.networks.get(&marks.uid) else {
                wrong.push(format!(
                    "{name} is marked for network {}, which is unknown",
                    marks.uid
                ));
                continue;
            };
            match network.chain.document().members.get(&marks.domain) {
                Some(member) if member.trust_domain != owner.trust_domain() => wrong.push(format!(
                    "{name} of {} is registered by {owner}, which is not of {}",
                    marks.domain, member.trust_domain
                )),
                None => wrong.push(format!(
                    "{name} is marked as one of {}, which is no member of network {}",
                    marks.domain, marks.uid
                )),
                Some(_) => {}
            }
        }
        for what in wrong {
            self.broken("own endpoints are marked as what they are", what);
        }
    }

    fn others(&mut self) {
        let mut strangers = Vec::new();
        for ((domain, name), uid) in &self.remote {
            let members = self.networks.get(uid).map(|network| {
                let members = network.chain.document().members.keys();
                members.map(|member| member.to_string()).collect::<Vec<_>>()
            });
            let own = self.own.as_ref().is_some_and(|own| own.as_str() == domain);
            if own || !members.is_some_and(|members| members.contains(domain)) {
                strangers.push(format!("{name}@{domain} in network {uid}"));
            }
        }
        for what in strangers {
            self.broken("endpoints of other domains are members'", what);
        }
    }
}

fn content(link: &SignedDocument) -> (u64, [u8; 32]) {
    (link.document.version, Sha256::digest(&link.bytes).into())
}

impl Held {
    /// Leases are given to routers of the own domain.
    fn stranger(&self, document: &Document, own: &DomainName) -> Option<Violation> {
        let member = document.members.get(own)?;
        let stranger = self.holder.trust_domain() != member.trust_domain;
        stranger.then(|| Violation {
            rule: "leases are held by routers of the own domain",
            what: format!(
                "{} by {}, {own} is of {}",
                self.lease.router, self.holder, member.trust_domain
            ),
        })
    }
}

impl Network {
    /// Two contents of one version. A fork is refused where the held chain shows it; it shows no
    /// version that changed no key and was replaced.
    fn contents(&mut self, chain: &Chain, report: &mut Report) {
        let shown: BTreeMap<_, _> = self.chain.links().iter().map(content).collect();
        for (version, bytes) in chain.links().iter().map(content) {
            let before = self.contents.insert(version, bytes);
            if before.is_none_or(|before| before == bytes) {
                continue;
            }
            let found = Violation {
                rule: "a document version has one content",
                what: format!("version {version} of network {}", chain.uid()),
            };
            if shown.contains_key(&version) {
                report.violations.push(found);
            } else {
                report.notices.push(found);
            }
        }
    }

    /// Takes a grant; what is wrong with it.
    fn granted(&mut self, held: Held) -> Vec<Violation> {
        let lease = &held.lease;
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
        // A stock router, taken back after a restore, knows of no round.
        let of_no_round = lease.generation == Generation(0) && is_stock(&lease.router);
        let has_round = lease.generation > Generation(0) || of_no_round;
        if !form || !has_round || lease.uid != self.chain.uid() {
            violation("leases are well-formed", shown(lease));
        }
        match self.leases.get(&lease.router) {
            Some(Held { lease: before, .. }) if before.generation > lease.generation => {
                let what = format!("{} after {}", shown(lease), before.generation.0);
                violation("a router's generation never falls", what);
            }
            // What is taken back after a restore goes on in its round.
            None if lease.generation <= self.ended && !self.readopting && !of_no_round => {
                let what = format!("{}, {} had ended", shown(lease), self.ended.0);
                violation("a new lease stands above those that ended", what);
            }
            Some(_) | None => {}
        }
        let others = self
            .leases
            .values()
            .map(|other| &other.lease)
            .filter(|other| other.router != lease.router);
        for other in others {
            for prefix in lease.prefixes() {
                if other.prefixes().any(|range| overlap(&range, &prefix)) {
                    let what = format!("{} and {}", shown(lease), shown(other));
                    violation("leases never overlap", what);
                }
            }
        }
        self.leases.insert(lease.router.clone(), held);
        broken
    }

    /// An exclusion moves no lease, and a lease that is taken back after a restore may lie in
    /// one of the backup.
    fn exclusions_over(&self, lease: &Lease) -> Vec<Violation> {
        let others = self
            .leases
            .values()
            .filter(|other| other.lease.router != lease.router);
        let excluded = others.flat_map(|other| &other.exclusions);
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
fn place(document: &Document, lease: &Lease, own: Option<&DomainName>, report: &mut Report) {
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
        let mut owners = document
            .members
            .values()
            .filter(|member| member.owns(&prefix));
        let (placed, rule) = match own {
            Some(own) => (
                owners.any(|member| member.domain == *own),
                "leases lie in the domain's own blocks",
            ),
            None => (owners.next().is_some(), "leases lie in a member's block"),
        };
        if !placed {
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
