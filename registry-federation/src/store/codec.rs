//! Records as bytes: an envelope with a kind, so that a kind of a later version is named
//! instead of misread. Unknown fields are ignored, unknown kinds are not.

use prost::Message;
use vl3_core::allocator::LeaseRecord;
use vl3_core::ids::{DomainName, Generation, RouterName, SpiffeId, WorkloadName};
use vl3_core::registry::{Packed, Record};
use vl3_proto::vl3::{ipam, network, registry};
use vl3_proto::{document, lease, objects};

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("kind {kind} is not known to this program: it was written by a newer version")]
    UnknownKind { kind: u32 },
    #[error("it cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    #[error("{0}")]
    Document(#[from] document::DocumentError),
    #[error("{0}")]
    Field(#[from] vl3_proto::FieldError),
    #[error("{0}")]
    Name(#[from] vl3_core::ids::InvalidName),
    #[error("{field} is missing or malformed")]
    Malformed { field: &'static str },
}

#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(bytes = "vec", tag = "2")]
    body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct GrantedBody {
    #[prost(message, optional, tag = "1")]
    lease: Option<ipam::v1::Lease>,
    #[prost(string, tag = "2")]
    holder: String,
    #[prost(string, repeated, tag = "3")]
    exclusions: Vec<String>,
}

/// A name within a network: a router whose lease ended, a released name.
#[derive(Clone, PartialEq, Message)]
struct KeyBody {
    #[prost(bytes = "vec", tag = "1")]
    uid: Vec<u8>,
    #[prost(string, tag = "2")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct FloorBody {
    #[prost(bytes = "vec", tag = "1")]
    uid: Vec<u8>,
    #[prost(uint64, tag = "2")]
    generation: u64,
}

#[derive(Clone, PartialEq, Message)]
struct RestoredBody {
    #[prost(bytes = "vec", tag = "1")]
    uid: Vec<u8>,
    #[prost(uint64, optional, tag = "2")]
    floor: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct OwnedBody {
    /// An encoded service or endpoint.
    #[prost(bytes = "vec", tag = "1")]
    object: Vec<u8>,
    #[prost(string, tag = "2")]
    owner: String,
}

#[derive(Clone, PartialEq, Message)]
struct RemoteBody {
    #[prost(bytes = "vec", tag = "1")]
    uid: Vec<u8>,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(message, optional, tag = "3")]
    endpoint: Option<vl3_proto::registry::NetworkServiceEndpoint>,
}

#[derive(Clone, PartialEq, Message)]
struct NameBody {
    #[prost(message, optional, tag = "1")]
    claim: Option<registry::v1::ClaimRequest>,
    #[prost(string, tag = "2")]
    by: String,
}

const DOCUMENT: u32 = 1;
const GRANTED: u32 = 2;
const ENDED: u32 = 3;
const FLOOR: u32 = 4;
const EXCLUDED: u32 = 5;
const INCLUDED: u32 = 6;
const SERVICE: u32 = 7;
const ENDPOINT: u32 = 8;
const REMOTE: u32 = 9;
const NAME: u32 = 10;
const NAME_RELEASED: u32 = 11;
const RESTORED: u32 = 12;
const READOPTED: u32 = 13;

/// The bytes of a record; None for one that only removes an object.
pub fn encode(record: &Record) -> Option<Vec<u8>> {
    let key = |uid: &vl3_core::ids::NetworkUid, name: String| {
        KeyBody {
            uid: uid.0.to_vec(),
            name,
        }
        .encode_to_vec()
    };
    let (kind, body) = match record {
        Record::Document { chain } => (DOCUMENT, document::encode_chain(chain).encode_to_vec()),
        Record::Lease { uid, record } => match record {
            LeaseRecord::Granted {
                lease,
                holder,
                exclusions,
            } => {
                let body = GrantedBody {
                    lease: Some(lease::encode_lease(lease)),
                    holder: holder.to_string(),
                    exclusions: exclusions.iter().map(ToString::to_string).collect(),
                };
                (GRANTED, body.encode_to_vec())
            }
            LeaseRecord::Ended { router } => (ENDED, key(uid, router.to_string())),
            LeaseRecord::Floor { generation } => (
                FLOOR,
                FloorBody {
                    uid: uid.0.to_vec(),
                    generation: generation.0,
                }
                .encode_to_vec(),
            ),
            LeaseRecord::Excluded { range } => (EXCLUDED, key(uid, range.to_string())),
            LeaseRecord::Included { range } => (INCLUDED, key(uid, range.to_string())),
            LeaseRecord::Restored { floor } => {
                let body = RestoredBody {
                    uid: uid.0.to_vec(),
                    floor: floor.map(|floor| floor.0),
                };
                (RESTORED, body.encode_to_vec())
            }
            LeaseRecord::Readopted => (READOPTED, key(uid, String::new())),
        },
        Record::Service { service, owner } => {
            let object = objects::encode_service(service).encode_to_vec();
            (
                SERVICE,
                OwnedBody {
                    object,
                    owner: owner.to_string(),
                }
                .encode_to_vec(),
            )
        }
        Record::Endpoint { endpoint, owner } => {
            let object = objects::encode_endpoint(endpoint).encode_to_vec();
            (
                ENDPOINT,
                OwnedBody {
                    object,
                    owner: owner.to_string(),
                }
                .encode_to_vec(),
            )
        }
        Record::Remote {
            uid,
            domain,
            endpoint,
        } => {
            let body = RemoteBody {
                uid: uid.0.to_vec(),
                domain: domain.to_string(),
                endpoint: Some(objects::encode_endpoint(&endpoint.endpoint())),
            };
            (REMOTE, body.encode_to_vec())
        }
        Record::Name { uid, claim, by } => {
            let body = NameBody {
                claim: Some(lease::encode_claim(*uid, claim)),
                by: by.to_string(),
            };
            (NAME, body.encode_to_vec())
        }
        Record::NameReleased { uid, name } => (NAME_RELEASED, key(uid, name.to_string())),
        Record::ServiceRemoved { .. }
        | Record::EndpointRemoved { .. }
        | Record::RemoteRemoved { .. } => {
            return None;
        }
    };
    Some(Envelope { kind, body }.encode_to_vec())
}

/// The removal of the object under that key.
pub fn decode_removal(key: &str) -> Result<Record, CodecError> {
    let malformed = CodecError::Malformed {
        field: "object key",
    };
    let Some((kind, name)) = key.split_once('/') else {
        return Err(malformed);
    };
    Ok(match kind {
        "service" => Record::ServiceRemoved {
            name: name.to_owned(),
        },
        "endpoint" => Record::EndpointRemoved {
            name: name.to_owned(),
        },
        "remote" => {
            let (domain, name) = name.split_once('/').ok_or(malformed)?;
            Record::RemoteRemoved {
                domain: DomainName::new(domain)?,
                name: name.to_owned(),
            }
        }
        _ => return Err(malformed),
    })
}

pub fn decode(bytes: &[u8]) -> Result<Record, CodecError> {
    let Envelope { kind, body } = Envelope::decode(bytes)?;
    let body = body.as_slice();
    let uid = |bytes: &[u8]| vl3_proto::network_uid("uid", bytes);
    let missing = |field| CodecError::Malformed { field };
    Ok(match kind {
        DOCUMENT => {
            let chain = network::v1::DocumentChain::decode(body)?;
            Record::Document {
                chain: document::decode_chain(&chain)?,
            }
        }
        GRANTED => {
            let body = GrantedBody::decode(body)?;
            let lease = lease::decode_lease(&body.lease.ok_or(missing("lease"))?)?;
            let holder = SpiffeId::new(&body.holder)?;
            let exclusions = vl3_proto::prefixes("exclusions", &body.exclusions)?;
            Record::Lease {
                uid: lease.uid,
                record: LeaseRecord::Granted {
                    lease,
                    holder,
                    exclusions,
                },
            }
        }
        ENDED => {
            let body = KeyBody::decode(body)?;
            let router = RouterName::new(&body.name)?;
            Record::Lease {
                uid: uid(&body.uid)?,
                record: LeaseRecord::Ended { router },
            }
        }
        FLOOR => {
            let body = FloorBody::decode(body)?;
            let generation = Generation(body.generation);
            Record::Lease {
                uid: uid(&body.uid)?,
                record: LeaseRecord::Floor { generation },
            }
        }
        RESTORED => {
            let body = RestoredBody::decode(body)?;
            let floor = body.floor.map(Generation);
            Record::Lease {
                uid: uid(&body.uid)?,
                record: LeaseRecord::Restored { floor },
            }
        }
        READOPTED => {
            let body = KeyBody::decode(body)?;
            Record::Lease {
                uid: uid(&body.uid)?,
                record: LeaseRecord::Readopted,
            }
        }
        EXCLUDED | INCLUDED => {
            let body = KeyBody::decode(body)?;
            let range = body.name.parse().map_err(|_| missing("range"))?;
            let record = if kind == EXCLUDED {
                LeaseRecord::Excluded { range }
            } else {
                LeaseRecord::Included { range }
            };
            Record::Lease {
                uid: uid(&body.uid)?,
                record,
            }
        }
        SERVICE => {
            let body = OwnedBody::decode(body)?;
            let service = vl3_proto::registry::NetworkService::decode(body.object.as_slice())?;
            Record::Service {
                service: objects::decode_service(service),
                owner: SpiffeId::new(&body.owner)?,
            }
        }
        ENDPOINT => {
            let body = OwnedBody::decode(body)?;
            let endpoint =
                vl3_proto::registry::NetworkServiceEndpoint::decode(body.object.as_slice())?;
            Record::Endpoint {
                endpoint: objects::decode_endpoint(endpoint)?.into(),
                owner: SpiffeId::new(&body.owner)?,
            }
        }
        REMOTE => {
            let body = RemoteBody::decode(body)?;
            let endpoint = objects::decode_endpoint(body.endpoint.ok_or(missing("endpoint"))?)?;
            Record::Remote {
                uid: uid(&body.uid)?,
                domain: DomainName::new(&body.domain)?,
                endpoint: Packed::new(&endpoint),
            }
        }
        NAME => {
            let body = NameBody::decode(body)?;
            let (uid, claim) = lease::decode_claim(&body.claim.ok_or(missing("claim"))?)?;
            Record::Name {
                uid,
                claim,
                by: SpiffeId::new(&body.by)?,
            }
        }
        NAME_RELEASED => {
            let body = KeyBody::decode(body)?;
            Record::NameReleased {
                uid: uid(&body.uid)?,
                name: WorkloadName::new(&body.name)?,
            }
        }
        kind => return Err(CodecError::UnknownKind { kind }),
    })
}
