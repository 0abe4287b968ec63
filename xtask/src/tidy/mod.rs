//! `cargo xtask tidy`: rules of the tree that no compiler checks.

mod crates;
mod documents;
mod files;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::metadata::Graph;
use crate::shell::say;

/// One text file of the tree.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) path: PathBuf,
    pub(crate) content: String,
}

/// Runs all rules and reports every fault at once.
pub(crate) fn run() -> anyhow::Result<()> {
    let texts = texts(Path::new("."))?;
    let graph = Graph::load()?;
    let mut faults = crates::faults(&graph);
    for text in &texts {
        faults.extend(files::faults(text));
    }
    faults.extend(documents::faults(&texts));
    if !faults.is_empty() {
        bail!("{} faults:\n  {}", faults.len(), faults.join("\n  "));
    }
    say(&format!("{} files tidy", texts.len()));
    Ok(())
}

/// Every text file that belongs to the project, sorted by path.
fn texts(root: &Path) -> anyhow::Result<Vec<Text>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(directory) = open.pop() {
        let entries = std::fs::read_dir(&directory)
            .with_context(|| format!("read {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("read {}", directory.display()))?;
            let path = entry.path();
            let name = entry.file_name();
            let kind = entry
                .file_type()
                .with_context(|| format!("look at {}", path.display()))?;
            if kind.is_dir() {
                if name != "target" && name != ".git" && name != "node_modules" {
                    open.push(path);
                }
            } else if kind.is_file()
                && let Ok(content) = std::fs::read_to_string(&path)
            {
                let path = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
                found.push(Text { path, content });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}
