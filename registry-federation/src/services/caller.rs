//! Who calls: the TLS peer, its token and the path of registry calls (nsm-wire 4.4, 5.2).

use nsm_chain::Tokens;
use nsm_chain::registry_path::{RegistryPath, ServedPath};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};
use vl3_core::Wall;
use vl3_core::ids::SpiffeId;
use vl3_core::registry::Peer;
use vl3_identity::{PeerIdentity, Scope};
use vl3_runtime::clock;
use vl3_runtime::grpc::{CallerToken, PATH, TOKEN, caller_token, registry_path, set_registry_path};

use crate::replica::ForwardedBy;

/// The direct peer with the networks that vouch for it.
pub(crate) fn peer_of(identity: &PeerIdentity) -> Peer {
    let networks = identity
        .scopes
        .to_vec()
        .into_iter()
        .filter_map(|scope| match scope {
            Scope::Own => None,
            Scope::Network(uid) => Some(uid),
        });
    Peer::vouched(identity.id.clone(), networks.collect())
}

pub(super) fn identity(extensions: &Extensions) -> Result<&PeerIdentity, Status> {
    extensions
        .get::<PeerIdentity>()
        .ok_or_else(|| Status::unauthenticated("the call has no TLS identity"))
}

pub(super) fn peer(extensions: &Extensions) -> Result<Peer, Status> {
    identity(extensions).map(peer_of)
}

/// A Register or Unregister call: its peer, its path, when its right ends.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) peer: Peer,
    /// When the caller's token expires; unset when it sent none.
    pub(super) expires: Option<Wall>,
    path: ServedPath,
    /// Stock clients get the path back only if they sent one.
    sent_path: bool,
    own: SpiffeId,
}

impl Registration {
    /// Checks the token (its subject is the TLS peer, signed by its key, for us, not
    /// expired) and the path. Without a token the TLS identity alone speaks.
    pub(super) fn read(
        tokens: &dyn Tokens,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Self, Status> {
        let identity = identity(extensions)?;
        let own = tokens.own_id();
        let token = caller_token(metadata);
        let expires = match &token {
            Some(token) => {
                // Behind another replica the token was made for that one.
                let by = extensions.get::<ForwardedBy>().map(|by| by.0.clone());
                Some(check_token(
                    tokens,
                    token,
                    identity,
                    &by.unwrap_or_else(|| own.clone()),
                )?)
            }
            None => None,
        };
        let header = registry_path(metadata);
        let sent_path = header.is_some();
        let path = header
            .map(|header| RegistryPath::parse(&header))
            .transpose()
            .map_err(Status::from)?;
        let path = path.unwrap_or_default();
        for (at, segment) in path
            .path_segments
            .iter()
            .enumerate()
            .filter(|(_, segment)| !segment.token.is_empty())
        {
            let current = usize::try_from(path.index) == Ok(at);
            match tokens.claims(&segment.token) {
                None => return Err(bad_path(&format!("PathSegments[{at}].token is no token"))),
                // The caller's own segment is overwritten by its fresh token.
                Some(claims) if claims.expires <= clock::wall() && !current => {
                    return Err(Status::permission_denied(format!(
                        "{PATH}: PathSegments[{at}].token is expired"
                    )));
                }
                Some(_) => {}
            }
        }
        check_chain(tokens, &path, &identity.id)?;
        let claimed = callers(tokens, &path);
        let (own_token, _) = tokens.issue(Some(&identity.id)).map_err(Status::from)?;
        let caller = token.as_ref().map_or("", |token| token.token.as_str());
        let path = path.serve(caller, &own_token).map_err(Status::from)?;
        let peer = Peer {
            claimed,
            ..peer_of(identity)
        };
        Ok(Self {
            peer,
            expires,
            path,
            sent_path,
            own,
        })
    }

    /// Position 0 is the owner.
    pub(super) fn set_ids(&self, path_ids: &mut Vec<String>) {
        self.path
            .set_ids(path_ids, self.peer.id.as_str(), self.own.as_str());
        if let (Some(first), Some(claimed)) = (path_ids.first_mut(), self.peer.claimed.last())
            && first.is_empty()
        {
            claimed.as_str().clone_into(first);
        }
    }

    /// The answer's headers: the path with our token.
    pub(super) fn answer<T>(&self, message: T) -> tonic::Response<T> {
        let mut response = tonic::Response::new(message);
        if self.sent_path {
            set_registry_path(response.metadata_mut(), &self.path.answer());
        }
        response
    }
}

/// Subjects of the segments before the TLS peer's own one, the nearest first, up to one that
/// names nobody.
fn callers(tokens: &dyn Tokens, path: &RegistryPath) -> Vec<SpiffeId> {
    let callers = usize::try_from(path.index).unwrap_or(usize::MAX);
    let earlier: Vec<_> = path.path_segments.iter().take(callers).collect();
    let subjects = earlier.into_iter().rev().map_while(|segment| {
        let claims = tokens.claims(&segment.token)?;
        SpiffeId::new(&claims.subject).ok()
    });
    subjects.collect()
}

/// Earlier segments are claims: each token must be meant for who comes next, as stock policies
/// ask (`tokens_chained`); the last of them for the TLS peer, whose own segment is overwritten.
fn check_chain(tokens: &dyn Tokens, path: &RegistryPath, peer: &SpiffeId) -> Result<(), Status> {
    let callers = usize::try_from(path.index).unwrap_or(usize::MAX);
    let earlier = path.path_segments.iter().take(callers);
    let earlier: Vec<_> = earlier
        .map(|segment| tokens.claims(&segment.token))
        .collect();
    let nexts = earlier.iter().skip(1).map(|claims| {
        let claims = claims.as_ref()?;
        Some(claims.subject.as_str())
    });
    let nexts = nexts.chain([Some(peer.as_str())]);
    for (at, (claims, next)) in earlier.iter().zip(nexts).enumerate() {
        let (Some(claims), Some(next)) = (claims, next) else {
            continue;
        };
        if !claims.audience.iter().any(|id| id == next) {
            return Err(Status::permission_denied(format!(
                "{PATH}: PathSegments[{at}].token is for [{}] and not for {next}, who comes next",
                claims.audience.join(", ")
            )));
        }
    }
    Ok(())
}

fn bad_path(what: &str) -> Status {
    Status::invalid_argument(format!("{PATH}: {what}"))
}

/// When the right that the token gives ends: the header beside it is not signed, so the
/// earlier of both counts.
fn check_token(
    tokens: &dyn Tokens,
    token: &CallerToken,
    identity: &PeerIdentity,
    own: &SpiffeId,
) -> Result<Wall, Status> {
    let denied = |what: String| Err(Status::permission_denied(format!("{TOKEN}: {what}")));
    let Some(claims) = tokens.claims(&token.token) else {
        return Err(Status::invalid_argument(format!("{TOKEN}: is no token")));
    };
    if claims.subject != identity.id.as_str() {
        return denied(format!(
            "its subject {} is not the TLS peer {}",
            claims.subject, identity.id
        ));
    }
    if claims.expires <= clock::wall() {
        return denied("it is expired".to_owned());
    }
    if !claims.audience.is_empty() && !claims.audience.iter().any(|id| id == own.as_str()) {
        return denied(format!(
            "it is for {}, not for {own}",
            claims.audience.join(", ")
        ));
    }
    if !tokens.signed_by(&token.token, &identity.certificate_der) {
        return denied("it is not signed by the TLS peer's key".to_owned());
    }
    Ok(claims.expires.min(token.expires))
}
