//! Standard output and error of the verbs that serve people; logs go another way.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};

/// What a verb prints to. A reader that went away ends the output silently.
#[derive(Debug)]
pub(crate) struct Output {
    terminal: bool,
}

impl Output {
    pub(crate) fn stdout() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
        }
    }

    pub(crate) fn text(&self, text: &str) {
        // A closed pipe (`vl3 status | head`) is the reader's wish.
        let _closed = io::stdout().lock().write_all(text.as_bytes());
    }

    pub(crate) fn line(&self, line: &str) {
        self.text(&format!("{line}\n"));
    }

    /// Bold on a terminal.
    pub(crate) fn heading(&self, text: &str) {
        if self.terminal {
            self.line(&format!("\u{1b}[1m{text}\u{1b}[0m"));
        } else {
            self.line(text);
        }
    }

    /// Moves to the top of an empty screen; an empty line where there is no screen.
    pub(crate) fn clear(&self) {
        self.text(if self.terminal {
            "\u{1b}[H\u{1b}[2J"
        } else {
            "\n"
        });
    }
}

/// A table without lines, as wide as it needs.
pub(crate) fn table(header: &[String]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    table
}

/// An error for people, with the next command to try.
pub(crate) fn report(error: &anyhow::Error, next: Option<&str>) {
    let mut stderr = io::stderr().lock();
    let word = if stderr.is_terminal() {
        "\u{1b}[1;31merror\u{1b}[0m"
    } else {
        "error"
    };
    // Nobody left to tell.
    let _closed = writeln!(stderr, "{word}: {error:#}");
    if let Some(next) = next {
        let _closed = writeln!(stderr, "try: {next}");
    }
}
