//! What happened, in order: hashed always, kept as text only when a person asks.

use core::fmt::{self, Write as _};

use vl3_core::Mono;

/// FNV-1a over every line. Equal traces have equal hashes; that is all it is for.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    line: String,
    kept: Option<Vec<String>>,
}

impl Trace {
    pub const fn new(keep: bool) -> Self {
        let kept = if keep { Some(Vec::new()) } else { None };
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            line: String::new(),
            kept,
        }
    }

    /// One event of `who`.
    pub fn note(&mut self, at: Mono, who: &dyn fmt::Display, what: fmt::Arguments<'_>) {
        self.line.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.line, "{at} {who}: {what}");
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.events += 1;
        if let Some(kept) = &mut self.kept {
            kept.push(self.line.clone());
        }
    }

    pub const fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    pub const fn hash(&self) -> u64 {
        self.hash
    }

    pub const fn events(&self) -> u64 {
        self.events
    }

    /// The lines, when they were kept.
    pub fn lines(&self) -> &[String] {
        self.kept.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_order_and_text() {
        let hash = |notes: &[&str]| {
            let mut trace = Trace::new(false);
            for note in notes {
                trace.note(Mono(1), &"a", format_args!("{note}"));
            }
            trace.hash()
        };
        assert_eq!(hash(&["x", "y"]), hash(&["x", "y"]));
        assert_ne!(hash(&["x", "y"]), hash(&["y", "x"]));
    }
}
