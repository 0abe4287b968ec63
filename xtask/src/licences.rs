//! Licences, banned crates and crates that may exist once only, from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;

use crate::metadata::Graph;
use crate::shell::say;

/// None of them asks more than to keep the notice.
const ALLOWED: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "CC0-1.0",
];

/// Another TLS, C tool chains, abandoned crates, or a client that brings its own world.
const BANNED: &[&str] = &[
    "openssl-sys",
    "native-tls",
    "aws-lc-sys",
    "aws-lc-rs",
    "reqwest",
    "trust-dns-proto",
    "serde_yaml",
    "rustables",
    "wireguard-control",
];

/// Two versions of these would be two worlds whose types do not meet.
const ONCE: &[&str] = &[
    "tonic",
    "prost",
    "rustls",
    "hyper",
    "http",
    "tower",
    "tower-http",
    "axum",
    "hickory-proto",
    "k8s-openapi",
    "netlink-packet-route",
    "ring",
    "tokio",
    "boringtun",
    "ipnet",
];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(crate) fn run() -> anyhow::Result<()> {
    let graph = Graph::load()?;
    let mut faults = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in graph.packages.values() {
        versions
            .entry(&package.name)
            .or_default()
            .insert(&package.version);
        match package.licence.as_deref() {
            None => faults.push(format!("{} states no licence", package.name)),
            Some(licence) if !allowed(licence) => {
                faults.push(format!("{} is under {licence:?}", package.name));
            }
            Some(_) => {}
        }
        if BANNED.contains(&package.name.as_str()) {
            faults.push(format!("{} is banned", package.name));
        }
        match package.registry.as_deref() {
            None if package.member => {}
            Some(REGISTRY) => {}
            source => faults.push(format!("{} comes from {source:?}", package.name)),
        }
    }
    for name in ONCE {
        if let Some(found) = versions.get(name).filter(|found| found.len() > 1) {
            faults.push(format!("{name} in {} versions: {found:?}", found.len()));
        }
    }
    if !faults.is_empty() {
        bail!("dependencies:\n  {}", faults.join("\n  "));
    }
    say(&format!(
        "{} packages: licences allowed, none banned, none doubled of those that may not be",
        graph.packages.len()
    ));
    Ok(())
}

/// Whether we may choose allowed licences only: `OR` lets us choose, `AND` does not.
fn allowed(expression: &str) -> bool {
    // Old manifests write `/` for OR.
    let text = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut rest = words.as_slice();
    let verdict = any_of(&mut rest);
    verdict && rest.is_empty()
}

fn any_of(words: &mut &[&str]) -> bool {
    let mut verdict = all_of(words);
    while let [first, rest @ ..] = words
        && *first == "OR"
    {
        *words = rest;
        verdict |= all_of(words);
    }
    verdict
}

fn all_of(words: &mut &[&str]) -> bool {
    let mut verdict = term(words);
    while let [first, rest @ ..] = words
        && *first == "AND"
    {
        *words = rest;
        verdict &= term(words);
    }
    verdict
}

fn term(words: &mut &[&str]) -> bool {
    match words {
        ["(", rest @ ..] => {
            *words = rest;
            let verdict = any_of(words);
            if let [")", rest @ ..] = words {
                *words = rest;
                verdict
            } else {
                false
            }
        }
        [name, "WITH", exception, rest @ ..] => {
            let verdict = ALLOWED.contains(&format!("{name} WITH {exception}").as_str());
            *words = rest;
            verdict
        }
        [name, rest @ ..] => {
            let verdict = ALLOWED.contains(name);
            *words = rest;
            verdict
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_needs_one_allowed_side_a_sum_needs_all() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 OR BSL-1.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        ] {
            assert!(allowed(good), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-2.0",
            "",
            "(MIT",
            "MIT MIT",
            "Apache-2.0 WITH Other-exception",
        ] {
            assert!(!allowed(bad), "{bad}");
        }
    }
}
