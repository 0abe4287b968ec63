//! The proof that a quiet simulation means something: each planted bug must be found, by the
//! invariant that it breaks.

use std::process::Command;

use anyhow::bail;

use crate::shell::{self, cargo, say};

/// Seeds within which a planted bug must be found.
const SEEDS: u32 = 500;

/// The feature of `vl3-core`, the invariants (design numbers) of which one must break, and the
/// profile that finds it.
const PLANTS: &[(&str, &[u8], &str)] = &[
    ("plant-allocator", &[1], "mixed"),
    ("plant-dial-preference", &[5, 6, 7], "mixed"),
    ("plant-packet-order", &[3], "mixed"),
    ("plant-replay", &[2], "mixed"),
    ("plant-merge", &[8], "mixed"),
    ("plant-snapshot", &[7, 12], "federation"),
];

pub(crate) fn run() -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for (plant, invariants, profile) in PLANTS {
        let target = shell::target_dir().join("plants");
        shell::run(
            cargo()
                .args([
                    "build",
                    "--quiet",
                    "--package",
                    "vl3-sim",
                    "--locked",
                    "--features",
                    plant,
                ])
                .env("CARGO_TARGET_DIR", &target),
        )?;
        let mut command = Command::new(target.join("debug/vl3-sim"));
        command.args(["--seeds", &SEEDS.to_string(), "--profile", profile]);
        let (clean, text, _) = shell::output(&mut command)?;
        let found = text.lines().find_map(broken_invariant);
        match found {
            Some((invariant, seed)) if !clean && invariants.contains(&invariant) => {
                say(&format!("{plant}: found by invariant {invariant}, seed {seed}"));
            }
            Some((invariant, seed)) => faults.push(format!(
                "{plant}: broke invariant {invariant} at seed {seed}, expected one of {invariants:?}"
            )),
            None if clean => faults.push(format!("{plant}: not found within {SEEDS} seeds")),
            None => faults.push(format!("{plant}: the simulation failed without naming an invariant")),
        }
    }
    if !faults.is_empty() {
        bail!("planted bugs:\n  {}", faults.join("\n  "));
    }
    Ok(())
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
