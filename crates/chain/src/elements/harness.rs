//! A recording head and tail for the tests of single elements.

use std::sync::{Arc, Mutex, PoisonError};

use prost_types::Timestamp;
use vl3_core::ids::SpiffeId;
use vl3_core::{Mono, Now, Wall};
use vl3_proto::connection::{Connection, Path, PathSegment};
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::call::{Call, Connections};
use crate::chain::{BoxFuture, Builder, Chain, Element, Next};
use crate::error::Error;
use crate::tokens::{Claims, Peer, Tokens};

pub(crate) const NOW: Now = Now {
    mono: Mono::from_secs(1),
    wall: Wall::from_unix_secs(1_700_000_000),
};

pub(crate) fn spiffe(name: &str) -> SpiffeId {
    SpiffeId::new(&format!("spiffe://east.test/workload/{name}")).expect("a valid name")
}

pub(crate) fn first_request(id: &str) -> NetworkServiceRequest {
    let segment = PathSegment {
        name: "nsc".into(),
        id: id.into(),
        ..PathSegment::default()
    };
    NetworkServiceRequest {
        connection: Some(Connection {
            id: id.into(),
            network_service: "red".into(),
            path: Some(Path {
                index: 0,
                path_segments: vec![segment],
            }),
            ..Connection::default()
        }),
        mechanism_preferences: Vec::new(),
    }
}

/// What reached the end of the chain; can be told to fail or to wait.
#[derive(Clone, Default)]
pub(crate) struct Tail {
    state: Arc<Mutex<TailState>>,
    gate: Option<Arc<tokio::sync::Semaphore>>,
}

#[derive(Default)]
struct TailState {
    requests: Vec<NetworkServiceRequest>,
    closes: Vec<Connection>,
    expiries: Vec<Option<Wall>>,
    fail: Option<Error>,
}

impl Tail {
    /// Each request waits for a permit.
    pub(crate) fn gated(gate: &Arc<tokio::sync::Semaphore>) -> Self {
        Self {
            gate: Some(Arc::clone(gate)),
            ..Self::default()
        }
    }

    fn with<T>(&self, read: impl FnOnce(&mut TailState) -> T) -> T {
        read(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn requests(&self) -> Vec<NetworkServiceRequest> {
        self.with(|state| state.requests.clone())
    }

    pub(crate) fn closes(&self) -> Vec<Connection> {
        self.with(|state| state.closes.clone())
    }

    pub(crate) fn expiries(&self) -> Vec<Option<Wall>> {
        self.with(|state| state.expiries.clone())
    }

    pub(crate) fn fail_with(&self, error: Option<Error>) {
        self.with(|state| state.fail = error);
    }
}

impl Element<Connections> for Tail {
    fn name(&self) -> &'static str {
        "tail"
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        request: NetworkServiceRequest,
        _next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            if let Some(gate) = &self.gate {
                gate.acquire().await.expect("never closed").forget();
            }
            let connection = request.connection.clone().unwrap_or_default();
            self.with(|state| {
                state.requests.push(request);
                state.expiries.push(call.expires);
                state.fail.clone().map_or(Ok(connection), Err)
            })
        })
    }

    fn close<'a>(
        &'a self,
        _call: &'a mut Call,
        closing: Connection,
        _next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.with(|state| {
                state.closes.push(closing);
                state.fail.clone().map_or(Ok(()), Err)
            })
        })
    }
}

/// Tokens as plain text: `subject|audience,..|expiry in Unix seconds|signer`.
#[derive(Clone)]
pub(crate) struct PlainTokens(pub(crate) SpiffeId);

pub(crate) fn plain_token(subject: &SpiffeId, audience: &[&SpiffeId], expires: u64) -> String {
    let audience: Vec<&str> = audience.iter().map(|id| id.as_str()).collect();
    format!("{subject}|{}|{expires}|{subject}", audience.join(","))
}

impl Tokens for PlainTokens {
    fn own_id(&self) -> SpiffeId {
        self.0.clone()
    }

    fn issue(&self, audience: Option<&SpiffeId>) -> Result<(String, Wall), Error> {
        let audience: Vec<&SpiffeId> = audience.into_iter().collect();
        let expires = NOW.wall.unix_secs() + 600;
        Ok((
            plain_token(&self.0, &audience, expires),
            Wall::from_unix_secs(expires),
        ))
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let mut parts = token.split('|');
        Some(Claims {
            subject: parts.next()?.to_owned(),
            audience: parts.next()?.split(',').map(str::to_owned).collect(),
            expires: Wall::from_unix_secs(parts.next()?.parse().ok()?),
        })
    }

    fn signed_by(&self, token: &str, certificate: &[u8]) -> bool {
        token
            .rsplit('|')
            .next()
            .is_some_and(|signer| signer.as_bytes() == certificate)
    }
}

pub(crate) struct Rig {
    pub(crate) chain: Chain<Connections>,
    pub(crate) tail: Tail,
}

impl Rig {
    pub(crate) fn new(elements: impl FnOnce(Builder<Connections>) -> Builder<Connections>) -> Self {
        Self::with_tail(Tail::default(), elements)
    }

    pub(crate) fn with_tail(
        tail: Tail,
        elements: impl FnOnce(Builder<Connections>) -> Builder<Connections>,
    ) -> Self {
        let chain = elements(Chain::builder())
            .push(tail.clone())
            .build()
            .expect("the order is right");
        Self { chain, tail }
    }

    /// A call by the workload of that name, with a token for `router`.
    pub(crate) fn call(&self, name: &str) -> Call {
        let id = spiffe(name);
        let expires = NOW.wall.unix_secs() + 300;
        Call::new(
            NOW,
            Some(Peer {
                certificate: id.as_str().as_bytes().into(),
                token: Some(plain_token(&id, &[&spiffe("router")], expires)),
                local: None,
                token_expires: Some(Wall::from_unix_secs(expires)),
                id,
            }),
        )
    }
}

pub(crate) fn expires(connection: &Connection, at: usize) -> Option<Timestamp> {
    connection.path.as_ref()?.path_segments.get(at)?.expires
}
