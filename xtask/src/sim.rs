//! `cargo xtask sim`: builds the simulation and hands the arguments on.
//!
//! A long run of the federation profile keeps its progress in the target directory; with
//! `--resume` the same run goes on.

use std::process::Command;

use anyhow::Context;

use crate::shell::{self, cargo};

const DEFAULT_SEEDS: &str = "2000";

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    shell::run(cargo().args(["build", "--quiet", "--package", "vl3-sim", "--locked"]))
        .context("build the simulation")?;
    let mut command = Command::new(shell::target_dir().join("debug/vl3-sim"));
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
