//! Services under `clusterset.local` (R1.7): those of the own domain by who is attached, those of
//! others by asking.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType as T;
use vl3_core::ids::WorkloadName;
use vl3_core::names::{ServiceName, ServicePort};
use vl3_proto::vl3::router::v1::LocalName;

use crate::client::{addresses, ask, ask_from};
use crate::stage::{REMOTE, Stage, eventually_true};
use crate::upstream::{honest, knows_nothing};

const DB: &str = "db.demo.svc.clusterset.local.";

fn exports(config: &mut dns_fanout::Config) {
    let workloads = ["web", "spare"];
    config.services = vec![dns_fanout::Export {
        name: ServiceName {
            namespace: "demo".to_owned(),
            name: "db".to_owned(),
        },
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: "tcp".to_owned(),
            port: 8_080,
        }],
        workloads: workloads
            .map(|name| WorkloadName::new(name).unwrap())
            .into(),
    }];
}

async fn sorted(stage: &Stage, name: &str, rtype: T) -> Vec<String> {
    let mut found = addresses(&ask(stage, name, rtype).await);
    found.sort();
    found
}

#[tokio::test]
async fn r1_7_a_service_is_who_is_attached_here_and_what_others_say() {
    let stage = Stage::with(vec![honest(&["172.16.4.9"]), knows_nothing()], exports).await;
    assert_eq!(sorted(&stage, DB, T::A).await, ["172.16.0.5", "172.16.4.9"]);

    // An endpoint of ours, of west's, and of nobody's.
    let of = |host: &str| format!("{host}.{DB}");
    assert_eq!(sorted(&stage, &of("web.east"), T::A).await, ["172.16.0.5"]);
    assert_eq!(sorted(&stage, &of("db.west"), T::A).await, ["172.16.4.9"]);
    let asked = stage.upstreams[0].count() + stage.upstreams[1].count();
    let nobody = ask(&stage, &of("db.atlantis"), T::A).await;
    assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(
        stage.upstreams[0].count() + stage.upstreams[1].count(),
        asked
    );

    // R4.1: a router is told what is ours.
    let ours = ask_from(&stage, REMOTE, DB, T::A).await;
    assert_eq!(addresses(&ours), ["172.16.0.5"]);
    assert_eq!(
        stage.upstreams[0].count() + stage.upstreams[1].count(),
        asked
    );
}

#[tokio::test]
async fn r1_7_endpoints_come_and_go_with_the_routers_state() {
    let stage = Stage::with(vec![knows_nothing(), knows_nothing()], exports).await;
    let port = format!("_http._tcp.{DB}");
    let pointed = ask(&stage, &port, T::SRV).await;
    let data: Vec<String> = pointed
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    assert_eq!(data, [format!("0 100 8080 web.east.{DB}")]);
    assert_eq!(
        pointed.additionals.len(),
        2,
        "its addresses of both families"
    );

    stage.change(|state| {
        state.names = vec![LocalName {
            name: "spare".to_owned(),
            addresses: vec!["172.16.0.8".to_owned()],
        }];
    });
    eventually_true("spare alone is there", || async {
        addresses(&ask(&stage, DB, T::A).await) == ["172.16.0.8"]
    })
    .await;
    stage.change(|state| state.names.clear());
    eventually_true("nobody is there", || async {
        ask(&stage, DB, T::A).await.metadata.response_code == ResponseCode::NXDomain
    })
    .await;
}
