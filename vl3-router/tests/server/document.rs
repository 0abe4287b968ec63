//! A change of the document reaches what a router has open.

use tonic::Code;

use crate::stage::{Stage, eventually, first, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_the_document_drops_is_left_at_once() {
    let stage = Stage::new().await;
    assert!(
        eventually(|| stage.registry.watchers() == 2).await,
        "endpoints and document are watched"
    );
    stage.publish(2, "registry/another");
    assert!(
        eventually(|| stage.registry.watchers() == 0).await,
        "both streams end"
    );
    // Nothing rests on the registry: who is attached, or comes, is served.
    let mut alpha = stage.client("workload/alpha").await;
    alpha.request(first("alpha", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_of_no_granted_role_is_refused() {
    let stage = Stage::new().await;
    let mut stranger = stage.client("somebody").await;
    let text = "spiffe://east.test/somebody";
    refused(
        stranger.request(first("somebody", 1)).await,
        Code::PermissionDenied,
        text,
    );
}
