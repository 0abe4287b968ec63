//! A link of two TUNs with a thread between them, which impairs what passes: delay, loss, NAT.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::nat::{Nat, NatSpec};

/// How the link impairs.
#[derive(Clone, Copy, Debug)]
pub struct RelaySpec {
    /// One way, on both.
    pub delay: Duration,
    /// Share of packets lost each way, 0 to 1.
    pub loss: f64,
    /// With a NAT no IPv6 passes.
    pub nat: Option<NatSpec>,
    /// Of both TUNs.
    pub mtu: u16,
    /// Of the losses.
    pub seed: u64,
}

impl RelaySpec {
    /// A link that only forwards, in user space.
    pub fn plain() -> Self {
        Self {
            delay: Duration::ZERO,
            loss: 0.0,
            nat: None,
            mtu: 1500,
            seed: 1,
        }
    }

    /// An access line with a source-NAT whose mappings live 30 seconds.
    pub fn nat() -> Self {
        Self {
            nat: Some(NatSpec {
                mapping_lifetime: Duration::from_secs(30),
            }),
            ..Self::plain()
        }
    }
}

/// Packets that wait for their delay, each way; more are lost.
const QUEUE_MAX: usize = 2048;

/// Packets read from one side before the other gets its turn.
const BATCH: usize = 64;

/// What the relay has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayCounters {
    pub forwarded: u64,
    /// By the configured loss.
    pub lost: u64,
    /// By the NAT: no mapping, a stranger, another protocol.
    pub refused: u64,
    /// Queue or interface full.
    pub overflowed: u64,
}

/// The running link. Dropping it takes the link down.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wake: EventFd,
    stop: AtomicBool,
    loss_per_million: AtomicU64,
    delay_micros: AtomicU64,
    nat: Mutex<Option<Nat>>,
    forwarded: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    overflowed: AtomicU64,
}

impl Relay {
    /// Carries packets between two plain TUN descriptors.
    pub(crate) fn start(
        inner: OwnedFd,
        outer: OwnedFd,
        public: Ipv4Addr,
        spec: RelaySpec,
    ) -> anyhow::Result<Self> {
        for descriptor in [&inner, &outer] {
            fcntl(descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .context("make a TUN non-blocking")?;
        }
        let shared = Arc::new(Shared {
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            stop: AtomicBool::new(false),
            loss_per_million: AtomicU64::new(per_million(spec.loss)),
            delay_micros: AtomicU64::new(micros(spec.delay)),
            nat: Mutex::new(spec.nat.map(|nat| Nat::new(public, nat))),
            forwarded: AtomicU64::default(),
            lost: AtomicU64::default(),
            refused: AtomicU64::default(),
            overflowed: AtomicU64::default(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || Worker::new(inner, outer, &for_thread, spec.seed).run())
            .context("start the relay thread")?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Share of packets lost from now on, 0 to 1.
    pub fn set_loss(&self, share: f64) {
        self.shared
            .loss_per_million
            .store(per_million(share), Ordering::Relaxed);
    }

    /// Delay each way from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.shared
            .delay_micros
            .store(micros(delay), Ordering::Relaxed);
    }

    /// Forgets every NAT mapping, as an access router does when it restarts: flows go on from
    /// another port.
    pub fn rebind(&self) {
        if let Some(nat) = self
            .shared
            .nat
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
        {
            nat.rebind();
        }
    }

    pub fn counters(&self) -> RelayCounters {
        let shared = &self.shared;
        RelayCounters {
            forwarded: shared.forwarded.load(Ordering::Relaxed),
            lost: shared.lost.load(Ordering::Relaxed),
            refused: shared.refused.load(Ordering::Relaxed),
            overflowed: shared.overflowed.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A full counter means that a wake-up is pending already.
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn per_million(share: f64) -> u64 {
    // Clamped: the cast is exact enough for a test link.
    (share.clamp(0.0, 1.0) * 1e6) as u64
}

fn micros(delay: Duration) -> u64 {
    u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)
}

struct Worker<'a> {
    shared: &'a Shared,
    started: Instant,
    random: SmallRng,
    buffer: Box<[u8; 65_536]>,
    /// Inner to outer, outer to inner.
    ways: [Way; 2],
}

struct Way {
    from: OwnedFd,
    waiting: VecDeque<(Duration, Vec<u8>)>,
}

impl<'a> Worker<'a> {
    fn new(inner: OwnedFd, outer: OwnedFd, shared: &'a Shared, seed: u64) -> Self {
        let way = |from| Way {
            from,
            waiting: VecDeque::new(),
        };
        Self {
            shared,
            started: Instant::now(),
            random: SmallRng::seed_from_u64(seed),
            buffer: Box::new([0; 65_536]),
            ways: [way(inner), way(outer)],
        }
    }

    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let timeout = self.timeout();
            let mut descriptors = [
                PollFd::new(self.ways[0].from.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ways[1].from.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut descriptors, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the relay cannot wait for packets");
                    return;
                }
            }
            for way in 0..2 {
                if !self.read_batch(way) {
                    return;
                }
                self.send_due(way);
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn timeout(&self) -> PollTimeout {
        let Some(due) = self
            .ways
            .iter()
            .filter_map(|way| way.waiting.front())
            .map(|(due, _)| *due)
            .min()
        else {
            return PollTimeout::NONE;
        };
        // Rounded up, so that a wake-up finds something due.
        let millis = due.saturating_sub(self.now()).as_micros().div_ceil(1000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::ZERO)
    }

    /// False when the device is gone.
    fn read_batch(&mut self, way: usize) -> bool {
        let delay = Duration::from_micros(self.shared.delay_micros.load(Ordering::Relaxed));
        for _ in 0..BATCH {
            let len = match read(&self.ways[way].from, self.buffer.as_mut_slice()) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR | Errno::EIO) => return true,
                Err(error) => {
                    tracing::error!(%error, "the relay cannot read");
                    return false;
                }
            };
            let loss = self.shared.loss_per_million.load(Ordering::Relaxed);
            if loss > 0 && self.random.random_range(0..1_000_000) < loss {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let now = self.now();
            let packet = &mut self.buffer[..len];
            let allowed = match self
                .shared
                .nat
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_mut()
            {
                Some(nat) if way == 0 => nat.outbound(packet, now),
                Some(nat) => nat.inbound(packet, now),
                None => true,
            };
            if !allowed {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
            } else if delay.is_zero() {
                let packet = &self.buffer[..len];
                deliver(self.shared, &self.ways[1 - way].from, packet);
            } else if self.ways[way].waiting.len() < QUEUE_MAX {
                let packet = self.buffer[..len].to_vec();
                self.ways[way].waiting.push_back((now + delay, packet));
            } else {
                self.shared.overflowed.fetch_add(1, Ordering::Relaxed);
            }
        }
        true
    }

    fn send_due(&mut self, way: usize) {
        let now = self.now();
        while self.ways[way]
            .waiting
            .front()
            .is_some_and(|(due, _)| *due <= now)
        {
            if let Some((_, packet)) = self.ways[way].waiting.pop_front() {
                deliver(self.shared, &self.ways[1 - way].from, &packet);
            }
        }
    }
}

fn deliver(shared: &Shared, to: &OwnedFd, packet: &[u8]) {
    let counter = match write(to, packet) {
        Ok(_) => &shared.forwarded,
        Err(_) => &shared.overflowed,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}
