//! Which crate may be built from which, and what must not stand in a tree.

use crate::metadata::{Graph, Package};

const BLOCKS: &[&str] = &[
    "vl3-core",
    "vl3-proto",
    "vl3-dataplane",
    "nsm-chain",
    "vl3-runtime",
    "vl3-identity",
    "vl3-net",
];

const ROLES: &[&str] = &[
    "vl3-router",
    "vl3-client",
    "dns-fanout",
    "registry-federation",
];

/// Everything that `vl3-core` may be built from: addresses, errors, hashes, signatures.
/// No runtime, no socket, no clock. (`libc`, `getrandom` and `serde` come with these crates
/// where another member turns their features on; the lints keep them out of the code.)
const CORE_TREE: &[&str] = &[
    "block-buffer",
    "cfg-if",
    "cpufeatures",
    "crypto-common",
    "curve25519-dalek",
    "curve25519-dalek-derive",
    "digest",
    "ed25519",
    "ed25519-dalek",
    "generic-array",
    "getrandom",
    "ipnet",
    "libc",
    "proc-macro2",
    "quote",
    "rand_core",
    "serde",
    "serde_core",
    "serde_derive",
    "sha2",
    "signature",
    "subtle",
    "syn",
    "thiserror",
    "thiserror-impl",
    "typenum",
    "unicode-ident",
    "version_check",
    "zeroize",
    "zeroize_derive",
    "fiat-crypto",
    "rustc_version",
    "semver",
];

/// A crate and what must be nowhere below it.
const NEVER_BELOW: &[(&str, &[&str])] = &[
    (
        "vl3-dataplane",
        &["tokio", "mio", "tonic", "hyper", "async-std"],
    ),
    ("nsm-chain", &["rtnetlink", "boringtun", "redb"]),
    ("vl3-proto", &["rtnetlink", "boringtun"]),
];

/// A dependency and the only crates that may name it.
const ONLY_USERS: &[(&str, &[&str])] = &[
    ("rtnetlink", &["vl3-net"]),
    ("spiffe", &["vl3-identity"]),
    ("boringtun", &["vl3-dataplane"]),
    ("rcgen", &["vl3-identity"]),
];

/// Our crates that `name` may be built from.
fn allowed(name: &str) -> Option<Vec<&'static str>> {
    let blocks = || BLOCKS.to_vec();
    Some(match name {
        "vl3-core" | "vl3-net" => Vec::new(),
        "vl3-proto" | "vl3-dataplane" | "vl3-identity" => vec!["vl3-core"],
        "nsm-chain" => vec!["vl3-core", "vl3-proto", "vl3-identity"],
        "vl3-runtime" => vec!["vl3-core", "vl3-proto", "vl3-identity"],
        "vl3-lab" => vec!["vl3-net"],
        role if ROLES.contains(&role) => blocks(),
        "vl3" => [blocks(), ROLES.to_vec(), vec!["vl3-lab"]].concat(),
        "vl3-sim" => vec!["vl3-core"],
        "vl3-multicluster" => vec![
            "vl3-core",
            "vl3-proto",
            "vl3-lab",
            "vl3-net",
            "vl3-identity",
            "vl3-runtime",
        ],
        // Benchmarks stand in namespaces; everything of ours that they measure is a process.
        "xtask" => vec!["vl3-lab", "vl3-net"],
        _ => return None,
    })
}

pub(super) fn faults(graph: &Graph) -> Vec<String> {
    let mut faults = Vec::new();
    for package in graph.members() {
        directions(graph, package, &mut faults);
    }
    for (name, way) in graph.tree("vl3-core") {
        if !CORE_TREE.contains(&name.as_str()) {
            faults.push(format!("vl3-core must not be built from {name}: {way}"));
        }
    }
    for (name, banned) in NEVER_BELOW {
        let tree = graph.tree(name);
        for banned in *banned {
            if let Some(way) = tree.get(*banned) {
                faults.push(format!("{name} must not be built from {banned}: {way}"));
            }
        }
    }
    faults
}

fn directions(graph: &Graph, package: &Package, faults: &mut Vec<String>) {
    let Some(allowed) = allowed(&package.name) else {
        faults.push(format!(
            "{}: new crate; say in xtask/src/tidy/crates.rs what it may depend on",
            package.manifest.display()
        ));
        return;
    };
    let named = |ids: &std::collections::BTreeSet<String>| -> Vec<Package> {
        ids.iter()
            .filter_map(|id| graph.packages.get(id))
            .cloned()
            .collect()
    };
    for needed in named(&package.needs) {
        if needed.member && !allowed.contains(&needed.name.as_str()) {
            faults.push(format!(
                "{} must not depend on {}",
                package.name, needed.name
            ));
        }
        if let Some((_, users)) = ONLY_USERS.iter().find(|(name, _)| *name == needed.name)
            && package.member
            && !users.contains(&package.name.as_str())
        {
            faults.push(format!(
                "{} must not use {}: only {} does",
                package.name,
                needed.name,
                users.join(", ")
            ));
        }
    }
    for needed in named(&package.test_needs) {
        let role = ROLES.contains(&needed.name.as_str()) || needed.name == "vl3";
        if needed.member && role && package.name != needed.name {
            faults.push(format!(
                "tests of {} must not depend on the role {}",
                package.name, needed.name
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_is_built_from_its_allowed_tree_only() {
        let graph = Graph::load().unwrap();
        let tree = graph.tree("vl3-core");
        assert!(tree.contains_key("ipnet"), "the tree is read at all");
        let strangers: Vec<_> = tree
            .iter()
            .filter(|(name, _)| !CORE_TREE.contains(&name.as_str()))
            .collect();
        assert!(strangers.is_empty(), "{strangers:?}");
    }

    #[test]
    fn no_role_is_allowed_another_role() {
        for role in ROLES {
            let allowed = allowed(role).unwrap();
            assert!(ROLES.iter().all(|other| !allowed.contains(other)), "{role}");
        }
        assert!(allowed("vl3-unheard-of").is_none());
    }
}
