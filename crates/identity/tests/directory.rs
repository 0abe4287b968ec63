//! A watched identity directory.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vl3_core::Wall;
use vl3_identity::authority::Authority;
use vl3_identity::{Error, Source};

const TTL: Duration = Duration::from_secs(600);

fn now() -> Wall {
    Wall::from_unix_secs(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs(),
    )
}

fn authority() -> Authority {
    Authority::create("east.test", now()).unwrap()
}

fn issue(authority: &Authority, name: &str, dir: &Path) {
    authority
        .issue(&format!("workload/{name}"), TTL, now())
        .unwrap()
        .store(dir)
        .unwrap();
}

async fn eventually_is(source: &Source, path: &str) {
    let mut changes = source.subscribe();
    let change = changes.wait_for(|identity| identity.id.path() == path);
    tokio::time::timeout(Duration::from_secs(10), change)
        .await
        .expect("rotates within 10 s")
        .unwrap();
}

#[tokio::test]
async fn a_new_set_of_files_is_taken_over() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    issue(&authority, "a", dir.path());
    let source = Source::from_dir(dir.path()).unwrap();
    assert_eq!(
        source.current().id.as_str(),
        "spiffe://east.test/workload/a"
    );
    issue(&authority, "b", dir.path());
    eventually_is(&source, "/workload/b").await;
}

#[tokio::test]
async fn a_symlink_swap_is_seen() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    let link = dir.path().join("current");
    issue(&authority, "a", &dir.path().join("1"));
    issue(&authority, "b", &dir.path().join("2"));
    std::os::unix::fs::symlink("1", &link).unwrap();
    let source = Source::from_dir(&link).unwrap();
    std::os::unix::fs::symlink("2", dir.path().join("next")).unwrap();
    std::fs::rename(dir.path().join("next"), &link).unwrap();
    eventually_is(&source, "/workload/b").await;
}

#[tokio::test]
async fn half_a_set_keeps_the_identity_held_until_the_rest_arrives() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    issue(&authority, "a", dir.path());
    let source = Source::from_dir(dir.path()).unwrap();
    let other = tempfile::tempdir().unwrap();
    issue(&authority, "b", other.path());
    let copy = |file: &str| std::fs::copy(other.path().join(file), dir.path().join(file)).unwrap();
    copy("key.pem");
    let mut changes = source.subscribe();
    let early = tokio::time::timeout(Duration::from_millis(2500), changes.changed()).await;
    assert!(
        early.is_err(),
        "a key without its certificate changes nothing"
    );
    copy("svid.pem");
    eventually_is(&source, "/workload/b").await;
}

#[tokio::test]
async fn what_is_missing_or_does_not_fit_is_named() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    let error = Source::from_dir(dir.path()).unwrap_err();
    assert!(
        matches!(error, Error::Read { .. }) && error.to_string().contains("svid.pem"),
        "{error}"
    );
    issue(&authority, "a", dir.path());
    let key = authority.issue("workload/b", TTL, now()).unwrap().key;
    std::fs::write(dir.path().join("key.pem"), key).unwrap();
    let error = Source::from_dir(dir.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("key.pem: does not belong to the certificate"),
        "{error}"
    );
}

#[test]
fn a_stored_authority_is_loaded_and_never_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, first) = (tempfile::tempdir().unwrap(), authority());
    first.store(dir.path()).unwrap();
    assert!(first.store(dir.path()).is_err());
    let mode = std::fs::metadata(dir.path().join("ca-key.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let loaded = Authority::load(dir.path()).unwrap();
    assert_eq!(loaded.trust_domain(), "east.test");
    assert_eq!(loaded.bundle_pem(), first.bundle_pem());
}
