//! Identities are renewed while connections stand: a token is signed with the key of the moment, and
//! is checked by the certificate that the connection showed.

use std::time::Duration;

use registry_federation::store::{Memory, Store};
use vl3_identity::Source;
use vl3_runtime::grpc::Expect;

use crate::world::{Client, World, event, eventually};

#[tokio::test]
async fn a_caller_goes_on_after_its_identity_was_renewed() {
    let world = World::new(&["east"]);
    let east = world.registry("east").await;
    let (dir, path) = (world.dir.path().join("router"), "vl3/router/red-east");
    world.issue("east", path, &dir);
    let source = Source::from_dir(&dir).unwrap();
    let dialer = world.dialer_of(source.clone());
    let connection = dialer
        .dial(&east.listen.dial_url(), Expect::anybody())
        .await
        .unwrap();
    let client = Client::new(connection, world.uid());
    let endpoint = world.endpoint("east", 1);
    client.register(&endpoint).await.unwrap();
    let mut events = client.watch("red").await;
    event(&mut events).await;

    let renewed = world.issue("east", path, &dir);
    eventually("the source holds the new certificate", async || {
        source.current().leaf() == renewed.leaf()
    })
    .await;
    eventually("a registration with the new identity", async || {
        client.register(&endpoint).await.is_ok()
    })
    .await;
    // A stream of the old connection ends as well, so that nobody speaks by a former certificate.
    let end = async { while let Ok(Some(_)) = events.message().await {} };
    tokio::time::timeout(Duration::from_secs(10), end)
        .await
        .expect("the old stream ends");
}

#[tokio::test]
async fn a_server_shows_its_renewed_identity_to_those_who_were_connected() {
    let world = World::new(&["east"]);
    let (dir, path) = (world.dir.path().join("id"), "vl3/registry/east");
    let first = world.issue("east", path, &dir);
    let source = Source::from_dir(&dir).unwrap();
    let east = world
        .registry_as(
            source,
            "east",
            Box::new(Memory::default()) as Box<dyn Store>,
            |_| {},
        )
        .await;
    let client = world.router("east", &east).await;
    let endpoint = world.endpoint("east", 1);
    client.register(&endpoint).await.unwrap();
    assert_eq!(
        Some(&client.connection.peer().certificate_der),
        first.leaf()
    );

    let second = world.issue("east", path, &dir);
    eventually("an answer under the new certificate", async || {
        client.register(&endpoint).await.is_ok()
            && Some(&client.connection.peer().certificate_der) == second.leaf()
    })
    .await;
}
