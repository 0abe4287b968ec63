//! The boundary to the WireGuard protocol: what any engine does for one peer, and for all.
//!
//! Workers see datagrams and packets only. An engine owns sessions, handshake, cookies and
//! protocol timers; it sees no socket, no endpoint and no table.

use std::net::IpAddr;

use vl3_core::ids::PublicKey;

pub(crate) mod noise;

/// Bytes in front of the inner packet of a data message: type, receiver, counter.
pub(crate) const DATA_HEADER: usize = 16;
/// Bytes behind it: the tag.
pub(crate) const DATA_TAG: usize = 16;
pub(crate) const DATA_OVERHEAD: usize = DATA_HEADER + DATA_TAG;
/// Longest message that is no data (an initiation).
pub(crate) const HANDSHAKE_MAX: usize = 148;

/// What a datagram claims to be, by its type, length and receiver index. Nothing is
/// authentic yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Initiation,
    /// Response or cookie reply to our initiation.
    Answer {
        receiver: u32,
    },
    Data {
        receiver: u32,
    },
}

impl Message {
    pub(crate) fn classify(datagram: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            datagram
                .get(at..at + 4)
                .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        };
        match (word(0)?, datagram.len()) {
            (1, 148) => Some(Self::Initiation),
            (2, 92) => Some(Self::Answer { receiver: word(8)? }),
            (3, 64) => Some(Self::Answer { receiver: word(4)? }),
            (4, DATA_OVERHEAD..) => Some(Self::Data { receiver: word(4)? }),
            _ => None,
        }
    }

    /// Only sealed by the peer itself; a cookie reply proves nothing about its place.
    pub(crate) fn is_cookie_reply(datagram: &[u8]) -> bool {
        datagram.first() == Some(&3)
    }
}

/// Takes messages that an engine wants to be sent to its peer, each one datagram.
pub(crate) type Emit<'a> = dyn FnMut(&[u8]) + 'a;

/// Packets to be sealed in place, back to back:
/// `[DATA_HEADER][packet, padding included][DATA_TAG]`.
pub(crate) struct Train<'a> {
    pub(crate) bytes: &'a mut [u8],
    /// Of each packet, padding included.
    pub(crate) lengths: &'a [usize],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// Every slot holds a data message.
    Ready,
    /// There is no session: `dropped` packets did not fit in the queue, the others wait.
    Waiting { dropped: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// An inner packet of this length stands at the start of the buffer.
    Packet(usize),
    Keepalive,
    /// Authentic, but what it carries is no IP packet.
    NoPacket,
    /// Replayed, for no session, or not what the session's key sealed.
    Refused,
}

/// What the protocol's clock changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticked {
    /// A session exists that can be sent by.
    pub(crate) session: bool,
    /// Waiting packets that were given up.
    pub(crate) dropped: usize,
}

/// One peer's sessions and handshake. Called by any worker at any time.
pub(crate) trait Engine: Send + Sync {
    /// Seals a train in place; without a session lets its packets wait and emits an
    /// initiation, at most one every few seconds.
    fn seal(&self, train: Train<'_>, emit: &mut Emit<'_>) -> Sealed;

    /// Opens a data message into `plain`, which is at least as long. May emit packets that
    /// waited for this proof of a session.
    fn open(&self, datagram: &[u8], plain: &mut [u8], emit: &mut Emit<'_>) -> Opened;

    /// Takes any message that is no data, admitted by the gate before. Whether it was
    /// authentic; emits what follows from it.
    fn handshake(&self, message: &[u8], emit: &mut Emit<'_>) -> bool;

    /// Starts a handshake at once, whatever the timers say.
    fn initiate(&self, emit: &mut Emit<'_>);

    /// Sends an empty packet, by a handshake if need be.
    fn keepalive(&self, emit: &mut Emit<'_>);

    /// Runs the protocol's timers.
    fn tick(&self, emit: &mut Emit<'_>) -> Ticked;
}

/// What the gate says of a handshake message, before any costly work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted,
    /// Under load: answer with this many bytes of the buffer, the sender must prove its
    /// address.
    Cookie(usize),
    Refused,
}

/// The part of the protocol that all peers share.
pub(crate) trait Gate: Send + Sync {
    fn public_key(&self) -> PublicKey;

    /// Checks that the sender knows our public key, and the load.
    fn admit(&self, from: IpAddr, message: &[u8], cookie: &mut [u8; HANDSHAKE_MAX]) -> Admission;

    /// Who says that it initiates. Costs a key agreement.
    fn initiator(&self, initiation: &[u8]) -> Option<PublicKey>;

    /// Makes a peer's engine. `index` is the upper 24 bits of every receiver index it uses.
    fn peer(&self, key: PublicKey, preshared: Option<[u8; 32]>, index: u32) -> Box<dyn Engine>;

    /// Called each second: the load is counted per second.
    fn second(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_by_type_and_length() {
        let message = |kind: u8, len: usize| {
            let mut bytes = vec![0u8; len];
            bytes[0] = kind;
            Message::classify(&bytes)
        };
        assert_eq!(message(1, 148), Some(Message::Initiation));
        assert_eq!(message(1, 149), None);
        assert_eq!(message(2, 92), Some(Message::Answer { receiver: 0 }));
        assert_eq!(message(3, 64), Some(Message::Answer { receiver: 0 }));
        assert_eq!(message(4, 32), Some(Message::Data { receiver: 0 }));
        assert_eq!(message(4, 31), None);
        assert_eq!(message(5, 148), None);
        assert_eq!(Message::classify(&[]), None);
        assert_eq!(Message::classify(&[4, 0, 0]), None);
        assert_eq!(
            Message::classify(&[4, 0, 0, 1, 0, 0, 0, 0]),
            None,
            "reserved bytes are zero"
        );
    }
}
