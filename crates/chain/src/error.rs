//! Why a call was refused, by what the caller does next.

/// The end of a call that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The message is wrong; the same message will be wrong again. Names the field.
    #[error("{0}")]
    Invalid(String),
    /// The caller may not do this.
    #[error("{0}")]
    Denied(String),
    /// Nothing by that name here.
    #[error("{0}")]
    NotFound(String),
    /// A limit is reached; names it.
    #[error("{0}")]
    Exhausted(String),
    /// Not in this state: another holder, another network, a fenced router.
    #[error("{0}")]
    Precondition(String),
    /// Try again later, with back-off.
    #[error("{0}")]
    Unavailable(String),
    /// As stock NSM answers what it has no code for.
    #[error("{0}")]
    Unknown(String),
    /// A fault of ours.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Whether the same call may succeed later.
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Exhausted(_))
    }
}

impl From<vl3_proto::FieldError> for Error {
    fn from(error: vl3_proto::FieldError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(text) => Self::invalid_argument(text),
            Error::Denied(text) => Self::permission_denied(text),
            Error::NotFound(text) => Self::not_found(text),
            Error::Exhausted(text) => Self::resource_exhausted(text),
            Error::Precondition(text) => Self::failed_precondition(text),
            Error::Unavailable(text) => Self::unavailable(text),
            Error::Unknown(text) => Self::unknown(text),
            Error::Internal(text) => Self::internal(text),
        }
    }
}
