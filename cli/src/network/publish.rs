//! Handing a version to one registry; sync carries it on.

use std::path::Path;

use anyhow::{Context, anyhow};
use vl3_core::document::{Chain, Role};
use vl3_identity::{Scope, Source, Trust, Verified};
use vl3_proto::document::encode_chain;
use vl3_proto::vl3::network::v1::network_client::NetworkClient;
use vl3_runtime::clock;
use vl3_runtime::grpc::{DialUrl, Dialer, Expect};

use crate::app::Failure;

/// Returns what the registry answered, for people.
pub(crate) async fn publish(chain: &Chain, to: &str, identity: &Path) -> Result<String, Failure> {
    let document = chain.document();
    let url: DialUrl = to.parse().map_err(|error| anyhow!("--to {error}"))?;
    let source = Source::from_dir(identity).map_err(|error| {
        Failure::with_next(
            anyhow::Error::new(error)
                .context(format!("read the identity in {}", identity.display())),
            format!(
                "vl3 identity issue workload admin --out {}",
                identity.display()
            ),
        )
    })?;
    let trust = Trust::new(&source);
    // A member whose bundle is broken cannot be the one that is dialled.
    let _broken_bundles = trust.set_document(document, clock::wall());
    let (members, uid) = (document.clone(), document.uid);
    let expect = Expect::new(
        format!("the registry of a member of {}", document.name),
        move |peer: &Verified| {
            let counts = peer
                .scopes
                .iter()
                .any(|scope| matches!(scope, Scope::Own) || *scope == Scope::Network(uid));
            counts
                && members
                    .speaker(Role::Registry, &peer.id, clock::wall())
                    .is_some()
        },
    );
    let connection = Dialer::new(source, trust)
        .dial(&url, expect)
        .await
        .with_context(|| format!("reach the registry at {to}"))?;
    let registry = connection.peer().id.clone();
    let mut client = NetworkClient::new(connection.plain());
    let reply = client
        .publish(encode_chain(chain))
        .await
        .map_err(|status| anyhow!("{registry} refuses: {}", status.message()))?
        .into_inner();
    if !reply.accepted {
        let held = reply.version;
        return Err(anyhow!(
            "{registry} holds version {held} and refuses {}: {}",
            document.version,
            reply.reason
        )
        .into());
    }
    let note = if reply.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", reply.reason)
    };
    Ok(format!(
        "{registry} holds version {} of network {}{note}",
        reply.version, document.name
    ))
}
