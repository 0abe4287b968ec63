//! Registry objects, queries and sync messages between the wire and the core.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use prost_types::Timestamp;
use vl3_core::federation::SyncMessage;
use vl3_core::ids::DomainName;
use vl3_core::registry::{
    Destination, Endpoint, EndpointQuery, FoundEndpoint, Match, Service, ServiceQuery,
};

use crate::convert::time::{timestamp, wall};
use crate::convert::{FieldError, network_uid};
use crate::document::{DocumentError, decode_chain, encode_chain};
use crate::registry as nsm;
use crate::vl3::registry::v1 as sync;

pub fn encode_service(service: &Service) -> nsm::NetworkService {
    nsm::NetworkService {
        name: service.name.clone(),
        payload: service.payload.clone(),
        matches: service.matches.iter().map(encode_match).collect(),
        path_ids: service.path_ids.clone(),
    }
}

pub fn decode_service(service: nsm::NetworkService) -> Service {
    Service {
        name: service.name,
        payload: service.payload,
        matches: service.matches.into_iter().map(decode_match).collect(),
        path_ids: service.path_ids,
    }
}

fn encode_match(rule: &Match) -> nsm::Match {
    nsm::Match {
        source_selector: rule.source_selector.clone(),
        routes: rule
            .routes
            .iter()
            .map(|route| nsm::Destination {
                destination_selector: route.selector.clone(),
                weight: route.weight,
            })
            .collect(),
        fallthrough: rule.fallthrough,
        metadata: rule.metadata.clone().map(|labels| nsm::Metadata { labels }),
    }
}

fn decode_match(rule: nsm::Match) -> Match {
    Match {
        source_selector: rule.source_selector,
        routes: rule
            .routes
            .into_iter()
            .map(|route| Destination {
                selector: route.destination_selector,
                weight: route.weight,
            })
            .collect(),
        fallthrough: rule.fallthrough,
        metadata: rule.metadata.map(|metadata| metadata.labels),
    }
}

/// Without an expiry.
pub fn encode_endpoint(endpoint: &Endpoint) -> nsm::NetworkServiceEndpoint {
    into_message(endpoint.clone())
}

/// Moves the texts.
fn into_message(endpoint: Endpoint) -> nsm::NetworkServiceEndpoint {
    let labels = endpoint.labels.into_iter();
    nsm::NetworkServiceEndpoint {
        name: endpoint.name,
        network_service_names: endpoint.services,
        network_service_labels: labels
            .map(|(service, labels)| (service, nsm::NetworkServiceLabels { labels }))
            .collect(),
        url: endpoint.url,
        expiration_time: None,
        initial_registration_time: endpoint.registered.map(timestamp),
        path_ids: endpoint.path_ids,
    }
}

/// Copies only what somebody else still holds.
pub fn encode_found(found: FoundEndpoint) -> nsm::NetworkServiceEndpoint {
    nsm::NetworkServiceEndpoint {
        expiration_time: Some(timestamp(found.expires)),
        ..into_message(found.shown.into_endpoint())
    }
}

/// Its expiry is the caller's to read.
pub fn decode_endpoint(endpoint: nsm::NetworkServiceEndpoint) -> Result<Endpoint, FieldError> {
    let registered = endpoint.initial_registration_time.as_ref();
    let labels = endpoint.network_service_labels.into_iter();
    Ok(Endpoint {
        registered: registered
            .map(|time| wall("initial_registration_time", time))
            .transpose()?,
        name: endpoint.name,
        services: endpoint.network_service_names,
        labels: labels
            .map(|(service, labels)| (service, labels.labels))
            .collect(),
        url: endpoint.url,
        path_ids: endpoint.path_ids,
    })
}

/// The inner message must be there: stock registries crash without it, ours says so.
pub fn decode_service_query(query: nsm::NetworkServiceQuery) -> Result<ServiceQuery, FieldError> {
    let service = query.network_service.ok_or_else(|| {
        FieldError::new("network_service", "", "a message, empty for every service")
    })?;
    Ok(ServiceQuery {
        name: service.name,
        payload: service.payload,
        matches: service.matches.into_iter().map(decode_match).collect(),
    })
}

pub fn decode_endpoint_query(
    query: nsm::NetworkServiceEndpointQuery,
) -> Result<EndpointQuery, FieldError> {
    let endpoint = query.network_service_endpoint.ok_or_else(|| {
        FieldError::new(
            "network_service_endpoint",
            "",
            "a message, empty for every endpoint",
        )
    })?;
    let expires = |time: &Timestamp| u64::try_from(time.seconds).unwrap_or(0);
    Ok(EndpointQuery {
        name: endpoint.name,
        services: endpoint.network_service_names,
        labels: endpoint
            .network_service_labels
            .into_iter()
            .map(|(service, labels)| (service, labels.labels))
            .collect(),
        url: endpoint.url,
        expires_unix_secs: endpoint.expiration_time.as_ref().map(expires),
    })
}

pub fn encode_sync(message: &SyncMessage) -> sync::SyncMessage {
    use sync::sync_message::Body;
    let body = match message {
        SyncMessage::Open {
            version,
            domain,
            epoch,
            uids,
        } => Body::Open(sync::Open {
            version: *version,
            domain: domain.to_string(),
            epoch: epoch.to_vec(),
            uids: uids.iter().map(|uid| uid.0.to_vec()).collect(),
        }),
        SyncMessage::Upsert {
            sequence,
            uid,
            endpoint,
            lifetime,
        } => Body::Upsert(sync::Upsert {
            sequence: *sequence,
            uid: uid.0.to_vec(),
            endpoint: Some(encode_endpoint(endpoint)),
            lifetime_seconds: u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX),
        }),
        SyncMessage::Remove {
            sequence,
            uid,
            name,
        } => Body::Remove(sync::Remove {
            sequence: *sequence,
            uid: uid.0.to_vec(),
            name: name.to_string(),
        }),
        SyncMessage::EndOfSnapshot { sequence } => Body::End(sync::EndOfSnapshot {
            sequence: *sequence,
        }),
        SyncMessage::Document(chain) => Body::Document(encode_chain(chain)),
        SyncMessage::KeepAlive { sequence } => Body::KeepAlive(sync::KeepAlive {
            sequence: *sequence,
        }),
    };
    sync::SyncMessage { body: Some(body) }
}

/// Networks that one `Open` may name.
const UIDS_MAX: usize = 4096;

/// Bytes of a name, as a registry takes it.
const NAME_BYTES_MAX: usize = 253;

/// Bytes of an endpoint that one domain tells another; what is larger is malformed. A registry
/// believes far smaller ones only.
const SYNC_ENDPOINT_BYTES_MAX: usize = 64 * 1024;

/// A name that is worth to be looked at further: nobody keeps what may be megabytes.
fn bounded(field: &'static str, name: &str) -> Result<(), FieldError> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let allowed = "at most 253 bytes";
    Err(FieldError::new(
        field,
        format!("{} bytes", name.len()),
        allowed,
    ))
}

fn decode_told(upsert: Option<nsm::NetworkServiceEndpoint>) -> Result<Endpoint, FieldError> {
    let endpoint = upsert.ok_or_else(|| FieldError::new("upsert.endpoint", "", "an endpoint"))?;
    bounded("upsert.endpoint.name", &endpoint.name)?;
    let bytes = endpoint.encoded_len();
    if bytes > SYNC_ENDPOINT_BYTES_MAX {
        let value = format!("{bytes} bytes");
        return Err(FieldError::new("upsert.endpoint", value, "at most 64 KiB"));
    }
    decode_endpoint(endpoint)
}

/// None: a kind of message that this version does not know, to be passed over.
pub fn decode_sync(message: sync::SyncMessage) -> Result<Option<SyncMessage>, DocumentError> {
    use sync::sync_message::Body;
    let Some(body) = message.body else {
        return Ok(None);
    };
    Ok(Some(match body {
        Body::Open(open) => SyncMessage::Open {
            version: open.version,
            domain: DomainName::new(&open.domain)
                .map_err(|error| FieldError::new("open.domain", &open.domain, error.allowed))?,
            epoch: open.epoch.as_slice().try_into().map_err(|_| {
                FieldError::new(
                    "open.epoch",
                    format!("{} bytes", open.epoch.len()),
                    "16 random bytes",
                )
            })?,
            uids: open
                .uids
                .iter()
                .take(UIDS_MAX)
                .map(|uid| network_uid("open.uids", uid))
                .collect::<Result<_, _>>()?,
        },
        Body::Upsert(upsert) => SyncMessage::Upsert {
            sequence: upsert.sequence,
            uid: network_uid("upsert.uid", &upsert.uid)?,
            endpoint: Arc::new(decode_told(upsert.endpoint)?),
            lifetime: Duration::from_secs(upsert.lifetime_seconds.into()),
        },
        Body::Remove(remove) => {
            bounded("remove.name", &remove.name)?;
            SyncMessage::Remove {
                sequence: remove.sequence,
                uid: network_uid("remove.uid", &remove.uid)?,
                name: remove.name.into(),
            }
        }
        Body::End(end) => SyncMessage::EndOfSnapshot {
            sequence: end.sequence,
        },
        Body::Document(chain) => SyncMessage::Document(decode_chain(&chain)?),
        Body::KeepAlive(keep_alive) => SyncMessage::KeepAlive {
            sequence: keep_alive.sequence,
        },
    }))
}

#[cfg(test)]
mod tests {
    use vl3_core::ids::NetworkUid;

    use super::*;

    fn upsert(edit: impl FnOnce(&mut Endpoint)) -> Result<Option<SyncMessage>, DocumentError> {
        let mut endpoint = Endpoint {
            name: "red-west".to_owned(),
            ..Endpoint::default()
        };
        edit(&mut endpoint);
        decode_sync(encode_sync(&SyncMessage::Upsert {
            sequence: 1,
            uid: NetworkUid([7; 16]),
            endpoint: Arc::new(endpoint),
            lifetime: Duration::from_secs(60),
        }))
    }

    fn removed(bytes: usize) -> Result<Option<SyncMessage>, DocumentError> {
        decode_sync(encode_sync(&SyncMessage::Remove {
            sequence: 1,
            uid: NetworkUid([7; 16]),
            name: "x".repeat(bytes).into(),
        }))
    }

    /// A domain that lies must not fill our memory with what is refused afterwards.
    #[test]
    fn what_another_domain_tells_is_bounded_before_it_is_looked_at() {
        assert!(upsert(|_| {}).is_ok());
        assert!(upsert(|endpoint| endpoint.name = "x".repeat(253)).is_ok());
        assert!(removed(253).is_ok());
        for (refused, field) in [
            (removed(254), "remove.name"),
            (
                upsert(|endpoint| endpoint.name = "x".repeat(254)),
                "upsert.endpoint.name",
            ),
            (
                upsert(|endpoint| endpoint.url = "x".repeat(64 * 1024)),
                "upsert.endpoint",
            ),
        ] {
            let said = refused.unwrap_err().to_string();
            assert!(said.contains(field), "{said}");
        }
    }
}
