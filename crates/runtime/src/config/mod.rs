//! Typed configuration: a TOML file, the environment and flags become one role's `Config`;
//! every mistake is reported at once as key, value and what is allowed.
//!
//! A role reads all of its fields into locals first and only then builds itself with `?`, so
//! that one missing field does not hide the others:
//!
//! ```
//! use vl3_runtime::{Configure, Section};
//!
//! struct Config { domain: String, workers: usize }
//!
//! impl Configure for Config {
//!     const ROLE: &'static str = "example";
//!
//!     fn read(section: &mut Section<'_>) -> Option<Self> {
//!         let domain = section.required("domain");
//!         let workers = section.or("workers", 1);
//!         Some(Self { domain: domain?, workers })
//!     }
//! }
//! ```

mod base;
mod load;
mod section;
mod value;

pub use base::{Common, IdentitySource, Log, LogFormat};
pub use load::{Flags, Invalid, Loaded, check, load, load_from, load_plain};
pub use section::{Problem, Section};
pub use value::Value;

/// A role's configuration. Keys of [`Common`] are read before it and are not its business.
pub trait Configure: Sized {
    /// Also the default of `name`, `run_dir` and `state_dir`.
    const ROLE: &'static str;

    /// NSM's environment names and the (dotted) key that each one sets. Lists are separated by
    /// commas. Every key has also the name `VL3_<KEY>` with dots written as two underscores.
    const ENVIRONMENT: &'static [(&'static str, &'static str)] = &[];

    /// Whether the role proves to others who it is. Asked before anything is read.
    fn needs_identity(_section: &Section<'_>) -> bool {
        true
    }

    /// Reads and checks every field. `None` only after a problem was recorded.
    fn read(section: &mut Section<'_>) -> Option<Self>;
}
