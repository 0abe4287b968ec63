//! Versions of the document over real gRPC: refused by name, handed over, and as big as allowed.

use std::collections::BTreeSet;

use tonic::Code;
use vl3_core::document::{AdminSecret, Chain, Document, RoleIds, SignedDocument};
use vl3_core::ids::{DomainName, NetworkName, NetworkUid};
use vl3_identity::authority::Authority;
use vl3_proto::document::{
    CHAIN_BYTES_MAX, DOCUMENT_BYTES_MAX, check_size, decode_chain, encode_chain, sign,
    write_armoured,
};
use vl3_proto::vl3::network::v1::network_client::NetworkClient;
use vl3_proto::vl3::network::v1::{DocumentChain, WatchRequest};
use vl3_runtime::clock;

use crate::world::{Client, Registry, World, member, query};

fn name(domain: &str) -> DomainName {
    DomainName::new(domain).expect("test set-up")
}

async fn publish(client: &Client, chain: DocumentChain) -> Result<(u64, String), tonic::Status> {
    let mut network = NetworkClient::new(client.connection.plain());
    let reply = network.publish(chain).await?.into_inner();
    let state = if reply.accepted { "taken" } else { "refused" };
    Ok((reply.version, format!("{state}: {}", reply.reason)))
}

async fn watch(client: &Client, world: &World) -> tonic::Streaming<DocumentChain> {
    let uid = world.uid().0.to_vec();
    // As routers, clients and DNS servers read it: with gRPC's usual limit of 4 MiB.
    let mut network = NetworkClient::new(client.connection.plain());
    let stream = network.watch(WatchRequest { uid }).await;
    stream.expect("test set-up").into_inner()
}

/// Waits for a version on a watch that may show earlier ones first.
async fn wait_for(versions: &mut tonic::Streaming<DocumentChain>, version: u64) -> Chain {
    let limit = std::time::Duration::from_secs(60);
    let found = tokio::time::timeout(limit, async {
        loop {
            let chain = versions.message().await.expect("a version");
            let chain = decode_chain(&chain.expect("a version")).expect("a valid chain");
            if chain.document().version >= version {
                return chain;
            }
        }
    });
    found.await.expect("the version within 60 s")
}

/// The newest version with an edit, signed by these, whatever comes of it.
fn next(chain: &Chain, edit: impl FnOnce(&mut Document), by: &[&AdminSecret]) -> DocumentChain {
    let mut document = Document::clone(chain.document());
    document.version += 1;
    edit(&mut document);
    let mut links: Vec<SignedDocument> = chain.key_changes().cloned().collect();
    links.push(sign(document, by));
    let wire = links.iter().map(|link| {
        let mut one = encode_chain(chain).links.remove(0);
        one.document.clone_from(&link.bytes);
        for (wire, signature) in one.signatures.iter_mut().zip(&link.signatures) {
            wire.key = signature.key.0.to_vec();
            wire.signature = signature.signature.to_vec();
        }
        one
    });
    DocumentChain {
        links: wire.collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_must_not_be_is_refused_and_what_is_wrong_is_named() {
    let world = World::new(&["east", "west"]);
    let east = world.registry("east").await;
    let admin = world.client("east", "workload/admin", &east).await;
    let stranger = AdminSecret::from_bytes(&[66; 32]);
    let east_block = world.chain.document().members[&name("east")].block4;
    type Edit = Box<dyn FnOnce(&mut Document)>;
    let cases: Vec<(Edit, &AdminSecret, &str)> = vec![
        (
            Box::new(|_| {}),
            &stranger,
            "version 2 is not signed by an admin key of version 1",
        ),
        (
            Box::new(move |document| {
                let west = document.members.get_mut(&name("west")).expect("a member");
                west.block4 = east_block;
            }),
            &world.admin,
            "members[west].block4: 10.80.4.0/22 overlaps 10.80.4.0/22 of east",
        ),
        (
            Box::new(|document| {
                let west = document.members.get_mut(&name("west")).expect("a member");
                west.block4 = Some("192.168.0.0/22".parse().expect("a prefix"));
            }),
            &world.admin,
            "members[west].block4: 192.168.0.0/22 lies outside of pool4 10.80.0.0/16",
        ),
        (
            Box::new(|document| {
                document.pool4 = Some("127.0.0.0/16".parse().expect("a prefix"));
            }),
            &world.admin,
            "pool4: 127.0.0.0/16 is not allowed",
        ),
        (
            Box::new(|document| {
                document.policy.exclusions = vec!["10.80.8.0/21".parse().expect("a prefix")];
            }),
            &world.admin,
            "policy.exclusions: 10.80.8.0/21 leaves nothing of west's block 10.80.8.0/22",
        ),
    ];
    for (edit, by, wrong) in cases {
        let refused = publish(&admin, next(&world.chain, edit, &[by])).await;
        let refused = refused.expect_err(wrong);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(wrong), "{wrong}: {refused}");
    }

    // Two contents of one version: the first stays, the second is an alarm.
    let stale_limit = |seconds| {
        next(
            &world.chain,
            |document| document.policy.stale_limit_seconds = seconds,
            &[&world.admin],
        )
    };
    let (first, fork) = (stale_limit(1), stale_limit(2));
    assert_eq!(publish(&admin, first.clone()).await.expect("taken").0, 2);
    let (version, said) = publish(&admin, fork).await.expect("answered");
    assert_eq!(
        (version, said.as_str()),
        (2, "refused: version 2 is held with other content")
    );
    assert!(east.metrics.encode().contains("registry_alarms_total 1"));
    let older = publish(&admin, encode_chain(&world.chain)).await;
    assert_eq!(
        older.expect("answered").1,
        "refused: version 1 is older than 2"
    );
    let again = publish(&admin, first).await.expect("answered");
    assert_eq!(again.1, "taken: held already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusion_over_a_lease_is_told_to_who_publishes_it_and_the_lease_stays() {
    let mut world = World::new(&["east"]);
    let east = world.registry("east").await;
    let router = world.router("east", &east).await;
    let granted = router
        .acquire(&world.acquire("east", 1))
        .await
        .expect("a lease");
    let leased = granted.lease.prefix4.expect("an IPv4 prefix");
    let exclusion = ipnet::IpNet::V4(ipnet::Ipv4Net::new(leased.addr(), 28).expect("a prefix"));
    let chain = world.edit(|document| document.policy.exclusions = vec![exclusion]);
    let (version, said) = publish(&router, encode_chain(&chain)).await.expect("taken");
    assert_eq!(version, 2);
    let wanted = format!("taken: {exclusion} overlaps {leased}, which red-east keeps");
    assert!(said.starts_with(&wanted), "{said}");
    let renewed = router.renew(&granted.lease).await.expect("the lease stays");
    assert_eq!(renewed.lease, granted.lease);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_admin_key_takes_over_on_a_running_network() {
    let mut world = World::new(&["east"]);
    let east = world.registry("east").await;
    let admin = world.client("east", "workload/admin", &east).await;
    let before = world.chain.clone();
    let new = AdminSecret::from_bytes(&[2; 32]);
    let rotated = world.edit(|document| document.admin_keys = BTreeSet::from([new.public()]));
    let published = publish(&admin, encode_chain(&rotated)).await;
    assert_eq!(published.expect("taken").0, 2);
    // The old key goes on as if nothing had happened, from what was before and from what is.
    let jump = |document: &mut Document| document.version = 9;
    let fork = publish(&admin, next(&before, jump, &[&world.admin])).await;
    assert_eq!(
        fork.expect("answered"),
        (
            2,
            "refused: version 2 is held with other content".to_owned()
        )
    );
    let late = publish(&admin, next(&rotated, |_| {}, &[&world.admin])).await;
    let late = late.expect_err("the old key signs nothing more");
    assert!(
        late.message()
            .contains("not signed by an admin key of version 2"),
        "{late}"
    );
    let third = publish(&admin, next(&rotated, |_| {}, &[&new])).await;
    assert_eq!(third.expect("taken").0, 3);
    // Who joins with version 1 alone learns the newest through the change of keys.
    let member = world.client("east", "workload/late", &east).await;
    let mut versions = watch(&member, &world).await;
    let chain = wait_for(&mut versions, 3).await;
    assert_eq!(chain.links().len(), 3);
}

/// Old roots and new ones count together while identities change over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_bundle_changes_over_without_a_gap() {
    let mut world = World::new(&["east", "west"]);
    let east = world.registry("east").await;
    let admin = world.client("east", "workload/admin", &east).await;
    let new = Authority::create("west.test", clock::wall()).expect("test set-up");
    let old_roots = world.authorities["west"].bundle_pem();
    let set = |world: &mut World, pem: String| {
        world.edit(|document| {
            let west = document.members.get_mut(&name("west")).expect("a member");
            west.bundle = pem.into_bytes();
        })
    };
    let may_find = async |world: &World, registry: &Registry| {
        let Ok(connection) = world.dial("west", "vl3/router/red-west", registry).await else {
            return false;
        };
        let client = Client::new(connection, world.uid());
        client.endpoints().find(query("red", false)).await.is_ok()
    };
    let both = set(&mut world, format!("{old_roots}{}", new.bundle_pem()));
    publish(&admin, encode_chain(&both)).await.expect("taken");
    assert!(may_find(&world, &east).await, "the old identity");
    let old = world.authorities.insert("west", new).expect("the old one");
    assert!(may_find(&world, &east).await, "the new identity");
    let new_roots = world.authorities["west"].bundle_pem();
    let done = set(&mut world, new_roots);
    publish(&admin, encode_chain(&done)).await.expect("taken");
    assert!(may_find(&world, &east).await, "the new identity alone");
    world.authorities.insert("west", old);
    assert!(!may_find(&world, &east).await, "the old one is over");
}

/// Publish, sync to another domain, watch there; 250 members, then the most that is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_250_members_and_of_the_size_limit_pass_every_hop() {
    let mut world = World::new(&["east", "west"]);
    let (east, west) = (world.registry("east").await, world.registry("west").await);
    let (in_east, in_west) = (
        world.client("east", "workload/admin", &east).await,
        world.client("west", "workload/a", &west).await,
    );
    let contact = east.contact();
    let introduced = world.edit(|document| {
        let east = document.members.get_mut(&name("east")).expect("a member");
        east.contacts = vec![contact];
    });
    for client in [&in_east, &in_west] {
        assert!(client.publish(&introduced).await.accepted);
    }
    let mut versions = watch(&in_west, &world).await;

    let many = world.edit(|document| {
        for number in 3..=250 {
            let domain = format!("d{number}");
            let authority = Authority::create(&format!("{domain}.test"), clock::wall());
            let bundle = authority.expect("test set-up").bundle_pem();
            let mut member = member(&domain, 3, bundle);
            member.block4 = None;
            member.block6 = format!("fd00:1:2:3:{number:x}::/80")
                .parse()
                .expect("a prefix");
            document.members.insert(member.domain.clone(), member);
        }
    });
    assert_eq!(many.document().members.len(), 250);
    assert!(in_east.publish(&many).await.accepted);
    let seen = wait_for(&mut versions, many.document().version).await;
    assert_eq!(seen, many);

    // Text around certificates is no part of a bundle; it makes up the size.
    let pad = |document: &mut Document, bytes: usize| {
        let mut left = bytes;
        for member in document.members.values_mut() {
            let some = left.min(60 * 1024);
            let mut text = "#".repeat(some);
            text.push('\n');
            member.bundle.splice(0..0, text.into_bytes());
            left -= some;
        }
    };
    let room = DOCUMENT_BYTES_MAX - many.newest().bytes.len() - 4096;
    let big = world.edit(|document| {
        pad(document, room);
        document
            .admin_keys
            .insert(AdminSecret::from_bytes(&[2; 32]).public());
    });
    check_size(&big).expect("the biggest version");
    // The version in which a key was added stays in the chain below the next.
    let last = world.edit(|document| {
        for member in document.members.values_mut() {
            member.bundle.retain(|byte| *byte != b'#');
        }
        pad(document, 700 * 1024);
    });
    check_size(&last).expect("the biggest chain");
    let bytes: usize = last.links().iter().map(|link| link.bytes.len()).sum();
    assert!(bytes > CHAIN_BYTES_MAX - 256 * 1024, "{bytes}");
    for chain in [big, last] {
        assert!(in_east.publish(&chain).await.accepted);
        let seen = wait_for(&mut versions, chain.document().version).await;
        assert_eq!(seen, chain);
    }
}

/// Another network of the same domains, with an edit.
fn blue(world: &World, edit: impl FnOnce(&mut Document)) -> Chain {
    let mut document = Document::clone(world.chain.document());
    document.nonce = vec![8; 32];
    document.uid = NetworkUid::derive(&document.nonce, &document.admin_keys);
    document.name = NetworkName::new("blue").expect("test set-up");
    edit(&mut document);
    Chain::verify(vec![sign(document, &[&world.admin])]).expect("test set-up")
}

#[test]
fn networks_that_contradict_each_other_about_a_domain_are_refused_by_name() {
    let world = World::new(&["east", "west"]);
    let load = |chain: &Chain| {
        let file = |name: &str, text: &str| {
            let file = world.dir.path().join(name);
            std::fs::write(&file, text).expect("test set-up");
            file
        };
        let red = file("red.vl3", &write_armoured(&world.chain));
        let blue = file("blue.vl3", &write_armoured(chain));
        let text = format!(
            "name = \"east\"\ndomain = \"east\"\n[identity]\ndir = \"/nowhere\"\n\
             [[network]]\ndocument = {red:?}\n[[network]]\ndocument = {blue:?}\n"
        );
        let config = Some(file("registry.toml", &text));
        let flags = vl3_runtime::config::Flags {
            config,
            set: Vec::new(),
        };
        vl3_runtime::config::load_from::<registry_federation::Config>(&flags, [])
            .map(drop)
            .map_err(|invalid| invalid.to_string())
    };
    assert_eq!(load(&blue(&world, |_| {})), Ok(()));
    let contradicting = blue(&world, |document| {
        let west = document.members.get_mut(&name("west")).expect("west");
        west.trust_domain = "evil.test".to_owned();
        west.roles = RoleIds::defaults("evil.test");
    });
    let said = load(&contradicting).unwrap_err();
    for part in ["red and blue", "domain west", "west.test", "evil.test"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
