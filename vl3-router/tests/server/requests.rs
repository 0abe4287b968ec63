//! What a router serves and what it refuses, as its clients see it.

use std::time::Duration;

use tonic::Code;
use vl3_proto::connection::monitor_connection_client::MonitorConnectionClient;
use vl3_proto::connection::{ConnectionEventType, Mechanism, MonitorScopeSelector, Path};
use vl3_proto::connectioncontext::{ConnectionContext, IpContext, Route};
use vl3_proto::networkservice::network_service_client::NetworkServiceClient;

use crate::stage::{
    Stage, TOKEN_LIFE, addresses, again, changed, eventually, first, refused, segment,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_with_an_empty_context_keeps_its_addresses() {
    let stage = Stage::new().await;
    let mut alpha = stage.client("workload/alpha").await;
    let answer = alpha.request(first("alpha", 1)).await.unwrap().into_inner();
    assert_eq!(answer.id, "alpha-0");
    assert_eq!(answer.network_service_endpoint_name, "red-east");
    let held = addresses(&answer);
    assert_eq!(held.len(), 2, "one of each family: {held:?}");
    // Somebody in between must not be given what a bare refresh forgets to name.
    let mut beta = stage.client("workload/beta").await;
    let other = beta.request(first("beta", 2)).await.unwrap().into_inner();
    assert!(addresses(&other).iter().all(|one| !held.contains(one)));
    for change in [None, Some(ConnectionContext::default())] {
        let refresh = again(&answer, |connection| connection.context = change);
        let refreshed = alpha.request(refresh).await.unwrap().into_inner();
        assert_eq!(addresses(&refreshed), held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_can_neither_close_nor_take_over() {
    let stage = Stage::new().await;
    let mut alpha = stage.client("workload/alpha").await;
    let answer = alpha.request(first("alpha", 1)).await.unwrap().into_inner();
    let mut mallory = stage.client("workload/mallory").await;
    // As alpha's own, and as mallory's way to the id that alpha has at the router.
    let mut own_way = answer.clone();
    own_way.id = "mallory-0".to_owned();
    own_way.path.get_or_insert_default().path_segments[0] = segment("mallory", "mallory-0");
    for stolen in [answer.clone(), own_way] {
        let code = Code::PermissionDenied;
        refused(mallory.close(stolen.clone()).await, code, "mallory");
        refused(
            mallory.request(again(&stolen, |_| {})).await,
            code,
            "mallory",
        );
    }
    let refreshed = alpha.request(again(&answer, |_| {})).await.unwrap();
    assert_eq!(addresses(&refreshed.into_inner()), addresses(&answer));
    alpha.close(answer).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_subject_than_the_tls_identity_is_refused() {
    let stage = Stage::new().await;
    let connection = stage.dial("workload/mallory", TOKEN_LIFE).await;
    let mut mallory = NetworkServiceClient::new(connection.plain());
    let token = stage.token("workload/alpha", "vl3/router/red-east");
    let mut request = tonic::Request::new(first("mallory", 1));
    let expires = vl3_identity::token::format_rfc3339(vl3_runtime::clock::wall() + TOKEN_LIFE);
    let metadata = request.metadata_mut();
    metadata.insert("nsm-client-token", token.parse().unwrap());
    metadata.insert("nsm-client-token-expires", expires.parse().unwrap());
    let field = "path.path_segments[0].token";
    refused(
        mallory.request(request).await,
        Code::PermissionDenied,
        field,
    );
    // No token at all.
    let code = Code::Unknown;
    refused(
        mallory.request(first("mallory", 1)).await,
        code,
        "expiration",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_field_is_refused_by_its_name() {
    let stage = Stage::new().await;
    let mut alpha = stage.client("workload/alpha").await;
    let with = |ip: IpContext| {
        changed(first("alpha", 1), |connection| {
            connection.context = Some(ConnectionContext {
                ip_context: Some(ip),
                ..ConnectionContext::default()
            });
        })
    };
    let route = |prefix: &str| Route {
        prefix: prefix.to_owned(),
        next_hop: String::new(),
    };
    let cases = [
        (
            changed(first("alpha", 1), |c| c.network_service = "blue".to_owned()),
            "connection.network_service",
        ),
        (
            changed(first("alpha", 1), |c| {
                c.network_service_endpoint_name = "red-west".to_owned();
            }),
            "connection.network_service_endpoint_name",
        ),
        (
            changed(first("alpha", 1), |c| {
                c.mechanism = Some(Mechanism {
                    cls: "LOCAL".to_owned(),
                    r#type: "TUN".to_owned(),
                    ..Mechanism::default()
                });
            }),
            "mechanism",
        ),
        (
            with(IpContext {
                src_ip_addrs: vec!["172.16.0.300/32".to_owned()],
                ..IpContext::default()
            }),
            "src_ip_addrs[0]",
        ),
        (
            with(IpContext {
                dst_routes: vec![route("172.16.0.0/16"), route("nowhere")],
                ..IpContext::default()
            }),
            "dst_routes[1].prefix",
        ),
        (
            with(IpContext {
                excluded_prefixes: vec!["10.0.0.0/33".to_owned()],
                ..IpContext::default()
            }),
            "excluded_prefixes[0]",
        ),
    ];
    for (request, field) in cases {
        refused(alpha.request(request).await, Code::InvalidArgument, field);
    }
    // None of them left anything behind: the first good one gets the first address.
    let answer = alpha.request(first("alpha", 1)).await.unwrap().into_inner();
    assert_eq!(addresses(&answer)[0], "172.16.0.1/32");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_context_or_deadline_is_served_and_expires() {
    let stage = Stage::new().await;
    let life = Duration::from_secs(2);
    let connection = stage.dial("workload/alpha", life).await;
    let mut events = MonitorConnectionClient::new(connection.nsm())
        .monitor_connections(MonitorScopeSelector {
            path_segments: vec![segment("alpha", "alpha-0")],
            ..MonitorScopeSelector::default()
        })
        .await
        .unwrap()
        .into_inner();
    let mut alpha = NetworkServiceClient::new(connection.nsm());
    let answer = alpha.request(first("alpha", 1)).await.unwrap().into_inner();
    assert_eq!(addresses(&answer).len(), 2);
    let gone = async {
        while let Some(event) = events.message().await.unwrap() {
            if event.r#type() == ConnectionEventType::Delete {
                return;
            }
        }
        panic!("the monitor ended");
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, gone).await.expect("it expires");
    let released = || {
        stage
            .registry
            .told()
            .names_released
            .contains(&"alpha".to_owned())
    };
    assert!(eventually(released).await, "its name is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_intermediary_asks_on_behalf_of_its_workload_and_no_forged_one() {
    let stage = Stage::new().await;
    let mut alpha = stage.client("workload/alpha").await;
    let own = alpha.request(first("alpha", 1)).await.unwrap().into_inner();
    let mut manager = stage.client("nsm/manager").await;
    // The segments before the manager's, each with its writer's token for the next.
    let behind = |writers: &[&str]| {
        let mut segments: Vec<_> = writers
            .iter()
            .zip(writers.iter().skip(1).chain(&["nsm/manager"]))
            .map(|(writer, next)| {
                let mut segment = segment(writer, writer);
                segment.token = stage.token(writer, next);
                segment.expires = Some(vl3_proto::timestamp(
                    vl3_runtime::clock::wall() + TOKEN_LIFE,
                ));
                segment
            })
            .collect();
        segments.push(segment("manager", "manager-0"));
        changed(first("manager", 1), |connection| {
            connection.path = Some(Path {
                index: u32::try_from(segments.len() - 1).unwrap(),
                path_segments: segments,
            });
        })
    };
    let answer = manager.request(behind(&["workload/alpha"])).await.unwrap();
    assert_eq!(addresses(&answer.into_inner()), addresses(&own));
    let forged = behind(&["workload/alpha", "workload/mallory"]);
    let text = "workload/mallory is no intermediary";
    refused(manager.request(forged).await, Code::PermissionDenied, text);
    let text = "no workload's segment";
    refused(
        manager.request(behind(&[])).await,
        Code::PermissionDenied,
        text,
    );
}
