use std::io;

/// What went wrong in the kernel, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Run as root, or give the capability.
    #[error(
        "{operation}: not permitted; run as root (CAP_NET_ADMIN, and CAP_SYS_ADMIN for namespaces)"
    )]
    NotPermitted { operation: String },
    /// The interface is not there (any more).
    #[error("{operation}: no interface named {link}")]
    NoSuchLink { operation: String, link: String },
    /// An argument that the kernel would not understand.
    #[error("{field} {value:?} is not valid: {allowed}")]
    Invalid {
        field: &'static str,
        value: String,
        allowed: &'static str,
    },
    /// The netlink connection has ended (its runtime was shut down).
    #[error("{operation}: the netlink connection is closed")]
    Closed { operation: String },
    /// Anything else the kernel said.
    #[error("{operation}")]
    Kernel {
        operation: String,
        source: io::Error,
    },
}

impl Error {
    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } => source.raw_os_error(),
            Self::NotPermitted { .. } => Some(libc::EPERM),
            Self::NoSuchLink { .. } => Some(libc::ENODEV),
            Self::Invalid { .. } | Self::Closed { .. } => None,
        }
    }

    pub(crate) fn kernel(operation: impl Into<String>, source: io::Error) -> Self {
        let operation = operation.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { operation },
            _ => Self::Kernel { operation, source },
        }
    }

    pub(crate) fn errno_of(operation: impl Into<String>, errno: nix::errno::Errno) -> Self {
        Self::kernel(operation, io::Error::from(errno))
    }
}
