//! Services of several clusters under `clusterset.local` (R1.7), as KEP-1645 names them. Answers
//! from what the view knows of its own domain; the planner asks the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::answer::Turns;
use super::vote::{Positive, Vote};
use super::{Answer, Data, Decision, Name, Question, Rcode, Record, RecordType, View};

/// The zone's name.
pub const CLUSTERSET_ZONE: &str = "clusterset.local";
pub(super) const ZONE_LABELS: usize = 2;
/// Version of the specification of these names.
const DNS_VERSION: &str = "1.0.0";
/// TTL of services, seconds: what Kubernetes uses for its own.
pub const SERVICE_TTL: u32 = 5;

/// A service by its namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub kind: ServiceKind,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// One address per family for the whole set of clusters.
    Addressed { addresses: BTreeSet<IpAddr> },
    /// No address of its own: its endpoints are named one by one.
    Headless { endpoints: Vec<Endpoint> },
}

/// A named port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    pub port: u16,
}

/// One instance of a headless service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `None`: its first address with dashes.
    pub hostname: Option<String>,
    /// The cluster it runs in.
    pub cluster: String,
    pub addresses: BTreeSet<IpAddr>,
    pub ready: bool,
}

impl Endpoint {
    fn hostname(&self) -> Option<String> {
        self.hostname.clone().or_else(|| {
            let address = self.addresses.first()?;
            Some(address.to_string().replace(['.', ':'], "-"))
        })
    }
}

/// All services that are known, by name. Names are compared in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    services: BTreeMap<ServiceName, Service>,
}

impl Services {
    pub fn new(services: impl IntoIterator<Item = (ServiceName, Service)>) -> Self {
        let lower = |(name, service): (ServiceName, Service)| {
            let name = ServiceName {
                namespace: name.namespace.to_ascii_lowercase(),
                name: name.name.to_ascii_lowercase(),
            };
            (name, service)
        };
        Self {
            services: services.into_iter().map(lower).collect(),
        }
    }

    /// What is known of a name of this zone; `None`: it is not one.
    pub(super) fn vote(&self, question: &Question) -> Option<Vote> {
        let labels: Vec<&str> = below_zone(&question.name)?
            .into_iter()
            .map(|label| core::str::from_utf8(label).unwrap_or("?"))
            .collect();
        let zone = Name::parse(CLUSTERSET_ZONE).ok()?;
        Some(match self.find(&zone, &labels, question) {
            Found::Records {
                records,
                additional,
            } => Vote::Positive(Positive {
                records,
                additional,
                ..Positive::default()
            }),
            Found::Exists => Vote::no_data(),
            Found::Nothing => Vote::nx_domain(),
        })
    }

    fn find(&self, zone: &Name, labels: &[&str], question: &Question) -> Found {
        match labels {
            [] if question.rtype == RecordType::SOA => Found::Exists,
            [] | ["svc"] => Found::Exists,
            ["dns-version"] => {
                let mut data = vec![u8::try_from(DNS_VERSION.len()).unwrap_or(0)];
                data.extend(DNS_VERSION.bytes());
                let rtype = RecordType::TXT;
                only(
                    question,
                    vec![record(question, Data::Opaque { rtype, data })],
                )
            }
            [namespace, "svc"] => {
                let has = self
                    .services
                    .iter()
                    .any(|(name, service)| name.namespace == *namespace && service.is_there());
                if has { Found::Exists } else { Found::Nothing }
            }
            [left @ .., name, namespace, "svc"] => {
                let key = ServiceName {
                    namespace: (*namespace).to_owned(),
                    name: (*name).to_owned(),
                };
                match self.services.get(&key) {
                    Some(service) if service.is_there() => {
                        let owner = Name::from_labels(
                            [*name, *namespace, "svc"]
                                .iter()
                                .map(|label| label.as_bytes())
                                .chain(zone.labels()),
                        );
                        owner.map_or(Found::Nothing, |owner| service.find(&owner, left, question))
                    }
                    _ => Found::Nothing,
                }
            }
            _ => Found::Nothing,
        }
    }
}

/// An answer from what is known here alone.
pub(super) fn answer(view: &View, question: &Question, vote: Vote) -> Answer {
    let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Service);
    answer.authoritative = true;
    if let Vote::Positive(found) = vote {
        answer.turns = Turns::of_one(&found.records);
        answer.answers = found.records;
        answer.additional = found.additional;
        return answer;
    }
    if vote.is_nx_domain() {
        answer.rcode = Rcode::NX_DOMAIN;
    }
    answer.authority = vec![view.soa_above(&question.name, SERVICE_TTL)];
    answer
}

/// The labels of a name before those of the zone; `None`: it is not a name of the zone.
pub(super) fn below_zone(name: &Name) -> Option<Vec<&[u8]>> {
    const ZONE: [&[u8]; ZONE_LABELS] = [b"clusterset", b"local"];
    // Every question comes by here, and few go on.
    if !name.octets().ends_with(ZONE[1]) {
        return None;
    }
    let labels: Vec<&[u8]> = name.labels().collect();
    labels.strip_suffix(&ZONE).map(<[&[u8]]>::to_vec)
}

/// Who has a say about a name of the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Speakers {
    /// The zone's own structure, the same everywhere.
    Nobody,
    /// A service's name: every domain may have endpoints of it.
    All,
    /// The name of one cluster's endpoint: that cluster alone.
    One(String),
}

pub(super) fn speakers(name: &Name) -> Option<Speakers> {
    let labels = below_zone(name)?;
    Some(match labels.as_slice() {
        [_, svc] if *svc == b"svc" => Speakers::All,
        [left @ .., _, _, svc] if *svc == b"svc" => match left.last() {
            Some(cluster) if !cluster.starts_with(b"_") => {
                Speakers::One(String::from_utf8_lossy(cluster).into_owned())
            }
            _ => Speakers::All,
        },
        _ => Speakers::Nobody,
    })
}

enum Found {
    Records {
        records: Vec<Record>,
        additional: Vec<Record>,
    },
    /// The name, without such records.
    Exists,
    Nothing,
}

impl Service {
    /// A headless service without ready endpoints is no name.
    fn is_there(&self) -> bool {
        match &self.kind {
            ServiceKind::Addressed { .. } => true,
            ServiceKind::Headless { .. } => self.ready().next().is_some(),
        }
    }

    fn ready(&self) -> impl Iterator<Item = &Endpoint> {
        let endpoints: &[Endpoint] = match &self.kind {
            ServiceKind::Addressed { .. } => &[],
            ServiceKind::Headless { endpoints } => endpoints,
        };
        endpoints
            .iter()
            .filter(|endpoint| endpoint.ready && !endpoint.addresses.is_empty())
    }

    /// `left`: labels before the service's own name, `owner`.
    fn find(&self, owner: &Name, left: &[&str], question: &Question) -> Found {
        let addresses = |addresses: &BTreeSet<IpAddr>| {
            let records = addresses
                .iter()
                .map(|address| record(question, Data::from(*address)));
            only(question, records.collect())
        };
        match (left, &self.kind) {
            ([], ServiceKind::Addressed { addresses: own }) => addresses(own),
            ([], ServiceKind::Headless { .. }) => {
                let all = self.ready().flat_map(|endpoint| &endpoint.addresses);
                addresses(&all.copied().collect())
            }
            ([port, protocol], _) if port.starts_with('_') && protocol.starts_with('_') => {
                self.ports(owner, port, protocol, question)
            }
            ([protocol], _) if protocol.starts_with('_') => {
                let has = self
                    .ports
                    .iter()
                    .any(|port| is_label(protocol, &port.protocol));
                if has { Found::Exists } else { Found::Nothing }
            }
            ([hostname, cluster], ServiceKind::Headless { .. }) => {
                let named = self.ready().filter(|endpoint| {
                    endpoint.cluster.eq_ignore_ascii_case(cluster)
                        && endpoint
                            .hostname()
                            .is_some_and(|name| name.eq_ignore_ascii_case(hostname))
                });
                let all: BTreeSet<IpAddr> = named
                    .flat_map(|endpoint| &endpoint.addresses)
                    .copied()
                    .collect();
                if all.is_empty() {
                    Found::Nothing
                } else {
                    addresses(&all)
                }
            }
            // Only the root of endpoints' names: no cluster has a name for the service.
            ([cluster], ServiceKind::Headless { .. }) => {
                let mut ready = self.ready();
                if ready.any(|endpoint| endpoint.cluster.eq_ignore_ascii_case(cluster)) {
                    Found::Exists
                } else {
                    Found::Nothing
                }
            }
            _ => Found::Nothing,
        }
    }

    fn ports(&self, owner: &Name, port: &str, protocol: &str, question: &Question) -> Found {
        let named = self
            .ports
            .iter()
            .find(|known| is_label(port, &known.name) && is_label(protocol, &known.protocol));
        let Some(named) = named else {
            return Found::Nothing;
        };
        if !matches!(question.rtype, RecordType::SRV | RecordType::ANY) {
            return Found::Exists;
        }
        let targets: Vec<(Name, &BTreeSet<IpAddr>)> = match &self.kind {
            ServiceKind::Addressed { addresses } => vec![(owner.clone(), addresses)],
            ServiceKind::Headless { .. } => self
                .ready()
                .filter_map(|endpoint| {
                    let cluster = owner.child(&endpoint.cluster).ok()?;
                    let target = cluster.child(&endpoint.hostname()?).ok()?;
                    Some((target, &endpoint.addresses))
                })
                .collect(),
        };
        let mut records = Vec::new();
        let mut additional = Vec::new();
        for (target, addresses) in targets {
            additional.extend(addresses.iter().map(|address| Record {
                owner: target.clone(),
                ttl: SERVICE_TTL,
                data: Data::from(*address),
            }));
            let data = Data::Srv {
                priority: 0,
                weight: 100,
                port: named.port,
                target,
            };
            records.push(record(question, data));
        }
        Found::Records {
            records,
            additional,
        }
    }
}

/// `_name` against a name.
fn is_label(label: &str, name: &str) -> bool {
    label
        .strip_prefix('_')
        .is_some_and(|label| label.eq_ignore_ascii_case(name))
}

fn record(question: &Question, data: Data) -> Record {
    Record {
        owner: question.name.clone(),
        ttl: SERVICE_TTL,
        data,
    }
}

/// The records of the asked type; for ANY those of one type (RFC 8482).
fn only(question: &Question, records: Vec<Record>) -> Found {
    let wanted = match question.rtype {
        RecordType::ANY => records.first().map(|record| record.data.rtype()),
        rtype => Some(rtype),
    };
    let records: Vec<Record> = records
        .into_iter()
        .filter(|record| Some(record.data.rtype()) == wanted)
        .collect();
    if records.is_empty() {
        Found::Exists
    } else {
        Found::Records {
            records,
            additional: Vec::new(),
        }
    }
}
