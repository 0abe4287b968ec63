//! `cargo xtask crash`: the test that kills a registry under load, for long.

use anyhow::{Context, bail};

use crate::shell::{self, cargo};

const KILLS: &str = "500";

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let mut test = cargo();
    test.args(["test", "--quiet", "--package", "vl3", "--locked"]);
    test.args(["--test", "crash", "--", "--nocapture"]);
    test.env("VL3_CRASH_KILLS", KILLS);
    let mut arguments = arguments.iter();
    while let Some(flag) = arguments.next() {
        let variable = match flag.as_str() {
            "--kills" => "VL3_CRASH_KILLS",
            "--seed" => "VL3_CRASH_SEED",
            other => bail!("no flag {other:?}; --kills N and --seed S are"),
        };
        let value = arguments.next().context("a flag without its number")?;
        let number: u64 = value
            .parse()
            .with_context(|| format!("{flag} {value}: no number"))?;
        test.env(variable, number.to_string());
    }
    shell::run(&mut test).context("kill a registry under load")
}
