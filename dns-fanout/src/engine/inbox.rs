//! What tasks tell the engine's thread: a bounded channel, and a bell that ends its wait.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use super::Command;

/// Commands that wait for the engine; tasks then wait, and their clients' sockets fill.
const WAITING_MAX: usize = 1_024;

/// The tasks' end. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    channel: mpsc::Sender<Command>,
    bell: Arc<Bell>,
}

/// The engine's end.
#[derive(Debug)]
pub(super) struct Inbox {
    channel: mpsc::Receiver<Command>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    descriptor: EventFd,
    /// Whether somebody rang since the engine looked: a second ring changes nothing.
    rung: AtomicBool,
}

/// The engine has ended.
#[derive(Debug)]
pub(crate) struct Ended;

pub(super) fn inbox() -> std::io::Result<(Sender, Inbox)> {
    let descriptor = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let bell = Arc::new(Bell {
        descriptor,
        rung: AtomicBool::new(false),
    });
    let sender = Sender {
        channel: sender,
        bell: Arc::clone(&bell),
    };
    Ok((
        sender,
        Inbox {
            channel: receiver,
            bell,
        },
    ))
}

impl Sender {
    /// Waits while the engine is behind.
    pub(crate) async fn send(&self, command: Command) -> Result<(), Ended> {
        self.channel.send(command).await.map_err(|_| Ended)?;
        self.ring();
        Ok(())
    }

    /// For another engine, which may not wait: false when this one is behind.
    pub(crate) fn try_send(&self, command: Command) -> bool {
        let sent = self.channel.try_send(command).is_ok();
        if sent {
            self.ring();
        }
        sent
    }

    fn ring(&self) {
        if !self.bell.rung.swap(true, Ordering::AcqRel) {
            // Full only after 2^64 rings that nobody heard.
            let _heard = self.bell.descriptor.write(1);
        }
    }
}

impl Inbox {
    /// Becomes readable with the first command.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.descriptor.as_fd()
    }

    /// After the bell: from here on it rings again.
    pub(super) fn hear(&self) {
        let _silent = self.bell.descriptor.read();
        self.bell.rung.swap(false, Ordering::AcqRel);
    }

    pub(super) fn next(&mut self) -> Option<Command> {
        self.channel.try_recv().ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }
}
