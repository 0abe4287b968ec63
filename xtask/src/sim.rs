//! `cargo xtask sim`: builds the simulation and hands the arguments on.
//!
//! A long run of the federation profile keeps its progress in the target directory; with
//! `--resume` the same run goes on.

use std::process::Command;

use anyhow::Context;

use crate::shell::{self, cargo};

const DEFAULT_SEEDS: &str = "2000";
/// From here on a run takes longer than an optimised build.
const LONG_SEEDS: u64 = 5_000;

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let seeds = value(arguments, "--seeds").and_then(|seeds| seeds.parse::<u64>().ok());
    let is_long = value(arguments, "--profile") == Some("scale")
        || seeds.is_some_and(|seeds| seeds >= LONG_SEEDS);
    let (profile, directory) = if is_long {
        ("sim", "sim")
    } else {
        ("dev", "debug")
    };
    shell::run(
        cargo()
            .args(["build", "--quiet", "--package", "vl3-sim", "--locked"])
            .args(["--profile", profile]),
    )
    .context("build the simulation")?;
    let mut command = Command::new(shell::target_dir().join(directory).join("vl3-sim"));
    if value(arguments, "--profile") == Some("federation")
        && value(arguments, "--seed").is_none()
        && value(arguments, "--state").is_none()
    {
        let first = value(arguments, "--first").unwrap_or("0");
        let seeds = value(arguments, "--seeds").unwrap_or(DEFAULT_SEEDS);
        let state = format!("sim/federation-{first}-{seeds}.state");
        command.arg("--state").arg(shell::target_dir().join(state));
    }
    if arguments.is_empty() {
        command.args(["--seeds", DEFAULT_SEEDS]);
    }
    shell::run(command.args(arguments))
}

fn value<'a>(arguments: &'a [String], flag: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| argument == flag)?;
    arguments.get(at + 1).map(String::as_str)
}
