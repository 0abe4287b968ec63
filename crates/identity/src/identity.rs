//! One SVID with its key and its trust domain's bundle.

use std::fmt;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use vl3_core::Wall;
use vl3_core::ids::SpiffeId;

use crate::{Error, certificate};

/// The roots of one trust domain.
#[derive(Clone)]
pub struct Bundle {
    certificates: Arc<Vec<CertificateDer<'static>>>,
    roots: Arc<RootCertStore>,
}

/// Who we are for the moment. Replaced as a whole on rotation.
pub struct Identity {
    pub id: SpiffeId,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the own trust domain.
    pub bundle: Bundle,
    pub not_after: Wall,
    certified: Arc<CertifiedKey>,
    signer: EcdsaKeyPair,
    random: SystemRandom,
}

impl Bundle {
    /// Concatenated PEM certificates; at least one.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let certificates = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Error::invalid("trust bundle", format!("is no PEM: {error}")))?;
        Self::from_der(certificates)
    }

    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        if certificates.is_empty() {
            return Err(Error::invalid("trust bundle", "holds no certificate"));
        }
        let mut roots = RootCertStore::empty();
        for (at, certificate) in certificates.iter().enumerate() {
            roots.add(certificate.clone()).map_err(|error| {
                Error::invalid(format!("trust bundle, certificate {}", at + 1), error)
            })?;
        }
        Ok(Self {
            certificates: Arc::new(certificates),
            roots: Arc::new(roots),
        })
    }

    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The trust domains that its roots name; not every root names one.
    pub fn trust_domains(&self) -> Vec<String> {
        self.certificates
            .iter()
            .filter_map(|root| crate::certificate::trust_domain_of_root(root).ok())
            .collect()
    }

    /// As a network document carries it.
    pub fn to_pem(&self) -> String {
        self.certificates
            .iter()
            .map(|certificate| to_pem("CERTIFICATE", certificate))
            .collect()
    }

    pub(crate) fn roots(&self) -> &RootCertStore {
        &self.roots
    }
}

impl Identity {
    /// The own certificate. Never absent: an empty chain is refused when it is read.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }

    /// From PEM: certificates leaf first, a PKCS#8 P-256 key, the trust bundle. Checks that
    /// they belong together.
    pub fn from_pem(svid: &[u8], key: &[u8], bundle: &[u8]) -> Result<Self, Error> {
        let chain = CertificateDer::pem_slice_iter(svid)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Error::invalid("svid.pem", format!("is no PEM: {error}")))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            Error::invalid("key.pem", format!("is no PEM private key: {error}"))
        })?;
        Self::new(chain, &key, Bundle::from_pem(bundle)?)
    }

    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        bundle: Bundle,
    ) -> Result<Self, Error> {
        let first = chain
            .first()
            .ok_or_else(|| Error::invalid("svid.pem", "holds no certificate"))?;
        let leaf = certificate::leaf(first).map_err(|reason| Error::invalid("svid.pem", reason))?;
        let PrivateKeyDer::Pkcs8(pkcs8) = key else {
            return Err(Error::invalid(
                "key.pem",
                "must be PKCS#8 (\"BEGIN PRIVATE KEY\")",
            ));
        };
        let random = SystemRandom::new();
        let signer = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            pkcs8.secret_pkcs8_der(),
            &random,
        )
        .map_err(|error| {
            Error::invalid(
                "key.pem",
                format!("must be an ECDSA P-256 key (path tokens are ES256): {error}"),
            )
        })?;
        if ring::signature::KeyPair::public_key(&signer).as_ref() != leaf.public_key {
            return Err(Error::invalid(
                "key.pem",
                "does not belong to the certificate in svid.pem",
            ));
        }
        let signing_key = rustls::crypto::ring::sign::any_ecdsa_type(key)
            .map_err(|error| Error::invalid("key.pem", error))?;
        let certified = Arc::new(CertifiedKey::new(chain.clone(), signing_key));
        Ok(Self {
            id: leaf.id,
            chain,
            bundle,
            not_after: leaf.not_after,
            certified,
            signer,
            random,
        })
    }

    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// ES256: r and s, 32 bytes each.
    pub(crate) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.signer
            .sign(&self.random, message)
            .ok()
            .map(|signature| signature.as_ref().to_vec())
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({} certificates)", self.certificates.len())
    }
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for Bundle {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .field("key", &"redacted")
            .finish_non_exhaustive()
    }
}

/// RFC 7468: 64 characters per line.
pub(crate) fn to_pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}
