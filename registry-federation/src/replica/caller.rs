//! The identity of a caller, as one replica tells it to another.

use std::net::SocketAddr;

use http::HeaderMap;
use prost::Message;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};
use vl3_core::Wall;
use vl3_core::ids::{NetworkUid, SpiffeId};
use vl3_identity::Scopes;
use vl3_identity::{PeerIdentity, Scope};

/// Only another replica of the domain is believed.
const CALLER: &str = "vl3-caller-bin";

/// A call came through this replica: tokens were made for it.
#[derive(Clone, Debug)]
pub(crate) struct ForwardedBy(pub(crate) SpiffeId);

/// Version 1. Unknown fields are ignored.
#[derive(Clone, PartialEq, Message)]
struct Caller {
    #[prost(string, tag = "1")]
    id: String,
    /// Whether the own bundle vouches for it.
    #[prost(bool, tag = "2")]
    own: bool,
    /// The networks that vouch for it.
    #[prost(bytes = "vec", repeated, tag = "3")]
    networks: Vec<Vec<u8>>,
    /// The leaf: tokens are signed by its key.
    #[prost(bytes = "vec", tag = "4")]
    certificate: Vec<u8>,
    #[prost(uint64, tag = "5")]
    not_after: u64,
    #[prost(string, tag = "6")]
    remote_addr: String,
}

/// Puts the caller beside the call.
pub(super) fn write(headers: &mut HeaderMap, caller: &PeerIdentity) {
    let scopes = caller.scopes.to_vec();
    let networks = scopes.iter().filter_map(|scope| match scope {
        Scope::Own => None,
        Scope::Network(uid) => Some(uid.0.to_vec()),
    });
    let message = Caller {
        id: caller.id.to_string(),
        own: scopes.contains(&Scope::Own),
        networks: networks.collect(),
        certificate: caller.certificate_der.to_vec(),
        not_after: caller.not_after.unix_secs(),
        remote_addr: caller
            .remote_addr
            .map_or_else(String::new, |address| address.to_string()),
    };
    let mut metadata = MetadataMap::from_headers(std::mem::take(headers));
    metadata.insert_bin(CALLER, MetadataValue::from_bytes(&message.encode_to_vec()));
    *headers = metadata.into_headers();
}

/// Takes off whatever is said of a caller; whether anything was, and its bytes.
pub(super) fn strip(headers: &mut HeaderMap) -> Option<Vec<u8>> {
    if !headers.contains_key(CALLER) {
        return None;
    }
    let mut metadata = MetadataMap::from_headers(std::mem::take(headers));
    let bytes = metadata
        .get_bin(CALLER)
        .and_then(|value| value.to_bytes().ok());
    while metadata.remove_bin(CALLER).is_some() {}
    *headers = metadata.into_headers();
    Some(bytes.map(|bytes| bytes.to_vec()).unwrap_or_default())
}

/// The caller for whom a replica speaks.
pub(super) fn read(bytes: &[u8]) -> Result<PeerIdentity, Status> {
    let malformed = |what: &str| Status::invalid_argument(format!("{CALLER}: {what}"));
    let message = Caller::decode(bytes).map_err(|error| malformed(&error.to_string()))?;
    let id = SpiffeId::new(&message.id).map_err(|error| malformed(&error.to_string()))?;
    let mut scopes = Vec::new();
    if message.own {
        scopes.push(Scope::Own);
    }
    for uid in message.networks {
        let uid = uid
            .try_into()
            .map_err(|_| malformed("networks: 16 bytes each are allowed"))?;
        scopes.push(Scope::Network(NetworkUid(uid)));
    }
    Ok(PeerIdentity {
        id,
        certificate_der: message.certificate.into(),
        not_after: Wall::from_unix_secs(message.not_after),
        scopes: Scopes::new(scopes),
        local_addr: None,
        remote_addr: message.remote_addr.parse::<SocketAddr>().ok(),
        unix: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> PeerIdentity {
        PeerIdentity {
            id: SpiffeId::new("spiffe://east.test/workload/a").unwrap(),
            certificate_der: vec![1, 2, 3].into(),
            not_after: Wall::from_unix_secs(7),
            scopes: Scopes::new(vec![Scope::Own, Scope::Network(NetworkUid([5; 16]))]),
            local_addr: None,
            remote_addr: Some("192.0.2.1:9".parse().unwrap()),
            unix: false,
        }
    }

    #[test]
    fn a_caller_arrives_as_it_left_and_nothing_stays_in_the_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("te", "trailers".parse().unwrap());
        write(&mut headers, &caller());
        let read = read(&strip(&mut headers).unwrap()).unwrap();
        let expected = caller();
        assert_eq!(
            (&read.id, &read.certificate_der, read.not_after),
            (&expected.id, &expected.certificate_der, expected.not_after)
        );
        assert_eq!(read.scopes.to_vec(), expected.scopes.to_vec());
        assert_eq!(read.remote_addr, expected.remote_addr);
        assert_eq!(headers.len(), 1);
        assert!(strip(&mut headers).is_none());
    }

    #[test]
    fn garbage_is_refused_and_taken_off() {
        let mut headers = HeaderMap::new();
        headers.append(CALLER, "%%%".parse().unwrap());
        headers.append(CALLER, "AAAA".parse().unwrap());
        let bytes = strip(&mut headers).unwrap();
        assert!(read(&bytes).is_err());
        assert!(headers.is_empty());
    }
}
