//! Standard output and error of the verbs that serve people; logs go another way.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{ContentArrangement, Table, presets};

/// What a verb prints to. A reader that went away ends the output silently.
#[derive(Debug)]
pub(crate) struct Output {
    terminal: bool,
    closed: AtomicBool,
}

impl Output {
    pub(crate) fn stdout() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn text(&self, text: &str) {
        // A closed pipe (`vl3 status | head`) is the reader's wish.
        if io::stdout().lock().write_all(text.as_bytes()).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the reader went away: who prints for ever ends.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
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

/// A time span as people say it, in its two largest units.
pub(crate) fn span(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3_600);
    let part = |whole: u64, unit: &str, rest: u64, smaller: &str| match rest {
        0 => format!("{whole} {unit}"),
        rest => format!("{whole} {unit} {rest} {smaller}"),
    };
    match seconds {
        172_800.. => part(days, "d", hours % 24, "h"),
        3_600.. => part(hours, "h", seconds / 60 % 60, "min"),
        60.. => part(seconds / 60, "min", seconds % 60, "s"),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn a_span_is_said_in_its_two_largest_units() {
        assert_eq!(span(86_378), "23 h 59 min");
        assert_eq!(span(86_400), "24 h");
        assert_eq!(span(90), "1 min 30 s");
        assert_eq!(span(3), "3 s");
        assert_eq!(span(864_000), "10 d");
    }
}
