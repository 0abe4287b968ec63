//! Records as key and JSON: a key per entry, so the newest replaces what it replaces.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use vl3_core::Wall;
use vl3_core::allocator::Lease;
use vl3_core::ids::{Generation, RouterName};
use vl3_core::router::{
    ConnectionId, Endpoint, Record, RouterId,
    state::{Assignment, Identity, StoredLink, StoredMechanism, StoredRoute, StoredWorkload},
};

/// The key and its new value; unset: the entry goes.
pub(super) type Entry = (String, Option<Vec<u8>>);

#[derive(Serialize, Deserialize)]
struct LeaseEntry {
    uid: String,
    router: String,
    instance: String,
    generation: u64,
    prefix4: Option<Ipv4Net>,
    prefix6: Ipv6Net,
    confirmed: u64,
}

#[derive(Serialize, Deserialize)]
struct IdentityEntry {
    id: String,
    name: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct AssignmentEntry {
    identity: IdentityEntry,
    addresses: Vec<IpAddr>,
    reserved_until: Option<u64>,
    named: bool,
}

#[derive(Serialize, Deserialize)]
struct EndpointEntry {
    remote: SocketAddr,
    local: Option<IpAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum MechanismEntry {
    Tun,
    Wireguard {
        public_key: String,
        endpoint: Option<EndpointEntry>,
    },
}

#[derive(Serialize, Deserialize)]
struct WorkloadEntry {
    owner: String,
    identity: IdentityEntry,
    mechanism: MechanismEntry,
    mtu: u16,
}

#[derive(Serialize, Deserialize)]
struct LinkEntry {
    peer: String,
    generation: u64,
    instance: String,
    public_key: String,
    endpoint: Option<EndpointEntry>,
    mtu: u16,
}

#[derive(Serialize, Deserialize)]
struct RouteEntry {
    prefix: IpNet,
    preference: u32,
    mtu: u16,
}

pub(super) fn encode(record: &Record) -> anyhow::Result<Vec<Entry>> {
    let one = |key: String, value: Option<Vec<u8>>| vec![(key, value)];
    Ok(match record {
        Record::Document { bytes } => one("document".to_owned(), Some(bytes.clone())),
        Record::Lease { lease, confirmed } => {
            let value = lease
                .as_ref()
                .map(|lease| json(&lease_entry(lease, *confirmed)))
                .transpose()?;
            one("lease".to_owned(), value)
        }
        Record::Assigned {
            identity,
            assignment,
        } => {
            let value = assignment
                .as_ref()
                .map(|assignment| {
                    json(&AssignmentEntry {
                        identity: identity_entry(identity),
                        addresses: assignment.addresses.clone(),
                        reserved_until: assignment.reserved_until.map(|wall| wall.0),
                        named: assignment.named,
                    })
                })
                .transpose()?;
            let name = identity.name.as_ref().map_or("", |name| name.as_str());
            one(format!("assigned/{}/{name}", identity.id), value)
        }
        Record::Workload {
            connection,
            workload,
        } => {
            let value = workload
                .as_ref()
                .map(|workload| json(&workload_entry(workload)))
                .transpose()?;
            one(format!("workload/{connection}"), value)
        }
        Record::Link { router, link } => {
            let value = link
                .as_ref()
                .map(|link| json(&link_entry(link)))
                .transpose()?;
            let mut entries = one(format!("link/{}/{}", router.domain, router.name), value);
            if link.is_none() {
                entries.push((format!("routes/{}/{}", router.domain, router.name), None));
            }
            entries
        }
        Record::LinkRoutes { router, routes } => {
            let entries: Vec<RouteEntry> = routes
                .iter()
                .map(|route| RouteEntry {
                    prefix: route.prefix,
                    preference: route.preference,
                    mtu: route.mtu,
                })
                .collect();
            let value = (!entries.is_empty()).then(|| json(&entries)).transpose()?;
            one(format!("routes/{}/{}", router.domain, router.name), value)
        }
    })
}

/// Unknown kinds are an error: they would be lost silently otherwise.
pub(super) fn decode(key: &str, value: &[u8]) -> anyhow::Result<Record> {
    let (kind, rest) = key.split_once('/').unwrap_or((key, ""));
    Ok(match kind {
        "document" => Record::Document {
            bytes: value.to_vec(),
        },
        "lease" => {
            let entry: LeaseEntry = serde_json::from_slice(value)?;
            Record::Lease {
                confirmed: Wall(entry.confirmed),
                lease: Some(lease(&entry)?),
            }
        }
        "assigned" => {
            let entry: AssignmentEntry = serde_json::from_slice(value)?;
            Record::Assigned {
                identity: identity(&entry.identity)?,
                assignment: Some(Assignment {
                    addresses: entry.addresses,
                    reserved_until: entry.reserved_until.map(Wall),
                    named: entry.named,
                }),
            }
        }
        "workload" => Record::Workload {
            connection: ConnectionId::new(rest)?,
            workload: Some(workload(&serde_json::from_slice(value)?)?),
        },
        "link" => Record::Link {
            router: router(rest)?,
            link: Some(link(&serde_json::from_slice(value)?)?),
        },
        "routes" => {
            let entries: Vec<RouteEntry> = serde_json::from_slice(value)?;
            let routes = entries
                .into_iter()
                .map(|entry| StoredRoute {
                    prefix: entry.prefix,
                    preference: entry.preference,
                    mtu: entry.mtu,
                })
                .collect();
            Record::LinkRoutes {
                router: router(rest)?,
                routes,
            }
        }
        _ => bail!("unknown kind; was the file written by a newer version?"),
    })
}

fn json(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    serde_json::to_vec(value).context("encode a record")
}

fn router(key: &str) -> anyhow::Result<RouterId> {
    let (domain, name) = key
        .split_once('/')
        .context("a router's key is DOMAIN/NAME")?;
    Ok(RouterId {
        name: name.parse()?,
        domain: domain.parse()?,
    })
}

fn lease_entry(lease: &Lease, confirmed: Wall) -> LeaseEntry {
    LeaseEntry {
        uid: lease.uid.to_string(),
        router: lease.router.to_string(),
        instance: lease.instance.to_string(),
        generation: lease.generation.0,
        prefix4: lease.prefix4,
        prefix6: lease.prefix6,
        confirmed: confirmed.0,
    }
}

fn lease(entry: &LeaseEntry) -> anyhow::Result<Lease> {
    Ok(Lease {
        uid: entry.uid.parse()?,
        router: RouterName::new(&entry.router)?,
        instance: entry.instance.parse()?,
        generation: Generation(entry.generation),
        prefix4: entry.prefix4,
        prefix6: entry.prefix6,
    })
}

fn identity_entry(identity: &Identity) -> IdentityEntry {
    IdentityEntry {
        id: identity.id.to_string(),
        name: identity.name.as_ref().map(ToString::to_string),
    }
}

fn identity(entry: &IdentityEntry) -> anyhow::Result<Identity> {
    Ok(Identity {
        id: entry.id.parse()?,
        name: entry.name.as_deref().map(str::parse).transpose()?,
    })
}

fn endpoint_entry(endpoint: &Endpoint) -> EndpointEntry {
    EndpointEntry {
        remote: endpoint.remote,
        local: endpoint.local,
    }
}

fn endpoint(entry: &EndpointEntry) -> Endpoint {
    Endpoint {
        remote: entry.remote,
        local: entry.local,
    }
}

fn workload_entry(workload: &StoredWorkload) -> WorkloadEntry {
    WorkloadEntry {
        owner: workload.owner.to_string(),
        identity: identity_entry(&workload.identity),
        mechanism: match &workload.mechanism {
            StoredMechanism::Tun => MechanismEntry::Tun,
            StoredMechanism::WireGuard {
                public_key,
                endpoint,
            } => MechanismEntry::Wireguard {
                public_key: public_key.to_string(),
                endpoint: endpoint.as_ref().map(endpoint_entry),
            },
        },
        mtu: workload.mtu,
    }
}

fn workload(entry: &WorkloadEntry) -> anyhow::Result<StoredWorkload> {
    Ok(StoredWorkload {
        owner: entry.owner.parse()?,
        identity: identity(&entry.identity)?,
        mechanism: match &entry.mechanism {
            MechanismEntry::Tun => StoredMechanism::Tun,
            MechanismEntry::Wireguard {
                public_key,
                endpoint: at,
            } => StoredMechanism::WireGuard {
                public_key: public_key.parse()?,
                endpoint: at.as_ref().map(endpoint),
            },
        },
        mtu: entry.mtu,
    })
}

fn link_entry(link: &StoredLink) -> LinkEntry {
    LinkEntry {
        peer: link.peer.to_string(),
        generation: link.generation.0,
        instance: link.instance.to_string(),
        public_key: link.public_key.to_string(),
        endpoint: link.endpoint.as_ref().map(endpoint_entry),
        mtu: link.mtu,
    }
}

fn link(entry: &LinkEntry) -> anyhow::Result<StoredLink> {
    Ok(StoredLink {
        peer: entry.peer.parse()?,
        generation: Generation(entry.generation),
        instance: entry.instance.parse()?,
        public_key: entry.public_key.parse()?,
        endpoint: entry.endpoint.as_ref().map(endpoint),
        mtu: entry.mtu,
    })
}

/// One record of each kind.
#[cfg(test)]
pub(super) fn samples() -> Vec<Record> {
    use vl3_core::ids::{InstanceId, NetworkUid, PublicKey};

    let router = RouterId {
        name: "red-west".parse().unwrap(),
        domain: "west".parse().unwrap(),
    };
    let identity = Identity {
        id: "spiffe://east.test/workload/a".parse().unwrap(),
        name: Some("alpha".parse().unwrap()),
    };
    let endpoint = Some(Endpoint {
        remote: "192.0.2.1:51820".parse().unwrap(),
        local: Some([10, 0, 0, 1].into()),
    });
    let lease = Lease {
        uid: NetworkUid([1; 16]),
        router: "red-east".parse().unwrap(),
        instance: InstanceId([2; 16]),
        generation: Generation(3),
        prefix4: Some("10.9.0.0/26".parse().unwrap()),
        prefix6: "fd00::/96".parse().unwrap(),
    };
    let workload = |mechanism| StoredWorkload {
        owner: identity.id.clone(),
        identity: identity.clone(),
        mechanism,
        mtu: 1420,
    };
    vec![
        Record::Document {
            bytes: vec![1, 2, 3],
        },
        Record::Lease {
            lease: Some(lease),
            confirmed: Wall(77),
        },
        Record::Assigned {
            identity: identity.clone(),
            assignment: Some(Assignment {
                addresses: vec![[10, 9, 0, 2].into()],
                reserved_until: Some(Wall(9)),
                named: true,
            }),
        },
        Record::Workload {
            connection: ConnectionId::new("c/1").unwrap(),
            workload: Some(workload(StoredMechanism::Tun)),
        },
        Record::Workload {
            connection: ConnectionId::new("c-2").unwrap(),
            workload: Some(workload(StoredMechanism::WireGuard {
                public_key: PublicKey([5; 32]),
                endpoint,
            })),
        },
        Record::Link {
            router: router.clone(),
            link: Some(StoredLink {
                peer: "spiffe://west.test/vl3/router/red-west".parse().unwrap(),
                generation: Generation(4),
                instance: InstanceId([6; 16]),
                public_key: PublicKey([7; 32]),
                endpoint: None,
                mtu: 1400,
            }),
        },
        Record::LinkRoutes {
            router,
            routes: vec![StoredRoute {
                prefix: "10.9.1.0/26".parse().unwrap(),
                preference: 1,
                mtu: 0,
            }],
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_round_trips() {
        for record in samples() {
            let entries = encode(&record).unwrap();
            let (key, value) = &entries[0];
            assert_eq!(decode(key, value.as_ref().unwrap()).unwrap(), record);
        }
    }

    #[test]
    fn a_link_that_goes_takes_its_routes_along() {
        let router = RouterId {
            name: "red-west".parse().unwrap(),
            domain: "west".parse().unwrap(),
        };
        let entries = encode(&Record::Link { router, link: None }).unwrap();
        assert_eq!(
            entries,
            [
                ("link/west/red-west".to_owned(), None),
                ("routes/west/red-west".to_owned(), None)
            ]
        );
    }
}
