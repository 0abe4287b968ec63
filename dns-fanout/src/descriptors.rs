//! Room for sockets: each server that is asked takes several, each client's connection one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// 1,000 connections, and 16 sockets for each of 1,024 servers, several times over.
const DESCRIPTORS_MAX: u64 = 65_536;

/// Raises the soft limit, which is often 1,024, as far as the hard one allows. Returns how many
/// this process may open; connections that find no room are counted (`accept`).
pub(crate) fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = DESCRIPTORS_MAX.min(hard);
    if soft >= wanted {
        return Ok(soft);
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    Ok(wanted)
}
