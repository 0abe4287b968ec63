//! `vl3 router leave`: a router that will not come back gives everything back.

use std::time::Duration;

use serde_json::Value;
use vl3_proto::connection::monitor_connection_client::MonitorConnectionClient;
use vl3_proto::connection::{ConnectionEventType, MonitorScopeSelector};
use vl3_proto::networkservice::network_service_client::NetworkServiceClient;

use crate::stage::{Stage, TOKEN_LIFE, addresses, eventually, first, segment};

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_leaves_gives_lease_names_and_connections_back() {
    let mut stage = Stage::new().await;
    let connection = stage.dial("workload/alpha", TOKEN_LIFE).await;
    let mut alpha = NetworkServiceClient::new(connection.nsm());
    let answer = alpha.request(first("alpha", 1)).await.unwrap().into_inner();
    let mut events = MonitorConnectionClient::new(connection.nsm())
        .monitor_connections(MonitorScopeSelector {
            path_segments: vec![segment("alpha", "alpha-0")],
            ..MonitorScopeSelector::default()
        })
        .await
        .unwrap()
        .into_inner();
    let left = stage.ctx.command("leave", Value::Null).await;
    assert_eq!(left, Some(Ok(serde_json::json!({ "left": true }))));
    let deleted = async {
        while let Ok(Some(event)) = events.message().await {
            if event.r#type() == ConnectionEventType::Delete {
                return true;
            }
        }
        false
    };
    let deleted = tokio::time::timeout(Duration::from_secs(10), deleted).await;
    assert_eq!(deleted, Ok(true), "who watches its connection is told");
    stage.ended().await;
    {
        let told = stage.registry.told();
        assert_eq!(told.released.len(), 1, "{told:?}");
        assert_eq!(told.released[0].prefix4, "172.16.0.0/28");
        assert_eq!(told.names_released, ["alpha"]);
        assert!(told.endpoint.is_none(), "{told:?}");
    }
    // Started again on the same disk it asks as one that holds nothing.
    stage.start().await;
    let again = || stage.registry.told().acquired.len() == 2;
    assert!(eventually(again).await);
    assert!(stage.registry.told().acquired[1].held.is_none());
    let mut beta = stage.client("workload/beta").await;
    let other = beta.request(first("beta", 1)).await.unwrap().into_inner();
    assert_eq!(
        addresses(&other).len(),
        2,
        "alpha's key is free: {answer:?}"
    );
}
