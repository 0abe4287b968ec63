//! Structured logs on standard error.

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::{Log, LogFormat};

/// boringtun reports every expired peer as an error; the data plane reports its own events.
const ALWAYS: &str = "boringtun=off";

/// Whether a level or filter is well formed. A bare word must be a level: `EnvFilter` takes any
/// other word for a target, and would then let nothing else through.
pub fn is_filter(level: &str) -> bool {
    let is_directive = |part: &str| {
        let part = part.trim();
        // An empty text is a level, too, by `LevelFilter`.
        !part.is_empty() && (part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok())
    };
    level.split(',').all(is_directive) && filter(level).is_some()
}

/// Starts logging. A second call (tests, several roles in one process) changes nothing.
pub fn start(log: &Log) {
    let filter = filter(&log.level).unwrap_or_else(|| EnvFilter::new("info"));
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

fn filter(level: &str) -> Option<EnvFilter> {
    EnvFilter::try_new(format!("{level},{ALWAYS}")).ok()
}

fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_no_filter() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,vl3_router=debug",
            "vl3_net=trace",
        ] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["loud", "", "info,loud", "vl3_router", "info,="] {
            assert!(!is_filter(bad), "{bad}");
        }
    }
}
