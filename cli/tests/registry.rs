//! `vl3 registry` as an operator uses it: a real process, and the verbs that ask it.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

fn vl3(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vl3"));
    command.args(words).current_dir(dir).env_clear();
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn fine(dir: &Path, words: &[&str]) -> String {
    let output = vl3(dir, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    text(&output)
}

fn refused(dir: &Path, words: &[&str]) -> String {
    let output = vl3(dir, words);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{words:?}: {}",
        text(&output)
    );
    text(&output)
}

/// A registry's process; killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Err: it ended before.
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Identity, document and configuration of the domain east, all in `dir`.
fn prepare(dir: &Path) {
    fine(dir, &["identity", "init", "east.test"]);
    fine(
        dir,
        &["identity", "issue", "registry", "east", "--ttl", "1h"],
    );
    std::fs::write(dir.join("east.pem"), fine(dir, &["identity", "bundle"])).unwrap();
    fine(dir, &["network", "init", "red", "--pool4", "10.80.0.0/16"]);
    let add = "network add-member red.vl3net --domain east --trust-domain east.test \
               --bundle east.pem --contact 192.0.2.1:5002 --block4 10.80.4.0/22";
    fine(dir, &add.split_whitespace().collect::<Vec<_>>());
    let config = "domain = \"east\"\nname = \"east\"\nidentity.dir = \"registry-east\"\n\
                  listen = [\"tcp://127.0.0.1:0\"]\nrun_dir = \"run\"\nstate_dir = \"state\"\n\
                  [[network]]\ndocument = \"red.vl3net\"\n";
    std::fs::write(dir.join("registry.toml"), config).unwrap();
}

fn start(dir: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vl3"));
    command
        .args(["registry", "--config", "registry.toml"])
        .current_dir(dir)
        .env_clear()
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("registry.log")).unwrap());
    let running = Running(command.spawn().unwrap());
    eventually_answers(dir);
    running
}

fn eventually_answers(dir: &Path) {
    for _ in 0..200 {
        if vl3(dir, &["registry", "leases", "./run"]).status.success() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = std::fs::read_to_string(dir.join("registry.log")).unwrap();
    panic!("the registry does not answer within 10 s: {log}");
}

#[test]
fn a_backup_is_taken_while_it_runs_and_restored_after_a_wipe() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let running = start(dir);
    let said = fine(dir, &["registry", "check", "./run"]);
    assert!(said.contains("1 network, 0 leases"), "{said}");
    assert!(said.contains("clean: every invariant holds"), "{said}");
    let said = fine(dir, &["registry", "backup", "east.backup", "./run"]);
    assert!(said.starts_with("wrote east.backup"), "{said}");
    fine(dir, &["registry", "check", "east.backup"]);
    let restore = [
        "registry",
        "restore",
        "east.backup",
        "--config",
        "registry.toml",
    ];
    let said = refused(dir, &restore);
    assert!(said.contains("a registry runs on this state"), "{said}");
    drop(running);
    let said = refused(dir, &restore);
    assert!(said.contains("is not empty; --force replaces"), "{said}");
    std::fs::remove_dir_all(dir.join("state")).unwrap();
    let said = refused(dir, &["registry", "check", "--state-dir", "state"]);
    assert!(said.contains("holds no registry.redb"), "{said}");
    fine(dir, &restore);
    let forced = fine(dir, &[&restore[..], &["--force"]].concat());
    assert!(forced.contains("registry.redb.before-restore"), "{forced}");
    let said = fine(dir, &["registry", "check", "--state-dir", "state"]);
    assert!(said.contains("leases are taken back"), "{said}");

    // Anything but a whole backup of this domain changes nothing.
    let before = std::fs::read(dir.join("state/registry.redb")).unwrap();
    let whole = std::fs::read(dir.join("east.backup")).unwrap();
    std::fs::write(dir.join("torn"), &whole[..whole.len() - 9]).unwrap();
    std::fs::write(dir.join("foreign"), "something else").unwrap();
    for (file, part) in [
        ("torn", "it is torn"),
        ("foreign", "no backup of a registry"),
    ] {
        let said = refused(
            dir,
            &[
                "registry",
                "restore",
                file,
                "--state-dir",
                "state",
                "--force",
            ],
        );
        assert!(said.contains(part), "{said}");
    }
    assert!(before == std::fs::read(dir.join("state/registry.redb")).unwrap());
    let _running = start(dir);
    let said = fine(dir, &["registry", "check", "./run"]);
    assert!(said.contains("leases are taken back"), "the mark: {said}");
}

#[test]
fn a_running_registry_answers_its_operator() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let nobody = refused(dir, &["registry", "leases", "./run"]);
    assert!(nobody.contains("try: "), "{nobody}");
    let _registry = start(dir);
    assert_eq!(fine(dir, &["registry", "leases", "./run"]), "no leases\n");
    let services = fine(dir, &["registry", "services", "./run"]);
    assert!(
        services.contains("NAME") && services.contains("red"),
        "{services}"
    );
    let said = fine(dir, &["registry", "who-owns", "10.80.5.1", "./run"]);
    assert!(
        said.starts_with("10.80.5.1 belongs to nobody: not leased"),
        "{said}"
    );
    let json = fine(
        dir,
        &["registry", "who-owns", "east", "./run", "-o", "json"],
    );
    let answer: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(answer["found"][0]["what"], "member", "{answer}");
    let unknown = refused(dir, &["registry", "release", "red-east", "./run"]);
    assert!(
        unknown.contains("no router red-east holds a lease here"),
        "{unknown}"
    );
}
