//! From file, environment and flags to a checked configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::base;
use super::section::{Override, Problem, Section, Shared};
use super::{Common, Configure};

/// What the command line gave.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    /// Dotted key, value, and the flag as typed (for messages).
    pub set: Vec<(String, String, String)>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Loaded<C> {
    pub common: Common,
    pub config: C,
}

/// All mistakes of one configuration. Exit code 2.
#[derive(Debug)]
pub struct Invalid {
    /// The file, when one was read.
    pub file: Option<PathBuf>,
    pub problems: Vec<Problem>,
}

impl std::error::Error for Invalid {}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(
            f,
            "{count} mistake{} in the configuration",
            if count == 1 { "" } else { "s" }
        )?;
        if let Some(file) = &self.file {
            write!(f, " {}", file.display())?;
        }
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

/// Which of the files that a configuration names are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    None,
    /// Those that must be there at a start.
    AtStart,
    All,
}

/// Loads from the process environment, for a start.
pub fn load<C: Configure>(flags: &Flags) -> Result<Loaded<C>, Invalid> {
    load_role(flags, std::env::vars(), Files::AtStart)
}

/// As [`load`], for somebody who asks whether all is well: what a start would wait for is a
/// mistake, too.
pub fn check<C: Configure>(flags: &Flags) -> Result<Loaded<C>, Invalid> {
    load_role(flags, std::env::vars(), Files::All)
}

/// Loads a configuration without the keys of [`Common`]: for tools that need neither identity
/// nor run directory.
pub fn load_plain<C: Configure>(flags: &Flags) -> Result<C, Invalid> {
    let environment = std::env::vars().collect();
    load_with(flags, C::ENVIRONMENT, &environment, Files::AtStart, C::read)
}

/// Loads from a given environment, without a look at the files that are named.
pub fn load_from<C: Configure>(
    flags: &Flags,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded<C>, Invalid> {
    load_role(flags, environment, Files::None)
}

fn load_role<C: Configure>(
    flags: &Flags,
    environment: impl IntoIterator<Item = (String, String)>,
    files: Files,
) -> Result<Loaded<C>, Invalid> {
    let names: Vec<_> = base::ENVIRONMENT
        .iter()
        .chain(C::ENVIRONMENT)
        .copied()
        .collect();
    let environment = environment.into_iter().collect();
    load_with(flags, &names, &environment, files, |section| {
        let needs_identity = C::needs_identity(section);
        let common = Common::read(C::ROLE, section, needs_identity);
        let config = C::read(section);
        Some(Loaded {
            common: common?,
            config: config?,
        })
    })
}

fn load_with<T>(
    flags: &Flags,
    names: &[(&str, &str)],
    environment: &BTreeMap<String, String>,
    files: Files,
    read: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Result<T, Invalid> {
    let mut shared = Shared::default();
    let table = match flags.config.as_deref().map(read_file) {
        None => toml::Table::new(),
        Some(Ok(table)) => table,
        Some(Err(problem)) => {
            return Err(Invalid {
                file: flags.config.clone(),
                problems: vec![problem],
            });
        }
    };
    shared.overrides = overrides(flags, names, environment);

    let mut section = Section::root(&shared, table);
    let value = read(&mut section);
    section.finish();

    for (key, given) in &shared.overrides {
        let used = shared.used_overrides.borrow().contains(key);
        // The environment is shared by whole pods and sessions: what this role has no use for
        // is no mistake. A flag was meant for it.
        if !used && given.origin.starts_with("flag ") {
            shared.problems.borrow_mut().push(Problem {
                key: key.clone(),
                value: Some(given.text.clone()),
                allowed: "a known key".to_owned(),
                origin: Some(given.origin.clone()),
            });
        }
    }
    let mut problems = shared.problems.into_inner();
    for look in shared.looks.into_inner() {
        let due = match files {
            Files::None => false,
            Files::AtStart => !look.when_asked_only,
            Files::All => true,
        };
        if due && let Err(allowed) = (look.look)() {
            problems.push(Problem {
                allowed,
                ..look.problem
            });
        }
    }
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(Invalid {
            file: flags.config.clone(),
            problems,
        }),
    }
}

fn read_file(path: &Path) -> Result<toml::Table, Problem> {
    let bad = |allowed: String| Problem {
        key: "file".to_owned(),
        value: Some(path.display().to_string()),
        allowed,
        origin: Some("flag --config".to_owned()),
    };
    let text =
        std::fs::read_to_string(path).map_err(|error| bad(format!("a readable file: {error}")))?;
    text.parse::<toml::Table>().map_err(|error| {
        bad(format!(
            "TOML: {}",
            error.to_string().trim_end().replace('\n', "\n    ")
        ))
    })
}

/// Environment first, flags over it. An empty variable counts as unset.
fn overrides(
    flags: &Flags,
    names: &[(&str, &str)],
    environment: &BTreeMap<String, String>,
) -> BTreeMap<String, Override> {
    let mut overrides = BTreeMap::new();
    for (name, key) in names {
        if let Some(text) = environment.get(*name).filter(|text| !text.is_empty()) {
            let given = Override {
                text: text.clone(),
                origin: format!("environment {name}"),
            };
            overrides.insert((*key).to_owned(), given);
        }
    }
    for (name, text) in environment {
        if let Some(key) = name.strip_prefix("VL3_").filter(|_| !text.is_empty()) {
            let key = key.to_ascii_lowercase().replace("__", ".");
            let given = Override {
                text: text.clone(),
                origin: format!("environment {name}"),
            };
            overrides.insert(key, given);
        }
    }
    for (key, text, flag) in &flags.set {
        let given = Override {
            text: text.clone(),
            origin: format!("flag {flag}"),
        };
        overrides.insert(key.clone(), given);
    }
    overrides
}
