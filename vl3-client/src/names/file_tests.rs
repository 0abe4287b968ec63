use std::os::unix::fs::{PermissionsExt as _, symlink};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

const HOST: &str = "nameserver 192.0.2.53\nsearch corp.example";

fn red() -> Entries {
    Entries {
        servers: vec!["10.60.0.1".parse().unwrap()],
        suffixes: vec!["red.test".to_owned()],
    }
}

fn blue() -> Entries {
    Entries {
        servers: vec!["10.61.0.1".parse().unwrap()],
        suffixes: vec!["blue.test".to_owned()],
    }
}

/// A directory with a resolv.conf that holds `text`.
fn host(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn client(path: &Path, name: &str) -> ResolvConf {
    ResolvConf::new(path.to_owned(), name).unwrap()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn a_file_is_edited_and_put_back_byte_for_byte_with_its_mode() {
    let (dir, path) = host(HOST);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let client = client(&path, "web");
    assert!(client.set(&red()).await.unwrap().changed);
    assert!(!client.set(&red()).await.unwrap().changed, "the same again");
    let text = read(&path);
    assert!(text.contains("\nnameserver 10.60.0.1\n"), "{text}");
    assert!(text.ends_with("\nsearch corp.example red.test\n"), "{text}");
    assert!(client.set(&Entries::default()).await.unwrap().changed);
    assert_eq!(read(&path), HOST);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(names_in(dir.path()), ["resolv.conf"]);
}

#[tokio::test]
async fn a_file_that_is_not_there_is_made_and_removed_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    let client = client(&path, "web");
    assert!(!client.set(&Entries::default()).await.unwrap().changed);
    assert!(names_in(dir.path()).is_empty(), "made for nothing");
    client.set(&red()).await.unwrap();
    assert!(read(&path).contains("\nsearch red.test\n"));
    client.set(&Entries::default()).await.unwrap();
    assert!(names_in(dir.path()).is_empty(), "left behind");
}

#[tokio::test]
async fn a_link_stays_and_its_file_is_edited() {
    let (dir, path) = host(HOST);
    let link = dir.path().join("link");
    symlink("resolv.conf", &link).unwrap();
    let client = client(&link, "web");
    client.set(&red()).await.unwrap();
    assert!(link.is_symlink());
    assert!(read(&path).contains("nameserver 10.60.0.1\n"));
    client.set(&Entries::default()).await.unwrap();
    assert!(link.is_symlink());
    assert_eq!(read(&path), HOST);
}

#[tokio::test]
async fn what_cannot_be_edited_is_one_clear_error_and_is_not_touched() {
    let (dir, path) = host(HOST);
    let error = async |path: &Path| {
        let outcome = client(path, "web").set(&red()).await;
        outcome.unwrap_err().to_string()
    };
    let dangling = dir.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    let said = error(&dangling).await;
    assert!(said.contains("a link to one that is not there"), "{said}");

    let said = error(dir.path()).await;
    assert!(said.contains("a file of at most 64 KiB"), "{said}");

    std::fs::write(&path, "x".repeat(OCTETS_MAX + 1)).unwrap();
    let said = error(&path).await;
    assert!(said.contains("a file of at most 64 KiB"), "{said}");
    assert_eq!(read(&path).len(), OCTETS_MAX + 1);

    std::fs::write(&path, b"# Caf\xe9\n").unwrap();
    let said = error(&path).await;
    assert!(said.contains("UTF-8"), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), b"# Caf\xe9\n");
}

#[tokio::test]
async fn two_clients_on_one_file_keep_each_others_lines() {
    let (_dir, path) = host(HOST);
    let (web, shop) = (client(&path, "web"), client(&path, "shop"));
    let (one, two) = (red(), blue());
    let (one, two) = tokio::join!(web.set(&one), shop.set(&two));
    one.unwrap();
    two.unwrap();
    let both = read(&path);
    assert!(
        both.ends_with("\nsearch corp.example blue.test red.test\n"),
        "{both}"
    );
    // Neither finds anything to change: they do not write over each other for ever.
    assert!(!web.set(&red()).await.unwrap().changed);
    assert!(!shop.set(&blue()).await.unwrap().changed);
    web.set(&Entries::default()).await.unwrap();
    assert!(read(&path).ends_with("\nsearch corp.example blue.test\n"));
    shop.set(&Entries::default()).await.unwrap();
    assert_eq!(read(&path), HOST);
}

#[tokio::test]
async fn lines_of_a_client_that_is_gone_go_with_the_next_start_of_any() {
    let (_dir, path) = host(HOST);
    client(&path, "web").set(&red()).await.unwrap();
    let own = Process::current().unwrap().to_string();
    let (before, _) = own.split_once(" pid=").unwrap();
    // As if that had been written by a process that ended long ago.
    let text = read(&path).replace(&own, &format!("{before} pid=1 since=1"));
    std::fs::write(&path, text).unwrap();
    client(&path, "shop")
        .set(&Entries::default())
        .await
        .unwrap();
    assert_eq!(read(&path), HOST);
}

#[tokio::test]
async fn a_container_that_is_started_again_takes_its_own_lines_out() {
    let (_dir, path) = host(HOST);
    client(&path, "web").set(&red()).await.unwrap();
    let other = read(&path).replace(" pids=", " pids=9");
    std::fs::write(&path, &other).unwrap();
    client(&path, "shop")
        .set(&Entries::default())
        .await
        .unwrap();
    assert_eq!(read(&path), other, "it may live, out of sight");
    client(&path, "web").set(&Entries::default()).await.unwrap();
    assert_eq!(read(&path), HOST);
}

#[tokio::test]
async fn a_file_that_somebody_wrote_anew_is_edited_again() {
    let (_dir, path) = host(HOST);
    let client = client(&path, "web");
    client.set(&red()).await.unwrap();
    let anew = "# by a DHCP client\nsearch lan\nnameserver 198.51.100.53\n";
    std::fs::write(&path, anew).unwrap();
    assert!(client.set(&red()).await.unwrap().changed);
    assert!(read(&path).ends_with("\nsearch lan red.test\n"));
    client.set(&Entries::default()).await.unwrap();
    assert_eq!(read(&path), anew);
}

#[tokio::test]
async fn a_file_of_two_names_keeps_both() {
    let (dir, path) = host(HOST);
    let other = dir.path().join("other");
    std::fs::hard_link(&path, &other).unwrap();
    let client = client(&path, "web");
    client.set(&red()).await.unwrap();
    assert_eq!(read(&other), read(&path));
    client.set(&Entries::default()).await.unwrap();
    assert_eq!(read(&other), HOST);
}

#[tokio::test]
async fn whoever_holds_the_lock_is_waited_for_not_for_ever() {
    let (_dir, path) = host(HOST);
    let held = File::open(&path).unwrap();
    held.lock().unwrap();
    let error = client(&path, "web").set(&red()).await.unwrap_err();
    assert!(matches!(error, FileError::Busy { .. }), "{error}");
    held.unlock().unwrap();
    client(&path, "web").set(&red()).await.unwrap();
}

/// Runs `work` on a thread with mounts of its own.
fn with_mounts(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own need root");
        mount_at(
            None,
            Path::new("/"),
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None,
        );
        work();
    });
    thread.join().unwrap();
}

fn mount_at(source: Option<&Path>, target: &Path, flags: MsFlags, options: Option<&str>) {
    let kind = options.map(|_| "tmpfs");
    mount(source, target, kind, flags, options).expect("mount a file system");
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(work)
}

#[test]
fn a_mounted_file_is_written_in_place() {
    let (dir, path) = host(HOST);
    with_mounts(move || {
        let target = dir.path().join("mounted");
        std::fs::write(&target, "").unwrap();
        mount_at(Some(&path), &target, MsFlags::MS_BIND, None);
        let client = client(&target, "web");
        block_on(client.set(&red())).unwrap();
        assert!(
            read(&path).contains("nameserver 10.60.0.1\n"),
            "it is the same file"
        );
        block_on(client.set(&Entries::default())).unwrap();
        assert_eq!(read(&path), HOST);
        assert_eq!(names_in(dir.path()).len(), 2, "{:?}", names_in(dir.path()));
    });
}

#[test]
fn a_full_disk_is_one_clear_error_and_the_text_stays() {
    let dir = tempfile::tempdir().unwrap();
    with_mounts(move || {
        // One page for the file, and none to grow into.
        mount_at(
            None,
            dir.path(),
            MsFlags::empty(),
            Some("size=4096,nr_inodes=16"),
        );
        let path = dir.path().join("resolv.conf");
        let long = format!("{HOST}\n# {}\n", "x".repeat(4096 - HOST.len() - 4));
        assert_eq!(long.len(), 4096);
        std::fs::write(&path, &long).unwrap();
        let client = client(&path, "web");
        let error = block_on(client.set(&red())).unwrap_err();
        let FileError::Write { source, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), ErrorKind::StorageFull);
        assert!(error.to_string().contains("untouched"), "{error}");
        assert_eq!(read(&path), long);
        assert_eq!(names_in(dir.path()), ["resolv.conf"]);

        // Where it was written before the disk ran full, it is put back all the same.
        std::fs::write(&path, HOST).unwrap();
        block_on(client.set(&red())).unwrap();
        let page = "x".repeat(4096);
        let _full = std::fs::write(dir.path().join("filler"), page);
        block_on(client.set(&Entries::default())).unwrap();
        assert_eq!(read(&path), HOST);
    });
}

#[test]
fn a_read_only_file_is_one_clear_error() {
    let (dir, path) = host(HOST);
    with_mounts(move || {
        mount_at(Some(dir.path()), dir.path(), MsFlags::MS_BIND, None);
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount_at(None, dir.path(), read_only, None);
        let client = client(&path, "web");
        let error = block_on(client.set(&red())).unwrap_err();
        let FileError::Write { source, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), ErrorKind::ReadOnlyFilesystem);
        assert_eq!(read(&path), HOST);
        // Nothing is wanted, so nothing is wrong.
        assert!(!block_on(client.set(&Entries::default())).unwrap().changed);
    });
}
