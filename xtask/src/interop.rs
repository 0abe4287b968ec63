//! `cargo xtask interop NAME`: our binary against stock components. Outside of CI, because it
//! needs Go and its modules.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::shell::{self, cargo};

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        bail!("interop needs a name: nsm, registry or dns");
    };
    let script = Path::new("tests/interop").join(name).join("run");
    if !script.is_file() {
        bail!(
            "no interoperability test {name:?}: {} does not exist",
            script.display()
        );
    }
    shell::run(cargo().args(["build", "--release", "--package", "vl3", "--locked"]))
        .context("build vl3")?;
    let binary = shell::target_dir().join("release/vl3");
    shell::run(Command::new(script).args(rest).env("VL3_BIN", binary))
}
