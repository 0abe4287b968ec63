//! Every bound of the data plane, with its behaviour at the limit.

use std::time::Duration;

/// Peers of one data plane: 16 bits of the receiver index name the slot. Beyond: refused.
pub(crate) const PEERS_MAX: usize = 1 << 16;
/// Workers: 8 bits of the receiver index name the one that owns the peer's timers. Beyond:
/// refused.
pub(crate) const WORKERS_MAX: usize = 255;
/// Datagram buffers of one receive call.
pub(crate) const RECEIVE_BATCH: usize = 32;
/// Bytes of each: what the kernel coalesces into one buffer.
pub(crate) const RECEIVE_BUFFER: usize = 1 << 16;
/// Sealed and unsent bytes of one worker. Full: flushed in the middle of a batch.
pub(crate) const OUTBOUND_BYTES: usize = 512 << 10;
/// Messages (trains or single datagrams) of one send call.
pub(crate) const SEND_BATCH: usize = 64;
/// Bytes read from one TUN before what they became is flushed.
pub(crate) const TUN_READ_BUDGET: usize = 64 << 10;
/// Segments that one super-packet may become. Beyond: dropped as malformed; the kernel's
/// smallest TCP segment makes fewer.
pub(crate) const SEGMENTS_MAX: usize = 2048;
/// Datagrams of one train, and its bytes (UDP_MAX_SEGMENTS, largest UDP payload).
pub(crate) const TRAIN_DATAGRAMS_MAX: usize = 64;
pub(crate) const TRAIN_BYTES_MAX: usize = 65_507;
/// Packets merged into one; the iovec list stays far below IOV_MAX.
pub(crate) const MERGED_MAX: usize = 128;
/// UDP packets merged into one (UDP_MAX_SEGMENTS of old kernels).
pub(crate) const MERGED_UDP_MAX: usize = 64;
/// Groups that a packet is compared with. Beyond: it starts a group of its own.
pub(crate) const MERGE_LOOKBACK: usize = 32;
/// Failed merged writes after which a TUN gets single packets only.
pub(crate) const MERGE_FAILURES_MAX: u32 = 4;
/// Packets that wait for a peer's first session. Beyond: dropped and counted.
pub(crate) const WAITING_MAX: usize = 32;
/// Handshake messages per second before initiators must prove their address by a cookie.
pub(crate) const HANDSHAKES_PER_SECOND: u64 = 1_000;
/// How long a worker waits for room in a socket, and how often in one flush. After it the
/// rest of the batch is dropped and counted.
pub(crate) const SEND_WAIT: Duration = Duration::from_micros(250);
pub(crate) const SEND_WAITS_MAX: u32 = 4;
/// ICMP errors to one port: rate and burst. Beyond: the packet is dropped silently.
pub(crate) const ICMP_INTERVAL: Duration = Duration::from_millis(10);
pub(crate) const ICMP_BURST: u32 = 20;
/// How often a peer's timers run.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// Readiness reports of one epoll call.
pub(crate) const EVENTS_MAX: usize = 64;
