//! What NSM carries in gRPC metadata: the caller's token and the path of registry calls.

use tonic::metadata::{MetadataMap, MetadataValue};
use vl3_core::Wall;
use vl3_identity::token;

/// The caller's token: a compact JWS whose audience is the server.
pub const TOKEN: &str = "nsm-client-token";
/// Its expiry, RFC 3339 with nanoseconds.
pub const TOKEN_EXPIRES: &str = "nsm-client-token-expires";
/// Registry calls only: JSON `{"Index":0,"PathSegments":[{"token":".."}]}`.
pub const PATH: &str = "path";

/// Longest accepted `path` value: the 64 KiB header list less room for the rest.
const PATH_MAX: usize = 48 * 1024;

/// What a caller sent as its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerToken {
    pub token: String,
    pub expires: Wall,
}

/// The caller's token; unset unless both keys occur exactly once and are well formed (stock
/// servers ignore them otherwise, too).
pub fn caller_token(metadata: &MetadataMap) -> Option<CallerToken> {
    let token = once(metadata, TOKEN)?.to_owned();
    let expires = token::parse_rfc3339(once(metadata, TOKEN_EXPIRES)?)?;
    Some(CallerToken { token, expires })
}

/// The raw path of a registry call.
pub fn registry_path(metadata: &MetadataMap) -> Option<String> {
    once(metadata, PATH)
        .filter(|path| path.len() <= PATH_MAX)
        .map(str::to_owned)
}

/// Puts the path into request metadata or initial response headers. A path that is no header
/// value (it is always ASCII JSON) is left out.
pub fn set_registry_path(metadata: &mut MetadataMap, path: &str) {
    if let Ok(value) = MetadataValue::try_from(path) {
        metadata.insert(PATH, value);
    }
}

fn once<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    let mut values = metadata.get_all(key).iter();
    let first = values.next()?;
    if values.next().is_some() {
        return None;
    }
    first.to_str().ok()
}
