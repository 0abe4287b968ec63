//! [`Tokens`] over the process's own SVID.

use core::time::Duration;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use vl3_core::Wall;
use vl3_core::ids::SpiffeId;
use vl3_identity::{Source, token};

use crate::error::Error;
use crate::tokens::{Claims, Tokens};

/// Issues with the SVID that is current at the call, so a rotated key is taken at once.
#[derive(Clone)]
pub struct SvidTokens {
    source: Source,
    lifetime: Duration,
    wall: Arc<dyn Fn() -> Wall + Send + Sync>,
}

impl std::fmt::Debug for SvidTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SvidTokens")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl SvidTokens {
    /// `lifetime` is NSM_MAX_TOKEN_LIFETIME; the SVID's end caps it.
    pub fn new(
        source: Source,
        lifetime: Duration,
        wall: impl Fn() -> Wall + Send + Sync + 'static,
    ) -> Self {
        Self {
            source,
            lifetime,
            wall: Arc::new(wall),
        }
    }
}

impl Tokens for SvidTokens {
    fn own_id(&self) -> SpiffeId {
        self.source.current().id.clone()
    }

    fn issue(&self, audience: Option<&SpiffeId>) -> Result<(String, Wall), Error> {
        token::issue(
            &self.source.current(),
            audience,
            self.lifetime,
            (self.wall)(),
        )
        .map_err(|error| Error::Internal(format!("issue a path token: {error}")))
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let claims = token::decode(token).ok()?;
        Some(Claims {
            subject: claims.subject.to_string(),
            audience: claims.audience,
            expires: claims.expires,
        })
    }

    fn signed_by(&self, token: &str, certificate: &[u8]) -> bool {
        token::verify(token, &CertificateDer::from(certificate)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use vl3_identity::authority::Authority;

    use super::*;

    #[test]
    fn an_svids_token_verifies_with_its_certificate_and_no_other() {
        let now = Wall::from_unix_secs(1_800_000_000);
        let hour = Duration::from_secs(3600);
        let authority = Authority::create("east.test", now).unwrap();
        let identity = |path: &str| authority.identity(path, hour, now).unwrap();
        let (own, other) = (identity("workload/a"), identity("workload/b"));
        let certificate = |identity: &vl3_identity::Identity| identity.chain[0].as_ref().to_vec();
        let (own_der, other_der) = (certificate(&own), certificate(&other));
        let audience = other.id;
        let tokens = SvidTokens::new(Source::fixed(own), Duration::from_secs(600), move || now);
        let (token, expires) = tokens.issue(Some(&audience)).unwrap();
        assert_eq!(expires, now + Duration::from_secs(600));
        let claims = tokens.claims(&token).unwrap();
        assert_eq!(claims.subject, tokens.own_id().to_string());
        assert_eq!(claims.audience, [audience.to_string()]);
        assert!(tokens.signed_by(&token, &own_der));
        assert!(!tokens.signed_by(&token, &other_der));
        assert!(tokens.claims("garbage").is_none());
    }
}
