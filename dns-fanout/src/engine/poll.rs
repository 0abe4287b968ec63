//! The engine's wait: one epoll over its sockets and its bell, level-triggered, so that what one
//! round leaves the next one takes.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Sockets served per round.
const EVENTS_MAX: usize = 256;

/// Who is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Inbox,
    Listener(u32),
    Upstream(u32),
}

impl Token {
    fn to_data(self) -> u64 {
        match self {
            Self::Inbox => 0,
            Self::Listener(at) => 1 << 32 | u64::from(at),
            Self::Upstream(at) => 2 << 32 | u64::from(at),
        }
    }

    fn from_data(data: u64) -> Self {
        // The low half, whole.
        let at = u32::try_from(data & u64::from(u32::MAX)).unwrap_or(0);
        match data >> 32 {
            1 => Self::Listener(at),
            2 => Self::Upstream(at),
            _ => Self::Inbox,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    ready: usize,
}

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); EVENTS_MAX],
            ready: 0,
        })
    }

    pub(crate) fn add(&self, descriptor: impl AsFd, token: Token) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token.to_data());
        Ok(self.epoll.add(descriptor, event)?)
    }

    pub(crate) fn remove(&self, descriptor: impl AsFd) {
        // Gone already: closed.
        let _gone = self.epoll.delete(descriptor);
    }

    /// Waits until somebody is ready, at most so long; for ever without a limit.
    pub(super) fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.ready = 0;
        match self.epoll.wait(&mut self.events, timeout(limit)) {
            Ok(ready) => self.ready = ready,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    pub(super) fn ready(&self, at: usize) -> Option<Token> {
        let event = self.events.get(at).filter(|_| at < self.ready)?;
        Some(Token::from_data(event.data()))
    }
}

/// Whole milliseconds, rounded up: waking before the deadline would only wait again.
fn timeout(limit: Option<Duration>) -> EpollTimeout {
    let Some(limit) = limit else {
        return EpollTimeout::NONE;
    };
    let milliseconds = limit.as_nanos().div_ceil(1_000_000);
    EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Inbox,
            Token::Listener(0),
            Token::Listener(7),
            Token::Upstream(u32::MAX),
        ] {
            assert_eq!(Token::from_data(token.to_data()), token);
        }
    }

    #[test]
    fn a_limit_is_never_cut_short() {
        assert_eq!(
            timeout(Some(Duration::from_nanos(1))),
            EpollTimeout::from(1_u16)
        );
        assert_eq!(timeout(Some(Duration::ZERO)), EpollTimeout::ZERO);
        assert_eq!(timeout(None), EpollTimeout::NONE);
    }
}
