//! Which of root's capabilities a process keeps (capabilities(7)).

use nix::sys::prctl;

use crate::error::Error;
use crate::sys;

/// What a role may need for longer than its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Files and sockets of other users.
    DacOverride = 1,
    /// Ports below 1024.
    NetBindService = 10,
    /// Interfaces, addresses, routes, rules.
    NetAdmin = 12,
    NetRaw = 13,
    /// Network namespaces.
    SysAdmin = 21,
}

/// Gives up every capability but `keep`, for ever: for the calling thread, for the threads and
/// programs that it starts, set-user-ID programs too. Threads that run already keep theirs, so
/// it is called before the first one starts. Who has less than `keep` gets no more.
pub fn keep_only(keep: &[Capability]) -> Result<(), Error> {
    let bits = keep
        .iter()
        .fold(0_u64, |bits, capability| bits | 1 << (*capability as u8));
    sys::limit_capabilities(bits)
        .map_err(|source| Error::kernel("give up capabilities", source))?;
    prctl::set_no_new_privs()
        .map_err(|errno| Error::errno_of("give up privileges of other programs", errno))
}
