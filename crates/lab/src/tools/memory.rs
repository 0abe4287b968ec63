use std::collections::BTreeMap;

use crate::process::memory_kib;

/// Proportional set size in KiB of a process and everything that it started.
pub fn memory_kib_of_tree(root: u32) -> u64 {
    tree_of(root).into_iter().filter_map(memory_kib).sum()
}

/// A process and everything that it started, itself first.
pub fn tree_of(root: u32) -> Vec<u32> {
    let parents = parents();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(
            parents
                .iter()
                .filter(|(_, of)| **of == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    tree
}

/// Parent of every process of the machine.
fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in brackets may hold anything; the fields go on after the last bracket.
            let parent = status
                .rsplit_once(')')?
                .1
                .split_whitespace()
                .nth(1)?
                .parse()
                .ok()?;
            Some((pid, parent))
        })
        .collect()
}
