//! Children that start inside a namespace and die with their parent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitStatus};
use std::sync::mpsc;

use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::namespace::Namespace;
use crate::sys;

/// Starts children from one thread of its own: the kernel sends a parent-death signal when the
/// *thread* that forked ends, so no worker of a runtime may do it. When the last clone is dropped
/// the thread ends and the kernel kills (SIGKILL) every child that still runs.
#[derive(Clone, Debug)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    command: Command,
    namespace: Option<Namespace>,
    reply: mpsc::Sender<Result<std::process::Child, Error>>,
}

impl Spawner {
    pub fn start() -> Result<Self, Error> {
        let (requests, inbox) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                while let Ok(request) = inbox.recv() {
                    let result = spawn(request.command, request.namespace.as_ref());
                    // The asker may have given up; the child then dies with its handle.
                    let _ = request.reply.send(result);
                }
            })
            .map_err(|source| Error::kernel("start the spawner thread", source))?;
        Ok(Self { requests })
    }

    /// Starts `command` in the network namespace (and mount namespace, if it has one) of
    /// `namespace`, as leader of a session of its own: no key of a
    /// terminal reaches it. Must be called inside a tokio
    /// runtime; takes as long as a fork and exec.
    pub fn spawn(&self, command: Command, namespace: Option<&Namespace>) -> Result<Child, Error> {
        let (reply, answer) = mpsc::channel();
        let program = command.get_program().to_string_lossy().into_owned();
        let gone = || Error::Closed {
            operation: format!("start {program}"),
        };
        self.requests
            .send(Request {
                command,
                namespace: namespace.cloned(),
                reply,
            })
            .map_err(|_| gone())?;
        let child = answer.recv().map_err(|_| gone())??;
        Child::adopt(child, &program)
    }
}

fn spawn(
    mut command: Command,
    namespace: Option<&Namespace>,
) -> Result<std::process::Child, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| Error::kernel(format!("start {program}"), source);
    let duplicate = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed);
    let entry = sys::Entry {
        net: namespace
            .map(|namespace| duplicate(namespace.as_fd()))
            .transpose()?,
        mount: namespace
            .and_then(Namespace::mount_fd)
            .map(duplicate)
            .transpose()?,
        parent: nix::unistd::getpid().as_raw(),
        die_with_parent: true,
        own_session: true,
    };
    sys::before_exec(&mut command, entry);
    command.spawn().map_err(failed)
}

/// A running or ended child. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    pidfd: AsyncFd<OwnedFd>,
    program: String,
}

impl Child {
    fn adopt(mut child: std::process::Child, program: &str) -> Result<Self, Error> {
        let pidfd = sys::pidfd_open(child.id()).and_then(sys::async_descriptor);
        match pidfd {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                program: program.to_owned(),
            }),
            Err(source) => {
                // Unwatched children are not left behind.
                let _ = child.kill();
                let _ = child.wait();
                Err(Error::kernel(format!("watch {program}"), source))
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The standard input, output or error that was asked for as a pipe, once each.
    pub fn pipes(&mut self) -> &mut std::process::Child {
        &mut self.child
    }

    /// Sends a signal (its number); a child that has ended is fine.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        match sys::pidfd_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(Error::kernel(
                format!("send signal {signal} to {}", self.program),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL)
    }

    /// SIGTERM.
    pub fn terminate(&self) -> Result<(), Error> {
        self.signal(libc::SIGTERM)
    }

    /// The exit status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child
            .try_wait()
            .map_err(|source| Error::kernel(format!("wait for {}", self.program), source))
    }

    /// Waits for the end. Cancel-safe.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            let ended: io::Result<()> = self
                .pidfd
                .readable()
                .await
                .map(|mut guard| guard.clear_ready());
            ended.map_err(|source| Error::kernel(format!("wait for {}", self.program), source))?;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Errors mean that it has ended; `wait` returns at once after SIGKILL.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
