use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Lines on standard error that say what is going on; standard output is for the result.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    terminal: bool,
}

impl Progress {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Something is done.
    pub(super) fn step(&self, text: &str) {
        self.line("", text);
    }

    /// A check has its result.
    pub(super) fn check(&self, ok: bool, name: &str, detail: &str) {
        let mark = match (ok, self.terminal) {
            (true, true) => "\u{1b}[32mok\u{1b}[0m     ",
            (true, false) => "ok     ",
            (false, true) => "\u{1b}[1;31mFAILED\u{1b}[0m ",
            (false, false) => "FAILED ",
        };
        self.line(mark, &format!("{name}: {detail}"));
    }

    fn line(&self, mark: &str, text: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        // Nobody left to tell.
        let _closed = writeln!(std::io::stderr().lock(), "[{seconds:5.1}s] {mark}{text}");
    }
}
