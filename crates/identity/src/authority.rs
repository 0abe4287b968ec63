//! The built-in CA of one trust domain: for sites without SPIRE, the demo and tests.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use vl3_core::Wall;
use vl3_core::ids::SpiffeId;

use crate::{Bundle, Error, Identity};

/// Ten years: the root is replaced by a new document, not by expiry in the night.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks of other sites may be behind.
const BACKDATE: Duration = Duration::from_secs(300);

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";

/// A CA key with its self-signed root.
pub struct Authority {
    trust_domain: String,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// What a leaf consists of, as PEM.
#[derive(Clone)]
pub struct Issued {
    pub svid: String,
    pub key: String,
    pub bundle: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({}, key redacted)", self.trust_domain)
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issued(key redacted)")
    }
}

impl Authority {
    /// A new root for a trust domain.
    pub fn create(trust_domain: &str, now: Wall) -> Result<Self, Error> {
        let id = SpiffeId::new(&format!("spiffe://{trust_domain}"))
            .map_err(|error| Error::invalid("trust domain", error))?;
        let key = new_key()?;
        let certificate = root_parameters(&id, now)?
            .self_signed(&key)
            .map_err(|error| Error::invalid("root certificate", error))?;
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            certificate: certificate.der().clone(),
            key,
        })
    }

    /// Reads `ca.pem` and `ca-key.pem`.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let (certificate_path, key_path) = (dir.join(CERTIFICATE), dir.join(KEY));
        let certificate = CertificateDer::from_pem_slice(&read(&certificate_path)?)
            .map_err(|error| Error::invalid(certificate_path.display().to_string(), error))?;
        let key = String::from_utf8(read(&key_path)?)
            .map_err(|error| Error::invalid(key_path.display().to_string(), error))?;
        let key = KeyPair::from_pem(&key)
            .map_err(|error| Error::invalid(key_path.display().to_string(), error))?;
        let trust_domain = crate::certificate::trust_domain_of_root(&certificate)
            .map_err(|reason| Error::invalid(certificate_path.display().to_string(), reason))?;
        Ok(Self {
            trust_domain,
            certificate,
            key,
        })
    }

    /// Writes `ca.pem`, `ca-key.pem` (0600) and `bundle.pem`; refuses to replace a CA.
    pub fn store(&self, dir: &Path) -> Result<(), Error> {
        create_dir(dir)?;
        write(
            &dir.join(KEY),
            self.key.serialize_pem().as_bytes(),
            Mode::New,
        )?;
        write(
            &dir.join(CERTIFICATE),
            self.bundle_pem().as_bytes(),
            Mode::New,
        )?;
        write(
            &dir.join("bundle.pem"),
            self.bundle_pem().as_bytes(),
            Mode::Replace,
        )
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub fn bundle_pem(&self) -> String {
        crate::identity::to_pem("CERTIFICATE", &self.certificate)
    }

    /// A leaf for `spiffe://<trust domain>/<path>`, e.g. `vl3/router/red-east` or `workload/a`.
    pub fn issue(&self, path: &str, lifetime: Duration, now: Wall) -> Result<Issued, Error> {
        self.issue_at(path, &[], lifetime, now)
    }

    /// As [`Self::issue`], for a server of another make, whose clients look at its address.
    pub fn issue_at(
        &self,
        path: &str,
        addresses: &[IpAddr],
        lifetime: Duration,
        now: Wall,
    ) -> Result<Issued, Error> {
        let id = SpiffeId::new(&format!("spiffe://{}/{path}", self.trust_domain))
            .map_err(|error| Error::invalid("SPIFFE ID", error))?;
        let key = new_key()?;
        let mut params = parameters(&id, now, lifetime)?;
        let addresses = addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name = name("vL3");
        // The issuer's name and key identifier follow from the trust domain and the key, so
        // the root needs no parsing.
        let issuer = Issuer::new(root_parameters(&id, now)?, &self.key);
        let certificate = params
            .signed_by(&key, &issuer)
            .map_err(|error| Error::invalid("certificate", error))?;
        Ok(Issued {
            svid: crate::identity::to_pem("CERTIFICATE", certificate.der()),
            key: key.serialize_pem(),
            bundle: self.bundle_pem(),
        })
    }

    /// A leaf held in memory.
    pub fn identity(&self, path: &str, lifetime: Duration, now: Wall) -> Result<Identity, Error> {
        let issued = self.issue(path, lifetime, now)?;
        Identity::from_pem(
            issued.svid.as_bytes(),
            issued.key.as_bytes(),
            issued.bundle.as_bytes(),
        )
    }

    pub fn bundle(&self) -> Result<Bundle, Error> {
        Bundle::from_der(vec![self.certificate.clone()])
    }
}

impl Issued {
    /// Writes an identity directory (0600 each), file by file in place of the old ones; readers
    /// wait until the set fits together.
    pub fn store(&self, dir: &Path) -> Result<(), Error> {
        create_dir(dir)?;
        write(&dir.join("key.pem"), self.key.as_bytes(), Mode::Replace)?;
        write(
            &dir.join("bundle.pem"),
            self.bundle.as_bytes(),
            Mode::Replace,
        )?;
        write(&dir.join("svid.pem"), self.svid.as_bytes(), Mode::Replace)
    }
}

fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| Error::invalid("key", error))
}

fn root_parameters(id: &SpiffeId, now: Wall) -> Result<CertificateParams, Error> {
    let id = SpiffeId::new(&format!("spiffe://{}", id.trust_domain()))
        .map_err(|error| Error::invalid("trust domain", error))?;
    let mut params = parameters(&id, now, ROOT_LIFETIME)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = name(&format!("vL3 CA of {}", id.trust_domain()));
    Ok(params)
}

fn parameters(id: &SpiffeId, now: Wall, lifetime: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    let uri = id
        .as_str()
        .try_into()
        .map_err(|error| Error::invalid("SPIFFE ID", error))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    let epoch = date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now.unix_secs());
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now.saturating_add(lifetime);
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|reason| Error::Read {
        path: path.to_owned(),
        reason,
    })
}

enum Mode {
    /// An existing file is an error.
    New,
    /// Written beside and renamed, so that readers never see half a file.
    Replace,
}

fn create_dir(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(|reason| Error::Write {
        path: dir.to_owned(),
        reason,
    })
}

fn write(path: &Path, content: &[u8], mode: Mode) -> Result<(), Error> {
    let attempt = || -> std::io::Result<()> {
        let target = match mode {
            Mode::New => path.to_owned(),
            Mode::Replace => path.with_extension("pem.new"),
        };
        if matches!(mode, Mode::Replace) {
            // A leftover of a crashed writer.
            let _absent = std::fs::remove_file(&target);
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)?;
        file.write_all(content)?;
        file.sync_all()?;
        if target != path {
            std::fs::rename(&target, path)
        } else {
            Ok(())
        }
    };
    attempt().map_err(|reason| Error::Write {
        path: path.to_owned(),
        reason,
    })
}
