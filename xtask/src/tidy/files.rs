//! Rules for one file: its name, its length, what must not be written in it.

use std::path::Path;

use super::Text;

const LINES_MAX: usize = 600;

const BAD_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc"];

/// Left-overs, and places that exist on one machine only. Put together here so that this file
/// does not contain them.
const BANNED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("HA", "CK"),
    concat!("/wo", "rk/"),
    concat!("/home", "/"),
    concat!("target", "-h"),
    concat!("dbg", "!("),
];

pub(super) fn faults(text: &Text) -> Vec<String> {
    let mut faults = Vec::new();
    let path = text.path.display();
    for word in BANNED {
        for (number, _) in lines_with(&text.content, word) {
            faults.push(format!("{path}:{number}: {word:?}"));
        }
    }
    if text
        .path
        .extension()
        .is_some_and(|extension| extension == "rs")
    {
        rust(text, &mut faults);
    }
    if !text.content.is_empty() && !text.content.ends_with('\n') {
        faults.push(format!("{path}: no newline at the end"));
    }
    faults
}

fn rust(text: &Text, faults: &mut Vec<String>) {
    let path = text.path.display();
    let stem = text.path.file_stem().unwrap_or_default().to_string_lossy();
    let in_bad_directory = text.path.parent().is_some_and(|parent| {
        parent
            .components()
            .any(|part| bad_name(&part.as_os_str().to_string_lossy()))
    });
    if bad_name(&stem) || in_bad_directory {
        faults.push(format!("{path}: a name that says nothing"));
    }
    let lines = text.content.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{path}: {lines} lines, at most {LINES_MAX}"));
    }
    for attribute in [concat!("#[al", "low("), concat!("#![al", "low(")] {
        for (number, _) in lines_with(&text.content, attribute) {
            faults.push(format!(
                "{path}:{number}: bare allow; write expect with a reason"
            ));
        }
    }
    for (at, _) in text.content.match_indices("[expect(") {
        let rest = &text.content[at..];
        let end = rest.find(")]").unwrap_or(rest.len());
        if rest.starts_with("[expect(")
            && !rest[..end].contains("reason")
            && starts_attribute(&text.content, at)
        {
            faults.push(format!(
                "{path}:{}: expect without a reason",
                line_of(&text.content, at)
            ));
        }
    }
    for (number, _) in lines_with(&text.content, concat!("#[ig", "nore")) {
        faults.push(format!("{path}:{number}: an ignored test"));
    }
    if text.content.contains("expect(unsafe_code") && !may_be_unsafe(&text.path) {
        faults.push(format!(
            "{path}: unsafe code belongs into crates/net and crates/dataplane"
        ));
    }
    sleeps(text, faults);
}

fn may_be_unsafe(path: &Path) -> bool {
    ["crates/net/", "crates/dataplane/", "xtask/"]
        .iter()
        .any(|allowed| path.starts_with(allowed))
}

fn bad_name(name: &str) -> bool {
    BAD_NAMES.contains(&name)
}

fn starts_attribute(content: &str, at: usize) -> bool {
    content[..at].ends_with('#') || content[..at].ends_with("#!")
}

/// Tests wait for levels; only the body of such a wait may sleep between two looks.
fn sleeps(text: &Text, faults: &mut Vec<String>) {
    let whole = text.path.starts_with("tests/multicluster")
        || text
            .path
            .components()
            .any(|part| part.as_os_str() == "tests")
            && !text.path.starts_with("tests/sim");
    let mut in_tests = whole;
    let mut function = String::new();
    for (index, line) in text.content.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("#[cfg(test)]") {
            in_tests = true;
        }
        if let Some((_, after)) = line.split_once("fn ") {
            function = after
                .split(['(', '<'])
                .next()
                .unwrap_or_default()
                .to_owned();
        }
        let sleeping = ["thread::sleep(", "time::sleep(", " sleep(", "=sleep("]
            .iter()
            .any(|call| format!(" {line}").contains(call))
            && !line.starts_with("//");
        if in_tests && sleeping && !function.starts_with("eventually") {
            faults.push(format!(
                "{}:{}: a sleep in a test; wait for a level with a function `eventually...`",
                text.path.display(),
                index + 1
            ));
        }
    }
}

fn lines_with<'a>(content: &'a str, word: &str) -> Vec<(usize, &'a str)> {
    content
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(word))
        .map(|(index, line)| (index + 1, line))
        .collect()
}

fn line_of(content: &str, at: usize) -> usize {
    content[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, content: &str) -> String {
        faults(&Text {
            path: path.into(),
            content: content.to_owned(),
        })
        .join("\n")
    }

    #[test]
    fn faults_are_named_with_their_line() {
        assert!(found("a/utils.rs", "").contains("says nothing"));
        assert!(found("a/b.rs", &"x\n".repeat(601)).contains("601 lines"));
        assert!(found("a/b.rs", concat!("x\n#[al", "low(dead_code)]\n")).contains("b.rs:2: bare"));
        assert!(
            found("a/b.rs", concat!("#[exp", "ect(dead_code)]\n")).contains("without a reason")
        );
        assert_eq!(
            found(
                "a/b.rs",
                "#[expect(dead_code, reason = \"x\")]\nlet a = b.expect(\"c\");\n"
            ),
            ""
        );
        assert!(found("README.md", concat!("see /wo", "rk/x\n")).contains("README.md:1"));
    }

    #[test]
    fn only_a_wait_for_a_level_may_sleep_in_tests() {
        let nap = concat!("std::thread::sl", "eep(x);");
        let body = format!("fn eventually_up() {{\n {nap}\n}}\n");
        let bare = format!("fn goes() {{\n {nap}\n}}\n");
        assert_eq!(found("a/tests/b.rs", &body), "");
        assert!(found("a/tests/b.rs", &bare).contains("b.rs:2"));
        assert_eq!(found("a/src/b.rs", &bare), "");
    }
}
