//! `cargo xtask sim`: builds the simulation and hands the arguments on.

use std::process::Command;

use anyhow::Context;

use crate::shell::{self, cargo};

const DEFAULT_SEEDS: &str = "2000";

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    shell::run(cargo().args(["build", "--quiet", "--package", "vl3-sim", "--locked"]))
        .context("build the simulation")?;
    let mut command = Command::new(shell::target_dir().join("debug/vl3-sim"));
    if arguments.is_empty() {
        command.args(["--seeds", DEFAULT_SEEDS]);
    }
    shell::run(command.args(arguments))
}
