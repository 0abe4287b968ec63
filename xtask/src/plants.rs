//! The proof that a quiet simulation means something: each planted bug must be found, by the
//! invariant that it breaks.

use std::path::Path;
use std::process::Command;

use anyhow::bail;

use crate::shell::{self, cargo, say};

/// Seeds within which a planted bug must be found, and how they are played: most are found in
/// the first few.
const SLICES: [(u32, u32); 3] = [(0, 20), (20, 80), (100, 400)];

/// The plant of `vl3-core`, the invariants (design numbers) of which one must break, and the
/// profile that finds it.
const PLANTS: &[(&str, &[u8], &str)] = &[
    ("allocator", &[1], "mixed"),
    ("dial-preference", &[5, 6, 7], "mixed"),
    ("packet-order", &[3], "mixed"),
    ("replay", &[2], "mixed"),
    ("merge", &[8], "mixed"),
    ("snapshot", &[7], "federation"),
];

/// One build holds all of them; without `--plant` it plays as any other.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", "vl3-sim", "--locked"]);
    build.args(["--features", "plants"]);
    shell::run(&mut build)?;
    let program = shell::target_dir().join("debug/vl3-sim");
    let mut faults = Vec::new();
    for (plant, invariants, profile) in PLANTS {
        if let Err(fault) = find(&program, plant, invariants, profile) {
            faults.push(format!("{plant}: {fault:#}"));
        }
    }
    if !faults.is_empty() {
        bail!("planted bugs:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

fn find(program: &Path, plant: &str, invariants: &[u8], profile: &str) -> anyhow::Result<()> {
    for (first, seeds) in SLICES {
        let mut command = Command::new(program);
        command.args(["--plant", plant, "--profile", profile]);
        command.args(["--first", &first.to_string(), "--seeds", &seeds.to_string()]);
        let (clean, text, _) = shell::output(&mut command)?;
        match text.lines().find_map(broken_invariant) {
            Some((invariant, seed)) if invariants.contains(&invariant) => {
                say(&format!(
                    "{plant}: found by invariant {invariant}, seed {seed}"
                ));
                return Ok(());
            }
            Some((invariant, seed)) => {
                bail!("broke invariant {invariant} at seed {seed}, expected one of {invariants:?}")
            }
            None if clean => {}
            None => bail!("the simulation failed without naming an invariant: {text}"),
        }
    }
    let [.., (first, seeds)] = SLICES;
    bail!("not found within {} seeds", first + seeds)
}

/// From the line `seed 17 breaks invariant 3: ...`, which the simulation prints first.
fn broken_invariant(line: &str) -> Option<(u8, u64)> {
    let rest = line.strip_prefix("seed ")?;
    let (seed, rest) = rest.split_once(" breaks invariant ")?;
    let (invariant, _) = rest.split_once(':')?;
    Some((invariant.parse().ok()?, seed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failure_line_names_seed_and_invariant() {
        assert_eq!(
            broken_invariant("seed 17 breaks invariant 3: looped"),
            Some((3, 17))
        );
        assert_eq!(broken_invariant("2000 seeds clean"), None);
    }
}
