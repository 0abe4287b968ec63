//! What an X.509-SVID must be (SPIFFE X509-SVID, sections 2 to 4) and what we read from it.

use rustls_pki_types::CertificateDer;
use vl3_core::Wall;
use vl3_core::ids::SpiffeId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The facts of one leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) not_after: Wall,
    /// The subject public key: for P-256 an uncompressed point (65 bytes).
    pub(crate) public_key: Vec<u8>,
    pub(crate) is_p256: bool,
}

/// Parses a leaf: exactly one URI SAN, which is a SPIFFE ID with a path; no CA; the key may
/// sign.
pub(crate) fn leaf(der: &CertificateDer<'_>) -> Result<Leaf, String> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| format!("is no X.509 certificate: {error}"))?;
    let alternative = certificate
        .subject_alternative_name()
        .map_err(|error| format!("has broken alternative names: {error}"))?;
    let mut uris = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err("must have exactly one URI alternative name".to_owned());
    };
    let id = SpiffeId::new(uri).map_err(|error| error.to_string())?;
    if id.path().is_empty() {
        return Err(format!("names a trust domain, not a workload: {id}"));
    }
    let constraints = certificate
        .basic_constraints()
        .map_err(|error| error.to_string())?;
    if constraints.is_some_and(|extension| extension.value.ca) {
        return Err(format!(
            "is a CA certificate and cannot be the leaf of {id}"
        ));
    }
    let usage = certificate.key_usage().map_err(|error| error.to_string())?;
    let fits = usage.is_none_or(|usage| {
        usage.value.digital_signature() && !usage.value.key_cert_sign() && !usage.value.crl_sign()
    });
    if !fits {
        return Err(format!(
            "has the wrong key usage for a leaf ({id}): digitalSignature only"
        ));
    }
    let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let key = certificate.public_key();
    // RFC 5480: id-ecPublicKey with the named curve secp256r1.
    let is_p256 = key.algorithm.algorithm.to_id_string() == "1.2.840.10045.2.1"
        && key
            .algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.as_oid().ok())
            .is_some_and(|curve| curve.to_id_string() == "1.2.840.10045.3.1.7");
    Ok(Leaf {
        id,
        not_after: Wall::from_unix_secs(not_after),
        public_key: key.subject_public_key.data.to_vec(),
        is_p256,
    })
}

/// The trust domain that a root of the built-in CA names.
pub(crate) fn trust_domain_of_root(der: &CertificateDer<'_>) -> Result<String, String> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| format!("is no X.509 certificate: {error}"))?;
    let alternative = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .find_map(|name| match name {
            GeneralName::URI(uri) => SpiffeId::new(uri).ok(),
            _ => None,
        })
        .map(|id| id.trust_domain().to_owned())
        .ok_or_else(|| "names no trust domain".to_owned())
}
