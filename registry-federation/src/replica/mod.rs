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
use vl3_core::document::{Member, Role as MemberRole};
use vl3_core::ids::SpiffeId;
use vl3_identity::Scope;
use vl3_runtime::clock;

use crate::store::{Candidate, Shared};

/// What this replica is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// There are no others.
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
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) role: Role,
    /// The own domain as the documents state it.
    pub(crate) own: Arc<[Member]>,
    /// Revision of the store that a following replica has come to.
    pub(crate) revision: u64,
}

/// What the layer before the services needs.
#[derive(Clone, Debug)]
pub(crate) struct Replicas {
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) shared: Option<Arc<dyn Shared>>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            role: Role::Sole,
            own: Arc::new([]),
            revision: 0,
        }
    }
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
    /// Whether that TLS peer is a registry of the own domain, by our own bundle and by a
    /// document.
    pub(crate) fn is_replica(&self, id: &SpiffeId, scopes: &[Scope]) -> bool {
        let wall = clock::wall();
        scopes.contains(&Scope::Own)
            && self
                .own
                .iter()
                .any(|member| member.is_live(wall) && member.grants(MemberRole::Registry, id))
    }
}
