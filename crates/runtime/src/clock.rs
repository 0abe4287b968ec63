//! The two clocks, read once per input.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::ClockId;
use tokio::time::Instant as TokioInstant;
use vl3_core::{Mono, Now, Wall};

/// CLOCK_MONOTONIC and wall time. The data plane reads the same monotonic clock.
pub fn now() -> Now {
    Now {
        mono: mono(),
        wall: wall(),
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn mono() -> Mono {
    ClockId::CLOCK_MONOTONIC.now().map_or(Mono(0), |time| {
        Mono(u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
    })
}

/// Nanoseconds since the Unix epoch; 0 for a clock set before it.
pub fn wall() -> Wall {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Wall(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// When a tokio timer must fire to meet a machine's deadline.
pub fn instant_of(deadline: Mono) -> TokioInstant {
    TokioInstant::now() + deadline.saturating_since(mono())
}

/// Sleeps until a machine's deadline, for ever when there is none: the one line of a shell's
/// `select!` that wakes its machine.
pub async fn sleep_until(deadline: Option<Mono>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(instant_of(deadline)).await,
        None => std::future::pending().await,
    }
}
