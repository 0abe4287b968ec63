use std::path::PathBuf;

/// What the caller does next decides the variant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or unreadable: name it to the user, or wait for it.
    #[error("read {}: {reason}", path.display())]
    Read {
        path: PathBuf,
        reason: std::io::Error,
    },
    /// A file could not be written.
    #[error("write {}: {reason}", path.display())]
    Write {
        path: PathBuf,
        reason: std::io::Error,
    },
    /// The content breaks a rule: it must be replaced.
    #[error("{what}: {reason}")]
    Invalid { what: String, reason: String },
    /// The Workload API does not answer: try again.
    #[error("workload API {endpoint}: {reason}")]
    WorkloadApi { endpoint: String, reason: String },
}

impl Error {
    pub(crate) fn invalid(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Invalid {
            what: what.into(),
            reason: reason.to_string(),
        }
    }
}
