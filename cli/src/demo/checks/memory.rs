//! All processes together stay small.

use anyhow::bail;
use vl3_lab::tools;

use crate::demo::world::World;

const MIB_MAX: u64 = 400;

pub(in crate::demo) fn run(world: &World) -> anyhow::Result<String> {
    let total = tools::memory_kib_of_tree(std::process::id()) / 1024;
    let count = world
        .services()
        .filter(|service| service.id().is_some())
        .count();
    let largest = world.services().max_by_key(|service| service.memory_kib());
    let largest = largest
        .map(|service| {
            format!(
                "{} with {} MiB",
                service.label(),
                service.memory_kib() / 1024
            )
        })
        .unwrap_or_default();
    if total >= MIB_MAX {
        bail!(
            "{count} roles and the demo take {total} MiB, allowed are {MIB_MAX}; the largest is {largest}"
        );
    }
    Ok(format!(
        "{count} roles and the demo take {total} MiB (proportional set size); the largest is {largest}"
    ))
}
