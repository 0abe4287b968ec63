//! Which certificate chains are believed.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use vl3_core::Wall;
use vl3_core::ids::NetworkUid;
use vl3_identity::authority::Authority;
use vl3_identity::{Bundle, Identity, Scope, Source, Trust, install_crypto_provider};

const RED: NetworkUid = NetworkUid([1; 16]);
const BLUE: NetworkUid = NetworkUid([2; 16]);
/// Inside the fixtures' validity.
const NOW: Wall = Wall::from_unix_secs(1_800_000_000);
const TTL: Duration = Duration::from_secs(3600);

fn at(wall: Wall) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(wall.unix_secs()))
}

fn east() -> (Authority, Trust) {
    install_crypto_provider();
    let authority = Authority::create("east.test", NOW).unwrap();
    let source = Source::fixed(authority.identity("vl3/router/r", TTL, NOW).unwrap());
    let trust = Trust::new(&source);
    (authority, trust)
}

#[test]
fn an_own_leaf_is_believed_while_it_is_valid() {
    let (authority, trust) = east();
    let leaf: Identity = authority.identity("workload/a", TTL, NOW).unwrap();
    let verified = trust.verify(&leaf.chain, at(NOW)).unwrap();
    assert_eq!(
        (verified.id.path(), verified.scopes),
        ("/workload/a", vec![Scope::Own])
    );
    let error = trust
        .verify(&leaf.chain, at(NOW + TTL + Duration::from_secs(1)))
        .unwrap_err();
    assert!(
        error.contains("workload/a") && error.contains("expired"),
        "{error}"
    );
}

#[test]
fn a_chain_under_an_rsa_root_is_believed() {
    let (_, trust) = east();
    let root = Bundle::from_pem(include_bytes!("fixtures/rsa-root.pem")).unwrap();
    let leaf =
        CertificateDer::from_pem_slice(include_bytes!("fixtures/p256-leaf-under-rsa.pem")).unwrap();
    trust.set_network(RED, BTreeMap::from([("rsa.test".to_owned(), root)]));
    let verified = trust.verify(&[leaf], at(NOW)).unwrap();
    assert_eq!(verified.id.as_str(), "spiffe://rsa.test/ns/default/pod/a");
}

#[test]
fn scopes_name_the_networks_whose_bundles_fit() {
    let (_, trust) = east();
    let (west, false_west) = (
        Authority::create("west.test", NOW).unwrap(),
        Authority::create("west.test", NOW).unwrap(),
    );
    let bundles = |authority: &Authority| {
        BTreeMap::from([("west.test".to_owned(), authority.bundle().unwrap())])
    };
    trust.set_network(RED, bundles(&west));
    trust.set_network(BLUE, bundles(&false_west));
    let (leaf, forged) = (
        west.identity("vl3/router/w", TTL, NOW).unwrap(),
        false_west.identity("vl3/router/w", TTL, NOW).unwrap(),
    );
    assert_eq!(
        trust.verify(&leaf.chain, at(NOW)).unwrap().scopes,
        [Scope::Network(RED)]
    );
    assert_eq!(
        trust.verify(&forged.chain, at(NOW)).unwrap().scopes,
        [Scope::Network(BLUE)]
    );
    trust.remove_network(&RED);
    assert!(trust.verify(&leaf.chain, at(NOW)).is_err());
}

#[test]
fn an_unknown_trust_domain_is_named() {
    let (_, trust) = east();
    let leaf = Authority::create("west.test", NOW)
        .unwrap()
        .identity("workload/a", TTL, NOW)
        .unwrap();
    let error = trust.verify(&leaf.chain, at(NOW)).unwrap_err();
    assert!(
        error.contains("no bundle is known for trust domain west.test"),
        "{error}"
    );
}

#[test]
fn a_root_is_no_leaf() {
    let (authority, trust) = east();
    let error = trust
        .verify(authority.bundle().unwrap().certificates(), at(NOW))
        .unwrap_err();
    assert!(error.contains("names a trust domain"), "{error}");
}

#[test]
fn a_bundle_without_a_certificate_is_refused() {
    for bad in [
        "",
        "rubbish",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        assert!(Bundle::from_pem(bad.as_bytes()).is_err(), "{bad}");
    }
}
