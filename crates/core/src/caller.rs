//! Whom a share is counted for.

use crate::ids::SpiffeId;

/// Everybody of another trust domain is one caller: its authority makes as many identities as
/// it likes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    Identity(SpiffeId),
    TrustDomain(String),
}

impl Caller {
    pub fn of(id: &SpiffeId, own_trust_domain: &str) -> Self {
        if id.trust_domain() == own_trust_domain {
            Self::Identity(id.clone())
        } else {
            Self::TrustDomain(id.trust_domain().to_owned())
        }
    }

    pub const fn is_foreign(&self) -> bool {
        matches!(self, Self::TrustDomain(_))
    }

    /// How much of something all others together may take: a quarter is left for the own
    /// domain.
    pub const fn foreign_share(limit: usize) -> usize {
        limit - limit / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_counted_apart_in_the_own_trust_domain_only() {
        let of = |id: &str| Caller::of(&SpiffeId::new(id).unwrap(), "east.test");
        let (a, b) = (of("spiffe://east.test/a"), of("spiffe://east.test/b"));
        assert!(a != b && !a.is_foreign());
        let (c, d) = (of("spiffe://west.test/a"), of("spiffe://west.test/b"));
        assert!(c == d && c.is_foreign());
        assert!(c != of("spiffe://north.test/a"));
        assert_eq!([4096, 3, 1].map(Caller::foreign_share), [3072, 3, 1]);
    }
}
