//! The `vl3` under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// `VL3_BIN`, else the `vl3` that cargo built beside this test.
pub(crate) fn path() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("VL3_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().context("where this test is")?;
    let beside = test
        .ancestors()
        .nth(2)
        .map(|directory| directory.join("vl3"));
    match beside.filter(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("there is no vl3 to test: cargo build --workspace --bins (or set VL3_BIN)"),
    }
}

/// One verb that ends by itself; its standard output.
pub fn verb(directory: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let done = Command::new(path()?)
        .args(arguments)
        .current_dir(directory)
        .output()
        .with_context(|| format!("run vl3 {}", arguments.join(" ")))?;
    if !done.status.success() {
        bail!(
            "vl3 {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
