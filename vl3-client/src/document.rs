//! The network document that an attachment believes: the file it was given, or a newer one
//! that its router or an earlier run brought.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use tokio::sync::watch;
use vl3_core::document::{Chain, Document, DocumentStore, Offer, Role};
use vl3_core::ids::NetworkUid;
use vl3_identity::Trust;
use vl3_proto::document::{decode_chain, read_armoured, write_armoured};
use vl3_proto::vl3::network::v1::DocumentChain;
use vl3_runtime::clock;
use vl3_runtime::grpc::Expect;

/// One network's document. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Documents {
    store: Arc<Mutex<DocumentStore>>,
    current: Arc<watch::Sender<Arc<Document>>>,
    stored_at: Option<PathBuf>,
    trust: Trust,
}

impl Documents {
    /// Reads the configured file and, where it is newer, the one stored by an earlier run.
    pub(crate) fn open(
        file: &Path,
        uid: NetworkUid,
        stored_at: Option<PathBuf>,
        trust: Trust,
    ) -> anyhow::Result<Self> {
        let given = read(file, uid)?;
        let mut store = DocumentStore::new(given);
        if let Some(path) = stored_at.as_deref().filter(|path| path.exists()) {
            match read(path, uid).map(|chain| store.decide(&chain)) {
                Ok(Offer::Newer(chain)) => store.apply(chain),
                Ok(
                    Offer::Same
                    | Offer::Older { .. }
                    | Offer::Conflict { .. }
                    | Offer::OtherNetwork { .. },
                ) => {}
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "stored document is not used")
                }
            }
        }
        let current = Arc::new(watch::Sender::new(Arc::clone(store.document())));
        let documents = Self {
            store: Arc::new(Mutex::new(store)),
            current,
            stored_at,
            trust,
        };
        documents.believe(&documents.current());
        Ok(documents)
    }

    pub(crate) fn current(&self) -> Arc<Document> {
        Arc::clone(&self.current.borrow())
    }

    /// Takes what somebody sent, if it is a newer valid version.
    pub(crate) fn offer(&self, chain: &DocumentChain) {
        let chain = match decode_chain(chain) {
            Ok(chain) => chain,
            Err(error) => return tracing::warn!(%error, "a document that was sent is not valid"),
        };
        let document = {
            let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            match store.decide(&chain) {
                Offer::Newer(chain) => store.apply(chain),
                Offer::Same | Offer::Older { .. } => return,
                Offer::Conflict { version } => {
                    return tracing::error!(
                        version,
                        "two documents of one version are signed: ask the network's admin"
                    );
                }
                Offer::OtherNetwork { offered } => {
                    return tracing::warn!(%offered, "a document of another network was sent");
                }
            }
            self.write(store.chain());
            Arc::clone(store.document())
        };
        tracing::info!(network = %document.name, version = document.version, "newer network document");
        self.believe(&document);
        self.current.send_replace(document);
    }

    fn believe(&self, document: &Document) {
        if let Err(errors) = self.trust.set_document(document, clock::wall()) {
            for error in errors {
                tracing::warn!(%error, "a bundle of the network document is not used");
            }
        }
    }

    /// Kept for the next start; a failure costs nothing but that.
    fn write(&self, chain: &Chain) {
        let Some(path) = &self.stored_at else { return };
        let new = path.with_extension("new");
        let written =
            std::fs::write(&new, write_armoured(chain)).and_then(|()| std::fs::rename(&new, path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "document was not stored");
        }
    }

    /// Any live member's identity in that role, as the newest document states it at the moment
    /// of each handshake.
    pub(crate) fn expect(&self, role: Role) -> Expect {
        let current = self.current.subscribe();
        let (uid, name) = {
            let document = self.current();
            (document.uid, document.name.clone())
        };
        Expect::new(format!("a {role:?} of network {name}"), move |peer| {
            current
                .borrow()
                .speaker(role, &peer.id, clock::wall())
                .is_some()
        })
        .trusted_in(uid)
    }
}

fn read(path: &Path, uid: NetworkUid) -> anyhow::Result<Chain> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read network document {}", path.display()))?;
    let chain =
        read_armoured(&text).with_context(|| format!("network document {}", path.display()))?;
    if chain.uid() != uid {
        bail!(
            "network document {} is of network {}, not of the configured {uid}",
            path.display(),
            chain.uid()
        );
    }
    Ok(chain)
}
