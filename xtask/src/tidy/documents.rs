//! Documents say what is so: invariants name tests that exist, links and commands lead somewhere.

use std::collections::BTreeSet;
use std::path::Path;

use super::Text;

const INVARIANTS: usize = 12;
const TASKS: &[&str] = &[
    "test",
    "ci",
    "tidy",
    "licences",
    "sim",
    "plants",
    "multicluster",
    "bench",
    "interop",
];
const REQUIRED: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "docs/ARCHITECTURE.md",
    ".ci/run",
];

pub(super) fn faults(texts: &[Text]) -> Vec<String> {
    let mut faults = Vec::new();
    for path in REQUIRED {
        if !texts.iter().any(|text| text.path == Path::new(path)) {
            faults.push(format!("{path} is missing"));
        }
    }
    let functions = test_functions(texts);
    for text in texts {
        if text.path == Path::new("docs/ARCHITECTURE.md") {
            invariants(text, &functions, &mut faults);
        }
        if text
            .path
            .extension()
            .is_some_and(|extension| extension == "md")
        {
            links(text, &mut faults);
            commands(text, &mut faults);
        }
    }
    faults
}

/// Names of functions that follow a test attribute.
fn test_functions(texts: &[Text]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for text in texts
        .iter()
        .filter(|text| text.path.extension().is_some_and(|e| e == "rs"))
    {
        let mut armed = false;
        for line in text.content.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                armed = true;
            } else if armed && let Some((_, after)) = line.split_once("fn ") {
                names.extend(after.split('(').next().map(str::to_owned));
                armed = false;
            } else if line.starts_with("fn ") {
                // Properties stand inside a macro, their attribute on the line above.
                armed = false;
            }
        }
    }
    names
}

/// `N. text ... Held by: \`test\`, \`test\`.` for every number.
fn invariants(text: &Text, functions: &BTreeSet<String>, faults: &mut Vec<String>) {
    let path = text.path.display();
    let section = text
        .content
        .split("## Invariants")
        .nth(1)
        .unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut numbers = Vec::new();
    let mut item = String::new();
    let mut items = Vec::new();
    for line in section.lines() {
        let number = line
            .split_once(". ")
            .and_then(|(number, _)| number.parse::<usize>().ok());
        if let Some(number) = number {
            if !item.is_empty() {
                items.push(std::mem::take(&mut item));
            }
            numbers.push(number);
        }
        if !numbers.is_empty() {
            item.push_str(line);
            item.push('\n');
        }
    }
    items.push(item);
    if numbers != (1..=INVARIANTS).collect::<Vec<_>>() {
        faults.push(format!(
            "{path}: invariants numbered {numbers:?}, expected 1 to {INVARIANTS}"
        ));
        return;
    }
    for (number, item) in numbers.iter().zip(&items) {
        let Some((_, held)) = item.split_once("Held by:") else {
            faults.push(format!(
                "{path}: invariant {number} names no test (`Held by:`)"
            ));
            continue;
        };
        let tests: Vec<&str> = held.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            faults.push(format!("{path}: invariant {number} names no test"));
        }
        for test in tests {
            let name = test.rsplit("::").next().unwrap_or(test);
            if !functions.contains(name) {
                faults.push(format!(
                    "{path}: invariant {number} names {test:?}, which is no test"
                ));
            }
        }
    }
}

fn links(text: &Text, faults: &mut Vec<String>) {
    let directory = text.path.parent().unwrap_or(Path::new(""));
    for (at, _) in text.content.match_indices("](") {
        let rest = &text.content[at + 2..];
        let Some(target) = rest.split(')').next() else {
            continue;
        };
        let target = target.split('#').next().unwrap_or_default();
        if target.is_empty() || target.contains("://") || target.contains(char::is_whitespace) {
            continue;
        }
        if !directory.join(target).exists() {
            faults.push(format!(
                "{}: link to {target:?}, which does not exist",
                text.path.display()
            ));
        }
    }
}

fn commands(text: &Text, faults: &mut Vec<String>) {
    for (at, command) in text.content.match_indices("cargo xtask ") {
        let rest = &text.content[at + command.len()..];
        let task = rest
            .split(|c: char| !c.is_ascii_lowercase())
            .next()
            .unwrap_or_default();
        if !task.is_empty() && !TASKS.contains(&task) {
            faults.push(format!(
                "{}: `cargo xtask {task}` is no task",
                text.path.display()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, content: &str) -> Text {
        Text {
            path: path.into(),
            content: content.to_owned(),
        }
    }

    #[test]
    fn an_invariant_must_name_a_test_that_exists() {
        let code = text("a.rs", "#[test]\nfn it_holds() {\n}\n");
        let functions = test_functions(&[code]);
        let mut page = "## Invariants\n".to_owned();
        for number in 1..=12 {
            page.push_str(&format!("{number}. Something.\n   Held by: `it_holds`.\n"));
        }
        let mut faults = Vec::new();
        invariants(
            &text("docs/ARCHITECTURE.md", &page),
            &functions,
            &mut faults,
        );
        assert_eq!(faults, Vec::<String>::new());
        let page = page.replacen("`it_holds`", "`it_does_not`", 1);
        invariants(
            &text("docs/ARCHITECTURE.md", &page),
            &functions,
            &mut faults,
        );
        assert!(faults[0].contains("it_does_not"), "{faults:?}");
    }

    #[test]
    fn commands_in_documents_must_exist() {
        let mut faults = Vec::new();
        commands(
            &text("a.md", "`cargo xtask test` `cargo xtask fly`"),
            &mut faults,
        );
        assert_eq!(faults.len(), 1);
    }
}
