//! One table of a configuration, read field by field into a list of problems.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use super::Value;

/// One mistake: where, what stands there, what may stand there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted, list positions in brackets: `attach[1].interface`.
    pub key: String,
    /// As written; unset when the key is missing.
    pub value: Option<String>,
    /// What is allowed.
    pub allowed: String,
    /// Where the value came from when not from the file: `environment NSM_NAME`, `flag --name`.
    pub origin: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        if let Some(origin) = &self.origin {
            write!(f, " ({origin})")?;
        }
        match &self.value {
            Some(value) => write!(f, " = {value}: must be {}", self.allowed),
            None => write!(f, " is missing: must be {}", self.allowed),
        }
    }
}

/// A value set by environment or flag: it goes before the file's.
#[derive(Clone, Debug)]
pub(super) struct Override {
    pub(super) text: String,
    pub(super) origin: String,
}

/// What all sections of one configuration share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) problems: RefCell<Vec<Problem>>,
    pub(super) overrides: BTreeMap<String, Override>,
    pub(super) used_overrides: RefCell<BTreeSet<String>>,
    pub(super) looks: RefCell<Vec<Look>>,
}

/// A look at the file system, after every field was read.
pub(super) struct Look {
    /// What is wrong when the look finds a mistake; what is allowed comes from the look.
    pub(super) problem: Problem,
    /// Not at a start: what is absent may still come.
    pub(super) when_asked_only: bool,
    pub(super) look: Box<dyn FnOnce() -> Result<(), String>>,
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Look({})", self.problem.key)
    }
}

/// One table. Keys that nobody asked for are problems when it is dropped by its reader.
#[derive(Debug)]
pub struct Section<'a> {
    shared: &'a Shared,
    path: String,
    table: toml::Table,
    known: BTreeSet<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn root(shared: &'a Shared, table: toml::Table) -> Self {
        Self {
            shared,
            path: String::new(),
            table,
            known: BTreeSet::new(),
        }
    }

    /// A value that must be there.
    pub fn required<T: Value>(&mut self, key: &'static str) -> Option<T> {
        match self.take(key) {
            None => {
                self.problem(key, None, T::ALLOWED);
                None
            }
            Some(raw) => self.convert(key, &raw),
        }
    }

    /// A value that may be absent.
    pub fn optional<T: Value>(&mut self, key: &'static str) -> Option<T> {
        let raw = self.take(key)?;
        self.convert(key, &raw)
    }

    /// A value with a default. (A bad value is a problem; the default stands in for it.)
    pub fn or<T: Value>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// A path with a default, where an empty text means none.
    pub fn or_empty(
        &mut self,
        key: &'static str,
        default: impl FnOnce() -> PathBuf,
    ) -> Option<PathBuf> {
        match self.take(key) {
            None => Some(default()),
            Some(Raw::Toml(toml::Value::String(text))) if text.is_empty() => None,
            Some(Raw::Text(given)) if given.text.is_empty() => None,
            Some(raw) => self.convert(key, &raw),
        }
    }

    /// A list, empty when absent. A single value counts as a list of one; in environment and
    /// flags elements are separated by commas.
    pub fn list<T: Value>(&mut self, key: &'static str) -> Vec<T> {
        match self.take(key) {
            None => Vec::new(),
            Some(Raw::Text(given)) => {
                let elements = given
                    .text
                    .split(',')
                    .map(str::trim)
                    .filter(|text| !text.is_empty());
                let mut list = Vec::new();
                for (at, text) in elements.enumerate() {
                    match T::from_text(text) {
                        Some(value) => list.push(value),
                        None => self.record(
                            &format!("{key}[{at}]"),
                            Some(text.to_owned()),
                            T::ALLOWED,
                            Some(given.origin.clone()),
                        ),
                    }
                }
                list
            }
            Some(Raw::Toml(toml::Value::Array(elements))) => {
                let mut list = Vec::new();
                for (at, element) in elements.iter().enumerate() {
                    match T::from_toml(element) {
                        Some(value) => list.push(value),
                        None => self.record(
                            &format!("{key}[{at}]"),
                            Some(element.to_string()),
                            T::ALLOWED,
                            None,
                        ),
                    }
                }
                list
            }
            Some(raw) => self.convert(key, &raw).into_iter().collect(),
        }
    }

    /// A list with a default that stands in when the key is absent.
    pub fn list_or<T: Value>(&mut self, key: &'static str, default: Vec<T>) -> Vec<T> {
        if self.has(key) {
            self.list(key)
        } else {
            self.known.insert(key);
            default
        }
    }

    /// A list that must have an element.
    pub fn list_required<T: Value>(&mut self, key: &'static str) -> Option<Vec<T>> {
        let given = self.has(key);
        let before = self.shared.problems.borrow().len();
        let list = self.list(key);
        if given && !list.is_empty() {
            return Some(list);
        }
        // What is wrong with its elements has been said.
        if self.shared.problems.borrow().len() == before {
            let value = given.then(|| "[]".to_owned());
            self.problem(key, value, &format!("a list of {}", T::ALLOWED));
        }
        None
    }

    /// One of a few words.
    pub fn choice<T: Clone>(&mut self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        let Some(text) = self.optional::<String>(key) else {
            return default;
        };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => value.clone(),
            None => {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                self.problem(key, Some(text), &format!("one of {}", words.join(", ")));
                default
            }
        }
    }

    /// A text map such as labels: `{ podName = "a" }`, in the environment `k:v,k:v`.
    pub fn map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        const ALLOWED: &str = "a table of texts";
        match self.take(key) {
            None => BTreeMap::new(),
            Some(Raw::Text(given)) => {
                let mut map = BTreeMap::new();
                for pair in given
                    .text
                    .split(',')
                    .map(str::trim)
                    .filter(|pair| !pair.is_empty())
                {
                    match pair.split_once(':') {
                        Some((name, value)) => drop(map.insert(name.to_owned(), value.to_owned())),
                        None => self.record(
                            key,
                            Some(pair.to_owned()),
                            "name:value pairs separated by commas",
                            Some(given.origin.clone()),
                        ),
                    }
                }
                map
            }
            Some(Raw::Toml(toml::Value::Table(table))) => {
                let mut map = BTreeMap::new();
                for (name, value) in table {
                    match value.as_str() {
                        Some(text) => drop(map.insert(name, text.to_owned())),
                        None => self.record(
                            &format!("{key}.{name}"),
                            Some(value.to_string()),
                            "a text",
                            None,
                        ),
                    }
                }
                map
            }
            Some(Raw::Toml(other)) => {
                self.record(key, Some(other.to_string()), ALLOWED, None);
                BTreeMap::new()
            }
        }
    }

    /// A sub-table; an absent one is read as empty, so that its required keys are reported and
    /// the environment can fill them.
    pub fn table<R>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'a>) -> R) -> R {
        self.known.insert(key);
        let table = match self.table.remove(key) {
            None => toml::Table::new(),
            Some(toml::Value::Table(table)) => table,
            Some(other) => {
                self.record(
                    key,
                    Some(other.to_string()),
                    &format!("a table: [{}]", self.full(key)),
                    None,
                );
                toml::Table::new()
            }
        };
        let mut section = Section {
            shared: self.shared,
            path: self.full(key),
            table,
            known: BTreeSet::new(),
        };
        let result = read(&mut section);
        section.finish();
        result
    }

    /// A list of tables `[[key]]`.
    pub fn tables<R>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'a>) -> R,
    ) -> Vec<R> {
        self.known.insert(key);
        let elements = match self.table.remove(key) {
            None => Vec::new(),
            Some(toml::Value::Array(elements)) => elements,
            Some(table @ toml::Value::Table(_)) => vec![table],
            Some(other) => {
                self.record(
                    key,
                    Some(other.to_string()),
                    &format!("tables: [[{}]]", self.full(key)),
                    None,
                );
                Vec::new()
            }
        };
        let mut results = Vec::new();
        for (at, element) in elements.into_iter().enumerate() {
            let path = format!("{}[{at}]", self.full(key));
            let toml::Value::Table(table) = element else {
                self.record(
                    &format!("{key}[{at}]"),
                    Some(element.to_string()),
                    "a table",
                    None,
                );
                continue;
            };
            let mut section = Section {
                shared: self.shared,
                path,
                table,
                known: BTreeSet::new(),
            };
            results.push(read(&mut section));
            section.finish();
        }
        results
    }

    /// Whether a key is set in any of the tables `[[list]]`.
    pub fn has_within(&self, list: &str, key: &str) -> bool {
        let tables = self.table.get(list).and_then(toml::Value::as_array);
        let mut tables = tables
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_table);
        tables.any(|table| table.contains_key(key))
    }

    /// Whether the key is set anywhere.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key) || self.shared.overrides.contains_key(&self.full(key))
    }

    /// Records a problem that the role found itself (a range, a relation between fields).
    pub fn problem(&mut self, key: &str, value: Option<String>, allowed: &str) {
        let origin = self
            .shared
            .overrides
            .get(&self.full(key))
            .map(|given| given.origin.clone());
        self.record(key, value, allowed, origin);
    }

    /// Records a look at what a value names, a file say, for `vl3_runtime::config::load` and
    /// `check`; the error says what is allowed.
    pub fn look(
        &mut self,
        key: &str,
        value: String,
        look: impl FnOnce() -> Result<(), String> + 'static,
    ) {
        self.add_look(key, value, false, Box::new(look));
    }

    /// As [`Section::look`], but not at a start: what is absent then may still come.
    pub fn look_when_asked(
        &mut self,
        key: &str,
        value: String,
        look: impl FnOnce() -> Result<(), String> + 'static,
    ) {
        self.add_look(key, value, true, Box::new(look));
    }

    fn add_look(
        &self,
        key: &str,
        value: String,
        when_asked_only: bool,
        look: Box<dyn FnOnce() -> Result<(), String>>,
    ) {
        let key = self.full(key);
        let given = self.shared.overrides.get(&key);
        let problem = Problem {
            origin: given.map(|given| given.origin.clone()),
            key,
            value: Some(value),
            allowed: String::new(),
        };
        self.shared.looks.borrow_mut().push(Look {
            problem,
            when_asked_only,
            look,
        });
    }

    /// Reports keys that nobody asked for; the known ones are listed once.
    pub(super) fn finish(self) {
        let mut listed = false;
        for (key, value) in &self.table {
            if self.known.contains(key.as_str()) {
                continue;
            }
            let nearest = self
                .known
                .iter()
                .map(|known| (distance(key, known), *known))
                .filter(|(distance, known)| {
                    *distance <= known.len().min(key.len()).div_ceil(3).min(3)
                })
                .min();
            let allowed = match nearest {
                Some((_, known)) => format!("a known key; did you mean {known}?"),
                None if listed => "a known key (listed above)".to_owned(),
                None => {
                    listed = true;
                    format!(
                        "a known key: {}",
                        self.known.iter().copied().collect::<Vec<_>>().join(", ")
                    )
                }
            };
            self.record(key, Some(short(value)), &allowed, None);
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Raw> {
        self.known.insert(key);
        let full = self.full(key);
        let from_file = self.table.remove(key);
        if let Some(given) = self.shared.overrides.get(&full) {
            self.shared.used_overrides.borrow_mut().insert(full);
            return Some(Raw::Text(given.clone()));
        }
        from_file.map(Raw::Toml)
    }

    fn convert<T: Value>(&mut self, key: &str, raw: &Raw) -> Option<T> {
        let (value, text, origin) = match raw {
            Raw::Toml(value) => (T::from_toml(value), value.to_string(), None),
            Raw::Text(given) => (
                T::from_text(&given.text),
                format!("{:?}", given.text),
                Some(given.origin.clone()),
            ),
        };
        if value.is_none() {
            self.record(key, Some(text), T::ALLOWED, origin);
        }
        value
    }

    fn record(&self, key: &str, value: Option<String>, allowed: &str, origin: Option<String>) {
        self.shared.problems.borrow_mut().push(Problem {
            key: self.full(key),
            value,
            allowed: allowed.to_owned(),
            origin,
        });
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

#[derive(Debug)]
enum Raw {
    Toml(toml::Value),
    Text(Override),
}

/// A value in at most 60 characters.
fn short(value: &toml::Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// Levenshtein distance, for the suggestion after a misspelt key.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
