//! Whom to trust: the own bundle, and those that network documents give for other domains.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use vl3_core::Wall;
use vl3_core::document::Document;
use vl3_core::ids::{NetworkUid, SpiffeId};

use crate::{Bundle, Error, Scope, Source, certificate};

type Foreign = BTreeMap<NetworkUid, BTreeMap<String, Bundle>>;

/// The bundles in force, swappable at run time. Cheap to clone; clones share the state.
///
/// The own trust domain is judged by the own source's bundle alone: no document can add roots
/// to it. A foreign certificate counts only within the networks whose documents vouch for it
/// ([`Scope`]).
#[derive(Clone, Debug)]
pub struct Trust {
    source: Source,
    foreign: Arc<watch::Sender<Arc<Foreign>>>,
}

/// A chain that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub id: SpiffeId,
    pub not_after: Wall,
    pub scopes: Vec<Scope>,
}

impl Trust {
    pub fn new(source: &Source) -> Self {
        Self {
            source: source.clone(),
            foreign: Arc::new(watch::Sender::new(Arc::default())),
        }
    }

    /// Takes the bundles of a document's live members, in place of that network's old ones.
    /// Every bundle that cannot be read is an error in the result and trusts nobody.
    pub fn set_document(&self, document: &Document, now: Wall) -> Result<(), Vec<Error>> {
        let mut errors = Vec::new();
        let mut bundles: BTreeMap<String, Bundle> = BTreeMap::new();
        for member in document.live_members(now) {
            match Bundle::from_pem(&member.bundle) {
                Ok(bundle) => {
                    bundles.insert(member.trust_domain.clone(), bundle);
                }
                Err(error) => {
                    errors.push(Error::invalid(format!("member {}", member.domain), error))
                }
            }
        }
        self.set_network(document.uid, bundles);
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Bundles per trust domain that count within one network.
    pub fn set_network(&self, network: NetworkUid, bundles: BTreeMap<String, Bundle>) {
        self.foreign.send_if_modified(|foreign| {
            if foreign.get(&network) == Some(&bundles) {
                return false;
            }
            let mut next = Foreign::clone(foreign);
            next.insert(network, bundles);
            *foreign = Arc::new(next);
            true
        });
    }

    pub fn remove_network(&self, network: &NetworkUid) {
        self.foreign.send_if_modified(|foreign| {
            let mut next = Foreign::clone(foreign);
            let changed = next.remove(network).is_some();
            *foreign = Arc::new(next);
            changed
        });
    }

    /// Verifies a chain (leaf first) at a time; the error says what is wrong.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Verified, String> {
        let (first, intermediates) = chain.split_first().ok_or("no certificate was sent")?;
        let leaf = certificate::leaf(first)?;
        let parsed = ParsedCertificate::try_from(first).map_err(|error| error.to_string())?;
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let signed_by = |bundle: &Bundle| {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                bundle.roots(),
                intermediates,
                now,
                algorithms.all,
            )
        };
        let own = self.source.current();
        let trust_domain = leaf.id.trust_domain();
        let mut refusal = None;
        let mut scopes = Vec::new();
        if trust_domain == own.id.trust_domain() {
            match signed_by(&own.bundle) {
                Ok(()) => scopes.push(Scope::Own),
                Err(error) => refusal = Some(error),
            }
        } else {
            let foreign = Arc::clone(&self.foreign.borrow());
            for (network, bundles) in foreign.iter() {
                match bundles.get(trust_domain).map(signed_by) {
                    None => {}
                    Some(Ok(())) => scopes.push(Scope::Network(*network)),
                    Some(Err(error)) => refusal = Some(error),
                }
            }
        }
        match (scopes.is_empty(), refusal) {
            (false, _) => Ok(Verified {
                id: leaf.id,
                not_after: leaf.not_after,
                scopes,
            }),
            (true, Some(error)) => Err(format!("{}: {error}", leaf.id)),
            (true, None) => Err(format!(
                "{}: no bundle is known for trust domain {trust_domain}",
                leaf.id
            )),
        }
    }

    pub const fn source(&self) -> &Source {
        &self.source
    }

    /// Sees every change of foreign bundles; the own source has its own `subscribe`.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Foreign>> {
        self.foreign.subscribe()
    }
}
