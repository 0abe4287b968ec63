//! `cargo xtask bench NAME`: measures the release binary, writes `target/bench/NAME.json` and
//! prints the same as a table. A bench fails when a mark is missed.

mod attach;
mod dataplane;
mod dns;
mod registry;
pub(crate) mod report;
mod usage;

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::shell::{self, cargo};
use report::Report;

/// What a bench gets.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The release `vl3`.
    pub(crate) binary: PathBuf,
    /// Arguments after the bench's name.
    pub(crate) arguments: Vec<String>,
    /// A directory of its own, emptied before each run.
    pub(crate) scratch: PathBuf,
}

impl Bench {
    /// The parts of a bench that the arguments choose, in the bench's order: all without any.
    fn parts(&self, known: &[&'static str]) -> anyhow::Result<Vec<&'static str>> {
        let unknown = |argument: &&String| !known.contains(&argument.as_str());
        if let Some(unknown) = self.arguments.iter().find(unknown) {
            bail!(
                "no part {unknown:?} of this bench; known: {}",
                known.join(", ")
            );
        }
        let chosen =
            |part: &&str| self.arguments.is_empty() || self.arguments.iter().any(|a| a == part);
        Ok(known.iter().copied().filter(chosen).collect())
    }
}

type Run = fn(&Bench, &mut Report) -> anyhow::Result<()>;

/// Each bench is one file beside this one.
const BENCHES: &[(&str, Run)] = &[
    ("attach", attach::run),
    ("dataplane", dataplane::run),
    ("dns", dns::run),
    ("registry", registry::run),
];

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let names: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
    let Some((name, rest)) = arguments.split_first() else {
        bail!("bench needs a name: {}", names.join(", "));
    };
    let Some((name, bench)) = BENCHES.iter().find(|(known, _)| known == name) else {
        bail!("no bench {name:?}; known: {}", names.join(", "));
    };
    shell::run(cargo().args(["build", "--release", "--package", "vl3", "--locked"]))
        .context("build vl3")?;
    let scratch = shell::target_dir()
        .join("bench")
        .join(format!("{name}.run"));
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch)
            .with_context(|| format!("empty {}", scratch.display()))?;
    }
    std::fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
    let context = Bench {
        binary: shell::target_dir().join("release/vl3"),
        arguments: rest.to_vec(),
        scratch,
    };
    let mut report = Report::new(name);
    bench(&context, &mut report)?;
    report.finish(
        &shell::target_dir()
            .join("bench")
            .join(format!("{name}.json")),
    )
}
