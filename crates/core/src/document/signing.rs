//! Ed25519 signatures of admin keys, and the uid that binds a network to its first ones.

use core::fmt;
use std::collections::BTreeSet;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use super::AdminKey;
use crate::ids::NetworkUid;

/// One admin key's signature over a document's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    pub key: AdminKey,
    pub signature: [u8; 64],
}

/// The secret half of an admin key. Never printed.
#[derive(Clone)]
pub struct AdminSecret(SigningKey);

impl fmt::Debug for AdminSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdminSecret({})", self.public())
    }
}

impl AdminSecret {
    /// From 32 bytes of randomness, which the caller provides.
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub fn public(&self) -> AdminKey {
        AdminKey(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, bytes: &[u8]) -> Signature {
        Signature {
            key: self.public(),
            signature: self.0.sign(bytes).to_bytes(),
        }
    }
}

impl Signature {
    /// Whether this is `key`'s signature over `bytes` (strict: no malleable encodings).
    pub fn verifies(&self, bytes: &[u8]) -> bool {
        VerifyingKey::from_bytes(&self.key.0).is_ok_and(|key| {
            let signature = ed25519_dalek::Signature::from_bytes(&self.signature);
            key.verify_strict(bytes, &signature).is_ok()
        })
    }
}

impl NetworkUid {
    /// The first 128 bits of SHA-256 over the nonce and the admin keys of version 1, the keys
    /// in ascending order.
    pub fn derive(nonce: &[u8], admin_keys: &BTreeSet<AdminKey>) -> Self {
        let mut hash = Sha256::new();
        hash.update(nonce);
        for key in admin_keys {
            hash.update(key.0);
        }
        let mut uid = [0; 16];
        uid.copy_from_slice(&hash.finalize()[..16]);
        Self(uid)
    }
}
