//! The network document of an attachment, kept on disk: the file it was given, or a newer one
//! that its router or an earlier run brought.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use vl3_core::document::{Chain, Document, Offer, Role};
use vl3_core::ids::NetworkUid;
use vl3_identity::Trust;
use vl3_proto::document::{decode_chain, read_armoured, write_armoured};
use vl3_proto::vl3::network::v1::DocumentChain;
use vl3_runtime::DocumentAlarms;
use vl3_runtime::grpc::Expect;

/// One network's document. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Documents {
    believed: vl3_runtime::Documents,
    stored_at: Option<PathBuf>,
    /// One write at a time: several routers may send a version at once.
    writing: Arc<Mutex<()>>,
}

impl Documents {
    /// Reads the configured file and, where it is newer, the one stored by an earlier run.
    pub(crate) fn open(
        file: &Path,
        uid: NetworkUid,
        stored_at: Option<PathBuf>,
        trust: Trust,
        alarms: &DocumentAlarms,
    ) -> anyhow::Result<Self> {
        let given = read(file, uid)?;
        let path = stored_at.as_deref().filter(|path| path.exists());
        let stored = path.and_then(|path| match read(path, uid) {
            Ok(chain) => Some(chain),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "stored document is not used");
                None
            }
        });
        let chain = vl3_runtime::Documents::at_start(given, stored);
        Ok(Self {
            believed: vl3_runtime::Documents::new(chain, trust).counted(alarms),
            stored_at,
            writing: Arc::default(),
        })
    }

    pub(crate) fn current(&self) -> Arc<Document> {
        self.believed.current()
    }

    /// Takes what somebody sent, if it is a newer valid version.
    pub(crate) fn offer(&self, chain: &DocumentChain) {
        let chain = match decode_chain(chain) {
            Ok(chain) => chain,
            Err(error) => return tracing::warn!(%error, "a document that was sent is not valid"),
        };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Offer::Newer(newer) = self.believed.offer(&chain) {
            self.write(&newer);
            self.believed.believe(newer);
        }
    }

    /// As [`vl3_runtime::Documents::expect`].
    pub(crate) fn expect(&self, role: Role) -> Expect {
        self.believed.expect(role)
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
