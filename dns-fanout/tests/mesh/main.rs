//! Fifty domains that name ten thousand workloads: who is asked how often, and that names come and
//! go everywhere. How fast they do is measured by `cargo xtask bench dns mesh`.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../network/levels.rs"]
mod levels;
#[path = "../network/router.rs"]
mod router;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::task::JoinSet;

use world::{Client, Mesh, Node, canonical, eventually_true, found, shared, workload_address};

const DOMAINS: usize = 50;
const WORKLOADS: usize = 200;
/// An answer of another domain is stored a little longer than that.
const STORED: Duration = Duration::from_millis(700);

/// `None`: no such name. Panics when the server could not say.
async fn addresses(client: &Client, name: &str) -> Option<Vec<String>> {
    let reply = client.ask(name, RecordType::A).await;
    let code = reply.metadata.response_code;
    assert!(
        matches!(code, ResponseCode::NoError | ResponseCode::NXDomain),
        "{name}: {code}"
    );
    found(&reply)
}

/// Runs the same for every domain, side by side.
async fn everywhere<F: Future<Output = ()> + Send + 'static>(
    mesh: &Arc<Mesh>,
    run: impl Fn(Arc<Mesh>, usize) -> F,
) {
    let mut all = JoinSet::new();
    for number in 0..mesh.nodes.len() {
        all.spawn(run(Arc::clone(mesh), number));
    }
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
}

/// Every server made so many queries for its clients since; figures follow the queries.
async fn each_asked(mesh: &Arc<Mesh>, before: &[i64], count: usize, why: &str) {
    let expected = i64::try_from(count).unwrap();
    eventually_true(why, || async {
        let mut counts = mesh.nodes.iter().map(Node::queries).zip(before);
        counts.all(|(now, before)| now - before == expected)
    })
    .await;
}

fn queries(mesh: &Mesh) -> Vec<i64> {
    mesh.nodes.iter().map(Node::queries).collect()
}

/// Asks for one name after another twice, until one was asked for again while its answer was
/// stored: a machine that is too busy is slower than an answer's life.
async fn ask_twice(mesh: &Mesh, number: usize) {
    let node = mesh.node(number);
    let client = node.client().await;
    let other = (number + 2) % mesh.nodes.len();
    let before = node.queries();
    for workload in 0..WORKLOADS {
        let name = canonical(&format!("w{other}-{workload}"), &mesh.node(other).name);
        let expected = Some(vec![workload_address(other, workload)]);
        let began = Instant::now();
        assert_eq!(addresses(&client, &name).await, expected, "{name}");
        assert_eq!(addresses(&client, &name).await, expected, "{name}, again");
        if began.elapsed() < STORED {
            let asked = i64::try_from(workload).unwrap();
            let least = before + asked + 1;
            // Of those before each may have cost a second one.
            let most = least + asked;
            eventually_true("one query, none for what is stored", || async {
                (least..=most).contains(&node.queries())
            })
            .await;
            return;
        }
    }
    panic!("this machine is too slow to ask twice within {STORED:?}");
}

/// One for a canonical name, one per contributing domain for a shared one, none for what is stored
/// or cannot exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r1_9_one_server_per_owner_is_asked_and_none_where_nobody_needs_to_be() {
    let mesh = Arc::new(Mesh::start(DOMAINS, WORKLOADS).await);
    let before = queries(&mesh);
    // Each asks for all names of the next one.
    everywhere(&mesh, |mesh, number| async move {
        let client = mesh.node(number).client().await;
        let other = (number + 1) % mesh.nodes.len();
        for workload in 0..WORKLOADS {
            let name = canonical(&format!("w{other}-{workload}"), &mesh.node(other).name);
            let expected = Some(vec![workload_address(other, workload)]);
            assert_eq!(addresses(&client, &name).await, expected, "{name}");
        }
    })
    .await;
    each_asked(&mesh, &before, WORKLOADS, "one query per canonical name").await;

    let before = queries(&mesh);
    // One after the other: each question is one to every domain.
    for number in 0..DOMAINS {
        let client = mesh.node(number).client().await;
        for step in 1..=3 {
            let other = (number + step) % DOMAINS;
            let name = shared(&format!("w{other}-{step}"));
            let expected = Some(vec![workload_address(other, step)]);
            assert_eq!(addresses(&client, &name).await, expected, "{name}");
        }
        assert_eq!(addresses(&client, &shared("nobody")).await, None);
    }
    let others = DOMAINS - 1;
    each_asked(&mesh, &before, 4 * others, "one query per other domain").await;

    for number in 0..DOMAINS {
        ask_twice(&mesh, number).await;
    }

    let before = queries(&mesh);
    everywhere(&mesh, |mesh, number| async move {
        let client = mesh.node(number).client().await;
        let own = shared(&format!("w{number}-3"));
        let expected = Some(vec![workload_address(number, 3)]);
        assert_eq!(addresses(&client, &own).await, expected, "its own");
        for impossible in [
            &canonical("x", "nowhere"),
            &canonical("x", &mesh.node(number).name),
            "1.255.31.172.in-addr.arpa.",
            "printer.local.",
        ] {
            let reply = client.ask(impossible, RecordType::A).await;
            let code = reply.metadata.response_code;
            assert_eq!(code, ResponseCode::NXDomain, "{impossible}");
        }
    })
    .await;
    each_asked(&mesh, &before, 0, "nobody is asked for what cannot be").await;
}

/// A new name is found everywhere and is denied nowhere from then on; one that went is found
/// nowhere from when it was first denied there, not as an expired answer either while a domain is
/// away that has nothing to do with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r1_5_names_come_and_go_everywhere() {
    let mut mesh = Mesh::start(DOMAINS / 5, WORKLOADS).await;
    let home = 3;
    let names = [canonical("late", &mesh.node(home).name), shared("late")];
    let mut clients = Vec::new();
    for node in &mesh.nodes {
        clients.push(node.client().await);
    }
    for client in &clients {
        for name in &names {
            assert_eq!(addresses(client, name).await, None);
        }
    }
    let address = Some(vec![mesh.node(home).attach("late")]);
    for client in &clients {
        for name in &names {
            eventually_true("the name is there", || async {
                addresses(client, name).await == address
            })
            .await;
            // Asked often enough to be fetched anew before its time is over (R5.5).
            for _ in 0..5 {
                assert_eq!(addresses(client, name).await, address, "a live name");
            }
        }
    }
    mesh.node(home).close("late");
    for client in &clients {
        for name in &names {
            eventually_true("the name is gone", || async {
                addresses(client, name).await.is_none()
            })
            .await;
            for _ in 0..5 {
                assert_eq!(addresses(client, name).await, None, "gone for good");
            }
        }
    }
    // Once more, now with a domain away whose vote is missing for the shared name.
    mesh.node(home).attach("late");
    for client in &clients {
        eventually_true("it is back", || async {
            addresses(client, &names[1]).await == address
        })
        .await;
    }
    // As its host would.
    let away = &mut mesh.nodes[home + 1];
    away.ctx.shutdown.cancel();
    (&mut away.server).await.unwrap().unwrap();
    mesh.node(home).close("late");
    for (number, client) in clients.iter().enumerate() {
        if number == home + 1 {
            continue;
        }
        eventually_true("not even as an expired answer", || async {
            let reply = client.ask(&names[1], RecordType::A).await;
            found(&reply).is_none()
        })
        .await;
        let reply = client.ask(&names[1], RecordType::A).await;
        let code = reply.metadata.response_code;
        assert_eq!(code, ResponseCode::ServFail, "a vote is missing");
    }
}
