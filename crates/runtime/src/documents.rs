//! The network document as one participant believes it: the highest valid version, from
//! whomever it came. The one place where an offered version is judged, so that every role does
//! the same with a fork of a version: an alarm, and nothing changes.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::watch;
use vl3_core::document::{Chain, Document, DocumentStore, Offer, Role};
use vl3_core::ids::{DomainName, NetworkUid, SpiffeId};
use vl3_identity::Trust;

use crate::grpc::Expect;
use crate::{Metrics, clock};

/// Offered documents that mean a misused key or a mixed-up network, of every network of the
/// process. Cheap to clone; clones share the figures.
#[derive(Clone, Debug, Default)]
pub struct DocumentAlarms(Family<Alarm, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Alarm {
    reason: &'static str,
}

impl DocumentAlarms {
    const CONFLICT: Alarm = Alarm { reason: "conflict" };
    const OTHER_NETWORK: Alarm = Alarm {
        reason: "other_network",
    };

    pub(crate) fn register(&self, metrics: &Metrics) {
        // Both are there at 0, so that a first one is an increase.
        drop(self.0.get_or_create(&Self::CONFLICT));
        drop(self.0.get_or_create(&Self::OTHER_NETWORK));
        metrics.register(|registry| {
            registry.register(
                "document_alarms",
                "Offered documents that are a fork of a version or of another network",
                self.0.clone(),
            );
        });
    }

    fn count(&self, offer: &Offer) {
        let alarm = match offer {
            Offer::Newer(_) | Offer::Same | Offer::Older { .. } => return,
            Offer::Conflict { .. } => Self::CONFLICT,
            Offer::OtherNetwork { .. } => Self::OTHER_NETWORK,
        };
        self.0.get_or_create(&alarm).inc();
    }
}

/// One network's document. Cheap to clone; every holder sees the same.
///
/// A newer version takes two steps: [`Documents::offer`] judges it, and once it is stored
/// [`Documents::believe`] puts it in force. Who stores nothing believes at once.
#[derive(Clone, Debug)]
pub struct Documents {
    chain: Arc<watch::Sender<Chain>>,
    trust: Trust,
    alarms: DocumentAlarms,
}

impl Documents {
    /// Believes `chain`, which is on disk already, and trusts its members.
    pub fn new(chain: Chain, trust: Trust) -> Self {
        let documents = Self {
            chain: Arc::new(watch::Sender::new(chain)),
            trust,
            alarms: DocumentAlarms::default(),
        };
        documents.trust_members();
        documents
    }

    /// Counts what is wrong with offered documents there.
    #[must_use]
    pub fn counted(mut self, alarms: &DocumentAlarms) -> Self {
        self.alarms = alarms.clone();
        self
    }

    /// What a start believes: what an earlier run stored, unless the configured file is newer.
    pub fn at_start(given: Chain, stored: Option<Chain>) -> Chain {
        let Some(stored) = stored else {
            return given;
        };
        match judge(&stored, &given) {
            Offer::Newer(newer) => newer,
            Offer::Same | Offer::Older { .. } | Offer::Conflict { .. } => stored,
            Offer::OtherNetwork { .. } => given,
        }
    }

    pub fn uid(&self) -> NetworkUid {
        self.chain.borrow().uid()
    }

    pub fn current(&self) -> Arc<Document> {
        Arc::clone(self.chain.borrow().document())
    }

    pub fn chain(&self) -> Chain {
        self.chain.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Chain> {
        self.chain.subscribe()
    }

    /// Judges what somebody sent and changes nothing: [`Offer::Newer`] is to be stored and then
    /// believed. Whatever is wrong with it is in the log.
    pub fn offer(&self, offered: &Chain) -> Offer {
        let offer = judge(&self.chain.borrow(), offered);
        self.alarms.count(&offer);
        offer
    }

    /// Puts a version in force: its members are trusted, then its followers see it. One that is
    /// not newer by now changes nothing.
    pub fn believe(&self, newer: Chain) {
        self.chain.send_if_modified(|held| {
            let taken = matches!(DocumentStore::new(held.clone()).decide(&newer), Offer::Newer(_));
            if taken {
                let document = newer.document();
                tracing::info!(network = %document.name, version = document.version, "newer network document");
                trust(&self.trust, document);
                *held = newer;
            }
            taken
        });
    }

    /// Any live member's identity in that role, as the newest document states it at the moment
    /// of each handshake.
    pub fn expect(&self, role: Role) -> Expect {
        let what = format!("a {role:?} of network {}", self.current().name);
        let documents = self.clone();
        Expect::new(what, move |peer| {
            let document = documents.current();
            document.speaker(role, &peer.id, clock::wall()).is_some()
        })
        .trusted_in(self.uid())
    }

    /// That role's identity in one domain, as the newest document states it at the moment of
    /// each handshake.
    pub fn expect_of(&self, domain: &DomainName, role: Role) -> Expect {
        let what = format!("the {role:?} of domain {domain}");
        let (documents, domain) = (self.clone(), domain.clone());
        Expect::new(what, move |peer| documents.grants(&domain, role, &peer.id))
            .trusted_in(self.uid())
    }

    /// Whether an identity may act in that role for a domain, by the newest document.
    pub fn grants(&self, domain: &DomainName, role: Role, id: &SpiffeId) -> bool {
        self.current()
            .member(domain, clock::wall())
            .is_some_and(|member| member.grants(role, id))
    }

    fn trust_members(&self) {
        trust(&self.trust, &self.current());
    }
}

fn judge(held: &Chain, offered: &Chain) -> Offer {
    let offer = DocumentStore::new(held.clone()).decide(offered);
    match &offer {
        Offer::Newer(_) | Offer::Same => {}
        Offer::Older { held, offered } => {
            tracing::debug!(held, offered, "an older network document was offered");
        }
        Offer::Conflict { version } => tracing::error!(
            version,
            "two different documents of one version are signed: an admin key is misused, ask the network's admin; nothing changes"
        ),
        Offer::OtherNetwork { offered } => {
            tracing::error!(%offered, held = %held.uid(), "a document of another network was offered");
        }
    }
    offer
}

fn trust(trust: &Trust, document: &Document) {
    if let Err(errors) = trust.set_document(document, clock::wall()) {
        for error in errors {
            tracing::error!(%error, "a member's bundle of the network document is not used");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vl3_core::document::{AdminSecret, Member, Policy, RoleIds, SignedDocument};
    use vl3_core::ids::{Generation, NetworkName};
    use vl3_identity::authority::Authority;
    use vl3_identity::{Scope, Source, Verified};

    use super::*;

    const DAY: core::time::Duration = core::time::Duration::from_secs(86_400);

    fn domain() -> DomainName {
        DomainName::new("east").unwrap()
    }

    /// Version `version` of network `network`; the registry's name tells forks apart.
    fn chain(network: u8, version: u64, registry: &str) -> Chain {
        let secret = AdminSecret::from_bytes(&[network; 32]);
        let admin_keys = BTreeSet::from([secret.public()]);
        let nonce = vec![network; 16];
        let authority = Authority::create("east.test", clock::wall()).unwrap();
        let mut roles = RoleIds::defaults("east.test");
        roles.registry = vec![format!("spiffe://east.test/vl3/registry/{registry}")];
        let member = Member {
            domain: domain(),
            bundle: authority.bundle_pem().into_bytes(),
            roles,
            trust_domain: "east.test".to_owned(),
            contacts: Vec::new(),
            block4: None,
            block6: "fd77:0:0:0:1::/80".parse().unwrap(),
            generation: Generation(1),
            not_after: None,
            revoked: false,
            dials_only: false,
        };
        let document = Document {
            uid: NetworkUid::derive(&nonce, &admin_keys),
            nonce,
            version,
            name: NetworkName::new("red").unwrap(),
            zone: "red.test".to_owned(),
            pool6: "fd77::/64".parse().unwrap(),
            pool4: None,
            admin_keys,
            members: [(domain(), member)].into(),
            policy: Policy::default(),
        };
        let sign = |document: Document| {
            let bytes = format!("{network} {} {registry}", document.version).into_bytes();
            SignedDocument::sign(bytes, document, &[&secret])
        };
        let mut links = Vec::new();
        if version > 1 {
            // The first version is the same whatever follows it.
            let mut first = document.clone();
            first.version = 1;
            links.push(SignedDocument::sign(vec![network], first, &[&secret]));
        }
        links.push(sign(document));
        Chain::verify(links).unwrap()
    }

    fn documents(chain: Chain) -> Documents {
        let authority = Authority::create("east.test", clock::wall()).unwrap();
        let identity = authority
            .identity("workload/a", DAY, clock::wall())
            .unwrap();
        Documents::new(chain, Trust::new(&Source::fixed(identity)))
    }

    #[test]
    fn a_newer_version_is_in_force_when_it_is_believed_and_not_before() {
        let documents = documents(chain(1, 2, "a"));
        let mut seen = documents.subscribe();
        let Offer::Newer(newer) = documents.offer(&chain(1, 3, "a")) else {
            panic!("version 3 is newer");
        };
        assert_eq!(documents.current().version, 2);
        documents.believe(newer.clone());
        assert_eq!(documents.current().version, 3);
        assert!(seen.has_changed().unwrap());
        seen.mark_unchanged();
        documents.believe(newer);
        documents.believe(chain(1, 2, "a"));
        assert_eq!(documents.current().version, 3);
        assert!(!seen.has_changed().unwrap());
    }

    #[test]
    fn a_fork_of_a_version_and_another_network_change_nothing() {
        let held = chain(1, 2, "a");
        let (alarms, metrics) = (DocumentAlarms::default(), Metrics::default());
        alarms.register(&metrics);
        let documents = documents(held.clone()).counted(&alarms);
        let fork = chain(1, 2, "b");
        assert_eq!(documents.offer(&fork), Offer::Conflict { version: 2 });
        let other = chain(2, 9, "a");
        assert!(matches!(
            documents.offer(&other),
            Offer::OtherNetwork { .. }
        ));
        for chain in [fork, other] {
            documents.believe(chain);
            assert_eq!(documents.chain(), held);
        }
        for reason in ["conflict", "other_network"] {
            let line = format!("vl3_document_alarms_total{{reason=\"{reason}\"}} 1");
            assert!(metrics.encode().contains(&line));
        }
    }

    #[test]
    fn a_start_takes_the_newer_of_file_and_store_and_never_a_fork() {
        let (two, three, fork) = (chain(1, 2, "a"), chain(1, 3, "a"), chain(1, 2, "b"));
        let at_start = |given: &Chain, stored: Option<&Chain>| {
            Documents::at_start(given.clone(), stored.cloned())
        };
        assert_eq!(at_start(&two, None), two);
        assert_eq!(at_start(&two, Some(&three)), three);
        assert_eq!(at_start(&three, Some(&two)), three);
        assert_eq!(at_start(&fork, Some(&two)), two);
    }

    #[test]
    fn who_is_expected_follows_the_document() {
        let documents = documents(chain(1, 2, "a"));
        let id = |name: &str| Verified {
            id: SpiffeId::new(&format!("spiffe://east.test/vl3/registry/{name}")).unwrap(),
            not_after: clock::wall(),
            scopes: vec![Scope::Own],
        };
        let (one, any) = (
            documents.expect_of(&domain(), Role::Registry),
            documents.expect(Role::Registry),
        );
        for expect in [&one, &any] {
            assert!(expect.admits(&id("a")) && !expect.admits(&id("b")));
        }
        documents.believe(chain(1, 3, "b"));
        for expect in [&one, &any] {
            assert!(!expect.admits(&id("a")) && expect.admits(&id("b")));
        }
    }
}
