//! Checked conversions, one file per kind of value.

pub(crate) mod address;
pub(crate) mod hello;
pub(crate) mod mechanism;
pub(crate) mod time;

use vl3_core::ids::{InstanceId, NetworkUid};

/// A field of a message that cannot be taken: its path, its value, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} is not allowed: {allowed}")]
pub struct FieldError {
    pub field: String,
    pub value: String,
    pub allowed: &'static str,
}

impl FieldError {
    /// Values are cut, so that an error never carries a megabyte back.
    pub fn new(field: impl Into<String>, value: impl AsRef<str>, allowed: &'static str) -> Self {
        const VALUE_MAX: usize = 80;
        let value = value.as_ref();
        let mut shown: String = value.chars().take(VALUE_MAX).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Self {
            field: field.into(),
            value: shown,
            allowed,
        }
    }
}

impl From<FieldError> for tonic::Status {
    fn from(error: FieldError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(40)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A network uid field: exactly 16 bytes.
pub fn network_uid(field: &str, bytes: &[u8]) -> Result<NetworkUid, FieldError> {
    bytes
        .try_into()
        .map(NetworkUid)
        .map_err(|_| FieldError::new(field, hex(bytes), "16 bytes, a network's uid"))
}

/// An instance field: exactly 16 bytes.
pub fn instance_id(field: &str, bytes: &[u8]) -> Result<InstanceId, FieldError> {
    bytes
        .try_into()
        .map(InstanceId)
        .map_err(|_| FieldError::new(field, hex(bytes), "16 random bytes of one state directory"))
}
