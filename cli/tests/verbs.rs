//! The binary as people call it.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::process::{Command, Output};

fn vl3(dir: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vl3"))
        .args(words)
        .current_dir(dir)
        .env_clear()
        .output()
        .unwrap()
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

#[test]
fn an_identity_and_a_document_are_enough_for_a_registry_and_a_router() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fine(dir, &["identity", "init", "east.test"]);
    for role in ["registry", "router", "dns", "client"] {
        fine(dir, &["identity", "issue", role, "a", "--ttl", "1h"]);
    }
    let bundle = fine(dir, &["identity", "bundle"]);
    assert!(bundle.starts_with("-----BEGIN CERTIFICATE-----"));
    std::fs::write(dir.join("east.pem"), bundle).unwrap();
    fine(dir, &["network", "init", "red", "--pool4", "10.80.0.0/16"]);
    fine(
        dir,
        &[
            "network",
            "add-member",
            "red.vl3net",
            "--domain",
            "east",
            "--trust-domain",
            "east.test",
            "--bundle",
            "east.pem",
            "--contact",
            "192.0.2.1:5002",
        ],
    );
    let shown = fine(dir, &["network", "show", "red.vl3net"]);
    let uid = shown
        .lines()
        .find_map(|line| line.strip_prefix("uid"))
        .unwrap()
        .trim()
        .to_owned();
    let common = "domain = \"east\"\nidentity.dir = \"router-a\"\n";
    let network = format!("document = \"red.vl3net\"\nuid = \"{uid}\"\n");
    std::fs::write(
        dir.join("registry.toml"),
        format!("{common}[[network]]\n{network}"),
    )
    .unwrap();
    std::fs::write(
        dir.join("router.toml"),
        format!("{common}registry = \"tcp://192.0.2.1:5002\"\n[network]\n{network}"),
    )
    .unwrap();
    for role in ["registry", "router"] {
        let said = fine(
            dir,
            &[role, "--config", &format!("{role}.toml"), "--check-config"],
        );
        assert_eq!(
            said,
            format!("the configuration of {role} {role} is fine\n")
        );
    }
}

#[test]
fn a_member_may_have_identities_of_its_own_kind() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fine(dir, &["identity", "init", "east.test"]);
    std::fs::write(dir.join("east.pem"), fine(dir, &["identity", "bundle"])).unwrap();
    fine(dir, &["network", "init", "red"]);
    let add =
        "network add-member red.vl3net --domain east --trust-domain east.test --bundle east.pem";
    let add = |role| [&add.split(' ').collect::<Vec<_>>()[..], &["--role", role]].concat();
    let refused = vl3(dir, &add("cook=spiffe://east.test/a"));
    assert!(
        text(&refused).contains("registry, router, dns, workload, intermediary"),
        "{}",
        text(&refused)
    );
    let other: Vec<_> = add("workload=spiffe://east.test/ns/*")
        .iter()
        .map(|word| {
            if *word == "east.test" {
                "west.test"
            } else {
                word
            }
        })
        .collect();
    let refused = text(&vl3(dir, &other));
    assert!(
        refused
            .contains("--trust-domain west.test: east.pem is the bundle of trust domain east.test"),
        "{refused}"
    );
    let added = fine(dir, &add("workload=spiffe://east.test/ns/*"));
    assert!(
        added.contains("neither --contact nor --dials-only"),
        "{added}"
    );
    assert!(
        added.contains("next: vl3 network publish red.vl3net"),
        "{added}"
    );
    let shown = fine(dir, &["network", "show", "red.vl3net"]);
    assert!(
        shown.contains("workload of east: spiffe://east.test/ns/*\n"),
        "{shown}"
    );
    let shown = fine(dir, &["network", "show", "red.vl3net", "--output", "json"]);
    assert!(
        shown.contains("\"workload\":[\"spiffe://east.test/ns/*\"]"),
        "{shown}"
    );
}

#[test]
fn mistakes_of_a_configuration_are_all_named_and_the_exit_code_is_2() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(
        dir.join("router.toml"),
        "domian = \"east\"\nregistry = 7\n[network]\nuid = \"x\"\n",
    )
    .unwrap();
    let output = vl3(
        dir,
        &[
            "router",
            "--config",
            "router.toml",
            "--set",
            "workers=none",
            "--set",
            "color=red",
        ],
    );
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output);
    for part in [
        "domain is missing",
        "domian = \"east\": must be a known key; did you mean domain?",
        "registry = 7: must be tcp://HOST:PORT or unix:///PATH",
        "network.uid = \"x\": must be a network uid: 16 bytes in hexadecimal",
        "network.document is missing: must be a path",
        "identity.dir is missing",
        "workers (flag --set workers) = \"none\": must be",
        "color (flag --set color) = red: must be a known key",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    assert!(!said.contains("try:"), "the list is all there is:\n{said}");
}

#[test]
fn a_level_that_is_none_and_files_that_are_not_there_are_mistakes_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let network =
        "[network]\ndocument = \"/nosuch/red\"\nuid = \"00112233445566778899aabbccddeeff\"\n";
    let identity = "identity.dir = \"/nosuch/id\"\n";
    let router =
        format!("domain = \"east\"\nregistry = \"tcp://192.0.2.1:5002\"\n{identity}{network}");
    let client = format!(
        "{identity}[[attach]]\nconnect_to = \"tcp://192.0.2.1:5010\"\n{}",
        network.replace("[network]", "[attach.network]")
    );
    for (role, config, key) in [
        ("router", router, "network.document"),
        ("client", client, "attach[0].network.document"),
    ] {
        let file = format!("{role}.toml");
        std::fs::write(dir.join(&file), config).unwrap();
        let words = [
            role,
            "--config",
            &file,
            "--log-level",
            "loud",
            "--check-config",
        ];
        let output = vl3(dir, &words);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in [
            "log.level (flag --log-level) = \"loud\": must be error, warn, info, debug, trace",
            "identity.dir = \"/nosuch/id\": must be a directory with svid.pem, key.pem and bundle.pem",
            &format!("{key} = \"/nosuch/red\": must be a readable file"),
        ] {
            assert!(said.contains(part), "{part:?} is not in:\n{said}");
        }
        // A start does not wait for a document.
        let output = vl3(dir, &words[..3]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    }
}

#[test]
fn errors_end_with_the_next_command_to_try() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (words, next) in [
        (
            &["identity", "issue", "router", "a"][..],
            "try: vl3 identity init TRUST_DOMAIN, or --ca DIR",
        ),
        (
            &["identity", "init", "Not A Domain"],
            "try: vl3 identity init east.example",
        ),
        (&["status", "./nowhere"], "try: vl3 status"),
        (&["router", "leave", "./nowhere"], "try: vl3 status"),
    ] {
        let output = vl3(dir, words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(text(&output).contains(next), "{words:?}: {}", text(&output));
    }
}

#[test]
fn a_second_ca_never_replaces_the_first() {
    let dir = tempfile::tempdir().unwrap();
    fine(dir.path(), &["identity", "init", "east.test"]);
    let before = fine(dir.path(), &["identity", "bundle"]);
    let output = vl3(dir.path(), &["identity", "init", "east.test"]);
    assert!(
        text(&output).contains("holds a CA already"),
        "{}",
        text(&output)
    );
    assert_eq!(fine(dir.path(), &["identity", "bundle"]), before);
}

#[test]
fn output_has_no_colours_when_nobody_watches() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!text(&vl3(dir.path(), &["status"])).contains('\u{1b}'));
}
