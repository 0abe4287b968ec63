//! An identity from the SPIFFE Workload API. The only file that names the spiffe crate.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::X509Source;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::{Bundle, Error, Identity};

/// Connects, waits for the first SVID and follows the updates.
pub(crate) async fn connect(
    endpoint: &str,
) -> Result<(watch::Receiver<Arc<Identity>>, AbortHandle), Error> {
    let failed = |reason: String| Error::WorkloadApi {
        endpoint: endpoint.to_owned(),
        reason,
    };
    let source = X509Source::builder()
        .endpoint(endpoint)
        .build()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut updates = source.updated();
    let first = convert(&source).map_err(|error| failed(error.to_string()))?;
    let (sender, receiver) = watch::channel(Arc::new(first));
    let task = tokio::spawn(async move {
        // The source reconnects by itself; this ends with the process.
        while updates.changed().await.is_ok() {
            match convert(&source) {
                Ok(identity) => {
                    tracing::info!(id = %identity.id, "identity rotated");
                    if sender.send(Arc::new(identity)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "SVID is not usable; keeping the identity held")
                }
            }
        }
    });
    Ok((receiver, task.abort_handle()))
}

fn convert(source: &X509Source) -> Result<Identity, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::invalid("X.509-SVID", error);
    let context = source.x509_context().map_err(|error| bad(&error))?;
    let svid = source.svid().map_err(|error| bad(&error))?;
    let bundle = context
        .bundle_set()
        .get(svid.spiffe_id().trust_domain())
        .ok_or_else(|| Error::invalid("trust bundle", "none for the own trust domain"))?
        .authorities()
        .iter()
        .map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec()))
        .collect();
    let chain = svid
        .cert_chain()
        .iter()
        .map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec()))
        .collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
        svid.private_key().as_bytes().to_vec(),
    ));
    Identity::new(chain, &key, Bundle::from_der(bundle)?)
}
