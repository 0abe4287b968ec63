//! The system calls that have no safe wrapper: all unsafe code of this crate.
#![expect(
    unsafe_code,
    reason = "ioctl, pidfd, prctl and descriptors out of control messages have no safe wrapper"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;

use tokio::io::unix::AsyncFd;

const IFNAMSIZ: usize = libc::IFNAMSIZ;

/// An interface name as the kernel wants it: NUL-terminated, at most 15 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterfaceName(pub(crate) [u8; IFNAMSIZ]);

fn ifreq(name: InterfaceName) -> libc::ifreq {
    // SAFETY: `ifreq` is plain old data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.0) {
        *to = from.cast_signed();
    }
    request
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// TUNSETIFF: makes the descriptor a (queue of a) TUN and tells its name.
pub(crate) fn tun_set_iff(
    tun: BorrowedFd<'_>,
    name: InterfaceName,
    flags: i16,
) -> io::Result<InterfaceName> {
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack frame.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    let mut answer = [0_u8; IFNAMSIZ];
    for (to, from) in answer.iter_mut().zip(request.ifr_name) {
        *to = from.cast_unsigned();
    }
    Ok(InterfaceName(answer))
}

/// TUNSETOFFLOAD: which super-packets the reader of the descriptor understands.
pub(crate) fn tun_set_offload(tun: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETOFFLOAD as _,
            libc::c_ulong::from(offloads),
        )
    })
    .map(drop)
}

/// Sets IFF_UP on an interface of the thread's namespace through any socket.
pub(crate) fn interface_up(socket: BorrowedFd<'_>, name: InterfaceName) -> io::Result<()> {
    let mut request = ifreq(name);
    // SAFETY: both requests read and write one `ifreq`, which lives on this stack frame; the
    // kernel has filled `ifru_flags` when the first one succeeded.
    unsafe {
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        ))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16;
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        ))
        .map(drop)
    }
}

/// Takes ownership of a descriptor that the kernel has just handed out.
pub(crate) fn adopt(descriptor: RawFd) -> OwnedFd {
    // SAFETY: called once per number found in an SCM_RIGHTS message, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Registers an owned, non-blocking descriptor with the runtime of the calling task.
pub fn async_descriptor(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open file until it is dropped, and the `AsyncFd` drops
    // it after taking it off the reactor.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

/// A descriptor that becomes readable when the process ends and keeps naming it.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a descriptor that nobody else owns.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor =
        RawFd::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    Ok(adopt(descriptor))
}

/// Sends a signal to the process that the descriptor names.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: pidfd_send_signal with a null siginfo takes integers only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What a child does between `fork` and `exec`.
pub(crate) struct Entry {
    pub(crate) net: Option<OwnedFd>,
    pub(crate) mount: Option<OwnedFd>,
    /// Checked after the death signal is set: a parent that died before that sends none.
    pub(crate) parent: libc::pid_t,
    pub(crate) die_with_parent: bool,
    pub(crate) own_session: bool,
}

/// Registers the entry steps with `command`.
pub(crate) fn before_exec(command: &mut std::process::Command, entry: Entry) {
    let steps = move || -> io::Result<()> {
        // SAFETY: between fork and exec only async-signal-safe calls may be made: these are bare
        // system calls on integers and descriptors that the closure owns; nothing allocates.
        unsafe {
            if entry.own_session {
                check(libc::setsid())?;
            }
            if let Some(net) = &entry.net {
                check(libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET))?;
            }
            if let Some(mount) = &entry.mount {
                check(libc::setns(mount.as_raw_fd(), libc::CLONE_NEWNS))?;
                check(libc::chdir(ROOT.as_ptr()))?;
            }
            if entry.die_with_parent {
                check(libc::prctl(
                    libc::PR_SET_PDEATHSIG,
                    libc::SIGKILL as libc::c_ulong,
                    0,
                    0,
                    0,
                ))?;
                if libc::getppid() != entry.parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
            // Signals that the parent blocks for its own handling must reach the child.
            let mut none: libc::sigset_t = std::mem::zeroed();
            check(libc::sigemptyset(&raw mut none))?;
            check(libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const none,
                std::ptr::null_mut(),
            ))?;
        }
        Ok(())
    };
    // SAFETY: see the closure: it is async-signal-safe.
    unsafe { command.pre_exec(steps) };
}

const ROOT: &CStr = c"/";

/// `__user_cap_header_struct` and `__user_cap_data_struct` of capset(2).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Takes the bounding, ambient, inheritable, permitted and effective sets of the calling thread
/// down to `keep`.
pub(crate) fn limit_capabilities(keep: u64) -> io::Result<()> {
    let call = |option: libc::c_int, argument: libc::c_ulong| {
        // SAFETY: these options of prctl take integers alone.
        check(unsafe { libc::prctl(option, argument, 0, 0, 0) })
    };
    for capability in (0..64).filter(|at| keep & (1 << at) == 0) {
        match call(libc::PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            // The kernel knows no higher one.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            // Without CAP_SETPCAP the set stays, and what is outside of the permitted set can
            // only come back by a program that no_new_privs forbids.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
            Err(error) => return Err(error),
        }
    }
    call(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
    )?;
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut words = [CapabilityWord::default(); 2];
    // SAFETY: the header and both words that version 3 reads or writes live on this stack frame.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for (word, keep) in words.iter_mut().zip([keep as u32, (keep >> 32) as u32]) {
        word.permitted &= keep;
        word.effective = word.permitted;
        word.inheritable = 0;
    }
    // SAFETY: as above; capset reads only.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
