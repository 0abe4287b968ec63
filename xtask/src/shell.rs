//! Starting programs and speaking to the person who waits.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// One line to standard output. A closed pipe is no reason to stop.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// One line to standard error.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Every task runs from the root of the workspace.
pub(crate) fn enter_workspace() -> anyhow::Result<()> {
    let root = workspace_root();
    std::env::set_current_dir(&root).with_context(|| format!("enter {}", root.display()))
}

pub(crate) fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The command as a person types it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!(
                "{}={:?}",
                key.to_string_lossy(),
                value.to_string_lossy()
            ));
        }
    }
    let program = Path::new(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy();
    words.push(if name == "cargo" {
        name.into_owned()
    } else {
        program.to_string_lossy().into_owned()
    });
    words.extend(command.get_args().map(|arg| {
        let arg = arg.to_string_lossy();
        if arg.contains(' ') {
            format!("'{arg}'")
        } else {
            arg.into_owned()
        }
    }));
    words.join(" ")
}

/// Runs to the end with our own input and outputs; an error names the command.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = shown(command);
    let status = command
        .status()
        .with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Runs to the end and returns its standard output, which is also shown line by line.
pub(crate) fn run_and_keep(command: &mut Command) -> anyhow::Result<(bool, String)> {
    let line = shown(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{line}`"))?;
    let stdout = child
        .stdout
        .take()
        .context("the child has a piped output")?;
    let mut kept = String::new();
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text.with_context(|| format!("read from `{line}`"))?;
        let text = String::from_utf8_lossy(&text);
        say(&text);
        kept.push_str(&text);
        kept.push('\n');
    }
    let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
    Ok((status.success(), kept))
}

/// Runs quietly; standard output and error come back as one text each.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<(bool, String, String)> {
    let line = shown(command);
    let done = command
        .output()
        .with_context(|| format!("start `{line}`"))?;
    Ok((
        done.status.success(),
        String::from_utf8_lossy(&done.stdout).into_owned(),
        String::from_utf8_lossy(&done.stderr).into_owned(),
    ))
}
