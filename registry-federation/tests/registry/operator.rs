//! What an operator asks of a running registry.

use crate::world::{Registry, World};
use registry_federation::maintenance::restore;
use serde_json::{Value, json};
use vl3_core::allocator::Acquire;
use vl3_core::ids::{RouterName, SpiffeId, WorkloadName};
use vl3_core::registry::Claim;
use vl3_proto::lease::encode_claim;
use vl3_proto::vl3::registry::v1::names_client::NamesClient;

impl Registry {
    async fn ask(&self, name: &str, arguments: Value) -> Result<Value, String> {
        let answer = self.ctx.command(name, arguments).await;
        answer.expect("a registered command")
    }

    async fn who_owns(&self, what: &str) -> Value {
        let answer = self.ask("who-owns", json!({ "what": what })).await;
        answer.expect("an answer")
    }
}

/// The registry of east: red-east has a lease and an endpoint, the workload web a name.
async fn east(world: &World) -> Registry {
    let registry = world.registry("east").await;
    let router = world.router("east", &registry).await;
    let lease = router
        .acquire(&world.acquire("east", 1))
        .await
        .expect("test set-up")
        .lease;
    router
        .register(&world.endpoint("east", 1))
        .await
        .expect("test set-up");
    let claim = Claim {
        name: WorkloadName::new("web").expect("test set-up"),
        workload: SpiffeId::new("spiffe://east.test/workload/web").expect("test set-up"),
        addresses: vec!["10.80.4.9".parse().expect("test set-up")],
        router: RouterName::new("red-east").expect("test set-up"),
    };
    let granted = NamesClient::new(router.connection.plain())
        .claim(encode_claim(lease.uid, &claim))
        .await;
    granted.expect("test set-up");
    registry
}

fn whats(answer: &Value) -> Vec<&str> {
    let found = answer["found"].as_array().expect("test set-up");
    found
        .iter()
        .map(|entry| entry["what"].as_str().expect("test set-up"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_has_an_owner_or_belongs_to_nobody() {
    let world = World::new(&["east", "west"]);
    let registry = east(&world).await;

    let web = registry.who_owns("10.80.4.9").await;
    assert_eq!(whats(&web), ["workload", "lease", "block", "pool"], "{web}");
    assert_eq!(web["found"][0]["name"], "web");
    assert_eq!(
        web["found"][0]["identity"],
        "spiffe://east.test/workload/web"
    );
    assert_eq!(web["found"][1]["router"], "red-east");
    assert_eq!(web["found"][1]["generation"], 1);
    let router = registry.who_owns("10.80.4.0").await;
    assert_eq!(
        whats(&router),
        ["router", "lease", "block", "pool"],
        "{router}"
    );
    let said = |answer: &Value| answer["said"].as_str().unwrap().to_owned();
    for (address, what, part) in [
        ("10.80.4.77", "lease", "no workload claims a name there"),
        (
            "10.80.7.1",
            "block",
            "belongs to nobody: not leased, in this domain's block 10.80.4.0/22",
        ),
        (
            "10.80.8.1",
            "block",
            "of domain west in network red: its registry knows",
        ),
        (
            "10.80.99.1",
            "pool",
            "belongs to nobody: in pool 10.80.0.0/16",
        ),
    ] {
        let answer = registry.who_owns(address).await;
        assert_eq!(whats(&answer)[0], what, "{answer}");
        assert!(said(&answer).contains(part), "{answer}");
    }
    let outside = registry.who_owns("192.0.2.1").await;
    assert_eq!(whats(&outside), [""; 0]);
    assert!(said(&outside).contains("outside of the pools"), "{outside}");

    let all = registry.who_owns("10.80.0.0/16").await;
    assert_eq!(
        whats(&all),
        ["pool", "workload", "router", "lease", "block", "block"]
    );
    assert!(said(&all).contains("belongs to nobody as a whole"), "{all}");
    for bad in ["", "10.80.0.0/99", "a/b", "10.80.0.999", "fd00::zz"] {
        let refused = registry.ask("who-owns", json!({ "what": bad })).await;
        assert!(refused.unwrap_err().starts_with("what: "), "{bad}");
    }
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_has_an_owner_in_each_of_its_forms() {
    let world = World::new(&["east", "west"]);
    let registry = east(&world).await;
    for name in ["web", "web.east.red.vl3", "web.red.vl3.", "WEB", "web@east"] {
        let answer = registry.who_owns(name).await;
        assert_eq!(whats(&answer), ["workload"], "{answer}");
        assert_eq!(answer["found"][0]["router"], "red-east");
    }
    let router = registry.who_owns("red-east").await;
    assert_eq!(whats(&router), ["lease", "lease", "endpoint"], "{router}");
    assert!(router["found"][2]["since"].is_string(), "{router}");
    assert_eq!(
        whats(&registry.who_owns("red-east@east").await),
        ["endpoint"]
    );
    assert_eq!(
        whats(&registry.who_owns("web.west.red.vl3").await),
        ["member"]
    );
    assert_eq!(whats(&registry.who_owns("west").await), ["member"]);
    assert_eq!(whats(&registry.who_owns("red").await), ["network"]);
    assert_eq!(whats(&registry.who_owns("web.blue.vl3").await), [""; 0]);
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_show_what_is_held_and_a_lease_ends_when_an_operator_says_yes() {
    let world = World::new(&["east", "west"]);
    let registry = east(&world).await;
    let list = async |name: &str| registry.ask(name, Value::Null).await.unwrap()[name].clone();
    let leases = list("leases").await;
    assert_eq!(leases[0]["router"], "red-east");
    assert_eq!(
        leases[0]["prefixes"],
        json!(["10.80.4.0/24", "fd00:1:2:3:1::/96"])
    );
    assert_eq!(
        leases[0]["holder"],
        "spiffe://east.test/vl3/router/red-east"
    );
    assert!(leases[0]["expires_in_seconds"].as_u64().unwrap() > 3590);
    let services = list("services").await;
    assert_eq!(
        (&services[0]["name"], &services[0]["implied"]),
        (&json!("red"), &json!(true))
    );
    let endpoints = list("endpoints").await;
    assert_eq!(endpoints[0]["domain"], "east");
    assert_eq!(endpoints[0]["stale"], false);
    assert!(endpoints[0]["expires_in_seconds"].as_u64().unwrap() > 50);
    let domains = list("domains").await;
    assert_eq!(domains[0]["domain"], "west");
    assert_eq!(domains[0]["state"], "unreachable");
    assert_eq!(domains[0]["networks"], json!(["red"]));

    let release = async |what: &str, yes: bool| {
        registry
            .ask("release", json!({ "what": what, "yes": yes }))
            .await
    };
    let plan = release("10.80.4.0/24", false).await.unwrap();
    assert_eq!(
        (&plan["router"], &plan["done"]),
        (&json!("red-east"), &json!(false))
    );
    assert_eq!(plan["names"], json!(["web"]));
    for (what, part) in [
        ("10.80.4.0/28", "leased are 10.80.4.0/24 of red-east"),
        ("10.80.8.0/24", "nobody leases"),
        ("red-west", "holders: red-east"),
    ] {
        let refused = release(what, true).await.unwrap_err();
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(list("leases").await.as_array().unwrap().len(), 1);
    assert_eq!(release("red-east", true).await.unwrap()["done"], true);
    assert_eq!(list("leases").await, json!([]));
    assert_eq!(whats(&registry.who_owns("web").await), [""; 0]);
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_tells_since_when_and_who_was_there_before() {
    let world = World::new(&["east"]);
    let registry = east(&world).await;
    let released = registry
        .ask("release", json!({ "what": "red-east", "yes": true }))
        .await
        .unwrap();
    assert_eq!(released["done"], true);
    let other = world
        .client("east", "vl3/router/red-east-2", &registry)
        .await;
    let second = Acquire {
        router: RouterName::new("red-east-2").unwrap(),
        ..world.acquire("east", 2)
    };
    other.acquire(&second).await.unwrap();

    let answer = registry.who_owns("10.80.4.9").await;
    assert_eq!(answer["found"][0]["router"], "red-east-2", "{answer}");
    let since = answer["found"][0]["since"].as_str().unwrap();
    assert!(since.starts_with("20") && since.ends_with('Z'), "{since}");
    let events = |answer: &Value, list: &str| -> Vec<String> {
        let events = answer[list].as_array().unwrap();
        let what = |event: &Value| event["event"].as_str().unwrap().to_owned();
        events.iter().map(what).collect()
    };
    let past = [
        "lease-granted",
        "name-claimed",
        "lease-ended",
        "name-released",
        "lease-granted",
    ];
    assert_eq!(events(&answer, "history"), past, "{answer}");
    let journal = registry.ask("journal", json!({})).await.unwrap();
    assert_eq!(events(&journal, "events")[0], "document", "{journal}");
    assert_eq!(events(&journal, "events")[1..], past, "{journal}");
    assert_eq!(journal["events"][1]["network"], "red");
    let last = registry
        .ask("journal", json!({ "limit": 1 }))
        .await
        .unwrap();
    assert_eq!(last["events"].as_array().unwrap().len(), 1);
    assert!(
        last["events"][0]["said"]
            .as_str()
            .unwrap()
            .contains("to router red-east-2 (generation 2, "),
        "{last}"
    );
    let web = registry.who_owns("web").await;
    assert_eq!(whats(&web), [""; 0]);
    assert_eq!(events(&web, "history"), ["name-claimed", "name-released"]);
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_backup_takes_nothing_from_a_router_that_came_later() {
    let world = World::new(&["east"]);
    let state = world.dir.path().join("kept");
    std::fs::create_dir(&state).unwrap();
    let store = state.join("registry.redb");
    let file = world.dir.path().join("east.backup");
    let registry = world.registry_on_disk("east", &store).await;
    let router = world.router("east", &registry).await;
    let first = router
        .acquire(&world.acquire("east", 1))
        .await
        .unwrap()
        .lease;
    let backup = json!({ "file": file.display().to_string() });
    let report = registry.ask("backup", backup).await.unwrap();
    assert_eq!(
        (&report["clean"], &report["leases"], &report["domain"]),
        (&json!(true), &json!(1), &json!("east"))
    );
    registry
        .ask("release", json!({ "what": "red-east", "yes": true }))
        .await
        .unwrap();
    let mut second = Acquire {
        router: RouterName::new("red-east-2").unwrap(),
        ..world.acquire("east", 2)
    };
    let path = "vl3/router/red-east-2";
    let other = world.client("east", path, &registry).await;
    let lease = other.acquire(&second).await.unwrap().lease;
    assert_eq!(lease.prefix4, first.prefix4, "the same prefix, later");
    registry.stop().await;

    let refused = restore(&file, &state, Some("west"), &[], true).unwrap_err();
    assert!(
        refused.to_string().contains("is of domain east"),
        "{refused}"
    );
    let done = restore(&file, &state, Some("east"), &[], true).unwrap();
    assert!(done.replaced.unwrap().is_file());
    let registry = world.registry_on_disk("east", &store).await;
    let other = world.client("east", path, &registry).await;
    let newcomer = Acquire {
        router: RouterName::new("red-east-3").unwrap(),
        ..world.acquire("east", 3)
    };
    let third = world
        .client("east", "vl3/router/red-east-3", &registry)
        .await;
    let refused = third.acquire(&newcomer).await.unwrap_err();
    assert!(
        refused.message().contains("restored from a backup"),
        "{refused}"
    );
    assert_eq!(
        other.renew(&lease).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
    second.held = Some(lease.clone());
    assert_eq!(other.acquire(&second).await.unwrap().lease, lease);
    assert_eq!(other.renew(&lease).await.unwrap().lease, lease);
    let leases = registry.ask("leases", Value::Null).await.unwrap();
    assert_eq!(leases["leases"].as_array().unwrap().len(), 1, "{leases}");
    assert_eq!(leases["leases"][0]["router"], "red-east-2");
    let report = registry.ask("check", Value::Null).await.unwrap();
    assert_eq!(
        (&report["clean"], &report["readopting"]),
        (&json!(true), &json!(1))
    );
    registry.stop().await;
}
