//! Several replicas of one domain's registry: what the services know of who is active, and the
//! way of a call to that one.
//!
//! Reads and watches are served where they arrive. What writes, and what belongs to one place
//! (streams of other registries), is forwarded to the active replica with the caller's
//! identity beside it.

mod caller;
mod forward;

pub(crate) use caller::ForwardedBy;
pub(crate) use forward::{Forward, ForwardMetrics};

use std::sync::Arc;

use tokio::sync::watch;
use vl3_core::ids::SpiffeId;
use vl3_identity::Scope;

use crate::store::{Candidate, Shared};

/// Whom a replica believes to be one of its domain: this is the domain's own matter, whatever
/// the documents of its networks call a registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trusted {
    own: Option<SpiffeId>,
    /// SPIFFE ID patterns.
    patterns: Arc<[String]>,
}

impl Trusted {
    /// The own identity, and those of the configuration: `spiffe://TD/vl3/registry/*` unless
    /// it names others.
    pub(crate) fn new(own: SpiffeId, configured: &[String]) -> Self {
        let usual = [format!("spiffe://{}/vl3/registry/*", own.trust_domain())];
        let patterns = if configured.is_empty() {
            &usual
        } else {
            configured
        };
        Self {
            own: Some(own),
            patterns: patterns.into(),
        }
    }

    fn has(&self, id: &SpiffeId) -> bool {
        self.own.as_ref().is_some_and(|own| {
            own == id
                || own.trust_domain() == id.trust_domain()
                    && self.patterns.iter().any(|pattern| id.matches(pattern))
        })
    }
}

/// What this replica is at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// There are no others.
    #[default]
    Sole,
    /// It has not read the store yet.
    Starting,
    Following {
        /// Who is active; None while nobody is known to be.
        active: Option<Candidate>,
    },
    Active {
        term: u64,
        /// Whether the store says so still: else another one may be.
        confirmed: bool,
    },
}

/// The role, and who else may speak for callers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) role: Role,
    pub(crate) trusted: Trusted,
    /// Revision of the store that a following replica has come to.
    pub(crate) revision: u64,
}

/// What the layer before the services needs.
#[derive(Clone, Debug)]
pub(crate) struct Replicas {
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) shared: Option<Arc<dyn Shared>>,
}

impl Role {
    /// For status, logs and metrics.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Sole => "sole",
            Self::Starting => "starting",
            Self::Following { .. } => "following",
            Self::Active { .. } => "active",
        }
    }
}

impl Standing {
    /// Where calls go that decide something: None is here. Unknown while nobody is known to be
    /// active, or the active one may be so no longer.
    fn place(&self) -> Option<Option<Candidate>> {
        match &self.role {
            Role::Sole
            | Role::Active {
                confirmed: true, ..
            } => Some(None),
            Role::Following { active } => active.clone().map(Some),
            Role::Starting | Role::Active { .. } => None,
        }
    }

    /// Whether that TLS peer is a replica of the own domain, by our own bundle.
    pub(crate) fn is_replica(&self, id: &SpiffeId, scopes: &[Scope]) -> bool {
        scopes.contains(&Scope::Own) && self.trusted.has(id)
    }
}

#[cfg(test)]
mod tests {
    use vl3_core::ids::NetworkUid;

    use super::*;

    #[test]
    fn a_replica_is_who_the_domain_says_and_whom_its_own_bundle_vouches_for() {
        let id = |text: &str| SpiffeId::new(&format!("spiffe://{text}")).unwrap();
        let standing = |own: &str, configured: &[&str]| {
            let configured: Vec<_> = configured
                .iter()
                .map(|id| format!("spiffe://{id}"))
                .collect();
            Standing {
                trusted: Trusted::new(id(own), &configured),
                ..Standing::default()
            }
        };
        let (own, network) = ([Scope::Own], [Scope::Network(NetworkUid([7; 16]))]);
        let usual = standing("east.test/vl3/registry/east", &[]);
        for (who, replica) in [
            ("east.test/vl3/registry/east", true),
            ("east.test/vl3/registry/east-2", true),
            ("east.test/workload/registry", false),
            ("east.test/vl3/router/east", false),
            ("west.test/vl3/registry/east", false),
        ] {
            assert_eq!(usual.is_replica(&id(who), &own), replica, "{who}");
            assert!(!usual.is_replica(&id(who), &network), "{who}");
        }
        // An identity that a platform gives out has no usual form.
        let pods = standing(
            "east.test/ns/vl3/sa/registry",
            &["east.test/ns/vl3/sa/other"],
        );
        for (who, replica) in [
            ("east.test/ns/vl3/sa/registry", true),
            ("east.test/ns/vl3/sa/other", true),
            ("east.test/ns/vl3/sa/third", false),
            ("east.test/vl3/registry/east", false),
        ] {
            assert_eq!(pods.is_replica(&id(who), &own), replica, "{who}");
        }
        assert!(!Standing::default().is_replica(&id("east.test/vl3/registry/east"), &own));
    }
}
