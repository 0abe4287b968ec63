//! Readers of Finds and watches, and those who do not read, over real gRPC.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use registry_federation::store::{Memory, Store};
use tonic::Code;

use crate::world::{World, event, icmp};

/// More than two pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_endpoints_are_shown_page_by_page_and_none_is_missed() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let workload = world.client("east", "workload/a", &registry).await;
    let all: BTreeSet<_> = (0..600).map(|number| format!("icmp-{number}")).collect();
    for name in &all {
        workload.register(&icmp(name)).await.unwrap();
    }
    let found = workload.find("icmp").await;
    assert_eq!(found.len(), all.len());
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), all);
    let mut watch = workload.watch("icmp").await;
    let mut seen = BTreeSet::new();
    while seen.len() < all.len() {
        let (name, deleted) = event(&mut watch).await;
        assert!(!deleted && seen.insert(name));
    }
    assert_eq!(seen, all);
    // The snapshot is over: changes follow.
    workload.unregister(&icmp("icmp-7")).await.unwrap();
    assert_eq!(event(&mut watch).await, ("icmp-7".to_owned(), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_leaves_too_many_bytes_unread_ends_by_name_and_no_other_does() {
    let world = World::new(&["east"]);
    let store: Box<dyn Store> = Box::new(Memory::default());
    let registry = world
        .registry_with("east", store, |config| {
            config.limits.unread_bytes = 1 << 20;
        })
        .await;
    let workload = world.client("east", "workload/a", &registry).await;
    let asleep = world.client("east", "workload/b", &registry).await;
    let mut unread = asleep.watch("").await;
    let mut read = workload.watch("").await;
    // Each change is an event of about 8 KiB.
    let mut endpoint = icmp("icmp-1");
    let text = "x".repeat(8 * 1024);
    endpoint
        .labels
        .insert("icmp".to_owned(), [("text".to_owned(), text)].into());
    let ended = r#"limits_met_total{limit="unread bytes of one caller"} 1"#;
    let mut changes = 0;
    while !registry.metrics.encode().contains(ended) {
        assert!(
            changes < 1000,
            "it is ended by its bytes, not by its batches"
        );
        endpoint.url = format!("tcp://192.0.2.7:{changes}");
        let registered = tokio::time::timeout(Duration::from_secs(5), workload.register(&endpoint));
        registered.await.expect("an answer within 5 s").unwrap();
        assert_eq!(event(&mut read).await, ("icmp-1".to_owned(), false));
        changes += 1;
    }
    assert!(registry.metrics.encode().contains("watches_cut_total 1"));
    // What was handed is still there to read, then the stream says why it ends.
    let mut late = 0;
    let status = loop {
        match unread.next().await.expect("a status at the end") {
            Ok(_) => late += 1,
            Err(status) => break status,
        }
    };
    assert!((100..changes).contains(&late), "{late} of {changes}");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(
        status.message(),
        "unread bytes of one caller: at most 1048576 are allowed"
    );
    // It may watch again, and the other one never noticed.
    let mut again = asleep.watch("").await;
    assert_eq!(event(&mut again).await, ("icmp-1".to_owned(), false));
    workload.unregister(&endpoint).await.unwrap();
    assert_eq!(event(&mut read).await, ("icmp-1".to_owned(), true));
}
