//! Structured logs on standard error.

use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::{Log, LogFormat};

/// boringtun reports every expired peer as an error; the data plane reports its own events.
const ALWAYS: &str = "boringtun=off";

/// Whether a level or filter is well formed.
pub fn check_filter(level: &str) -> Result<(), ParseError> {
    filter(level).map(drop)
}

/// Starts logging. A second call (tests, several roles in one process) changes nothing.
pub fn start(log: &Log) {
    let Ok(filter) = filter(&log.level) else {
        return;
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = match log.format {
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(is_terminal()),
            )
            .try_init(),
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was already started");
    }
}

fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("{level},{ALWAYS}"))
}

fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}
