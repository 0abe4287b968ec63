//! Domain names: labels without case (RFC 4343), bounded as RFC 1035 2.3.4 says.

use core::fmt;
use std::borrow::Borrow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

/// Longest encoded name, octets, the final root included.
pub const NAME_OCTETS_MAX: usize = 255;
/// Longest label, octets.
pub const LABEL_OCTETS_MAX: usize = 63;

/// Why a text or a list of labels is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("an empty label")]
    EmptyLabel,
    #[error("a label longer than 63 octets")]
    LongLabel,
    #[error("a name longer than 255 octets")]
    LongName,
}

/// An absolute name, lower case, in uncompressed wire form without the final root octet. Clones
/// share their octets.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    wire: Arc<[u8]>,
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.wire
    }
}

impl Name {
    pub fn root() -> Self {
        Self::default()
    }

    /// Dotted text, with or without the final dot; no escapes.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Ok(Self::root());
        }
        Self::from_labels(text.split('.').map(str::as_bytes))
    }

    /// Labels from the left, of any octets.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut wire = [0_u8; NAME_OCTETS_MAX - 1];
        let mut at = 0;
        for label in labels {
            let length = u8::try_from(label.len()).map_err(|_| NameError::LongLabel)?;
            match label.len() {
                0 => return Err(NameError::EmptyLabel),
                1..=LABEL_OCTETS_MAX => {}
                _ => return Err(NameError::LongLabel),
            }
            let end = at + 1 + label.len();
            let Some(room) = wire.get_mut(at..end) else {
                return Err(NameError::LongName);
            };
            room[0] = length;
            room[1..].copy_from_slice(label);
            room[1..].make_ascii_lowercase();
            at = end;
        }
        Ok(Self {
            wire: Arc::from(&wire[..at]),
        })
    }

    /// `label.self`; fails when that is too long.
    pub fn child(&self, label: &str) -> Result<Self, NameError> {
        Self::from_labels(core::iter::once(label.as_bytes()).chain(self.labels()))
    }

    /// Labels from the left.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.wire;
        core::iter::from_fn(move || {
            let (length, tail) = rest.split_first()?;
            let (label, tail) = tail.split_at_checked(usize::from(*length))?;
            rest = tail;
            Some(label)
        })
    }

    pub fn label_count(&self) -> usize {
        self.labels().count()
    }

    pub fn is_root(&self) -> bool {
        self.wire.is_empty()
    }

    /// The wire forms, without the root octet, of the name itself, its parent and so on up to the
    /// root.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Some(&*self.wire);
        core::iter::from_fn(move || {
            let this = rest?;
            rest = this
                .split_first()
                .and_then(|(length, tail)| tail.get(usize::from(*length)..));
            Some(this)
        })
    }

    /// The labels left of `suffix`, from the left; `None` when `self` is not at or below it.
    pub fn below(&self, suffix: &Self) -> Option<Vec<&[u8]>> {
        self.is_at_or_below(suffix).then(|| {
            let kept = self.label_count() - suffix.label_count();
            self.labels().take(kept).collect()
        })
    }

    pub fn is_at_or_below(&self, suffix: &Self) -> bool {
        self.ancestors()
            .find(|ancestor| ancestor.len() <= suffix.wire.len())
            .is_some_and(|ancestor| *ancestor == *suffix.wire)
    }

    /// Whether both are one allocation.
    pub(super) fn shares(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.wire, &other.wire)
    }

    /// Octets of the wire form without the final root octet.
    pub fn octets(&self) -> &[u8] {
        &self.wire
    }

    /// Wire form with the final root octet, lower case.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::with_capacity(self.wire.len() + 1);
        wire.extend_from_slice(&self.wire);
        wire.push(0);
        wire
    }

    /// The name whose PTR record names `address` (RFC 1035 3.5, RFC 3596 2.5).
    pub fn reverse_of(address: IpAddr) -> Self {
        let mut text = String::with_capacity(73);
        match address {
            IpAddr::V4(address) => {
                for octet in address.octets().iter().rev() {
                    text.push_str(&format!("{octet}."));
                }
                text.push_str("in-addr.arpa");
            }
            IpAddr::V6(address) => {
                for octet in address.octets().iter().rev() {
                    text.push_str(&format!("{:x}.{:x}.", octet & 15, octet >> 4));
                }
                text.push_str("ip6.arpa");
            }
        }
        Self::parse(&text).expect("digits and fixed labels, at most 73 octets")
    }

    /// The prefix that a name below `in-addr.arpa` or `ip6.arpa` stands for (a full address as
    /// /32 or /128); `None` for other names and malformed digits.
    pub fn reverse_prefix(&self) -> Option<IpNet> {
        if !self.wire.ends_with(b"\x04arpa") {
            return None;
        }
        let labels: Vec<&[u8]> = self.labels().collect();
        let (digits, zone) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
        match zone {
            [b"in-addr", b"arpa"] => reverse4(digits),
            [b"ip6", b"arpa"] => reverse6(digits),
            _ => None,
        }
    }
}

fn reverse4(digits: &[&[u8]]) -> Option<IpNet> {
    let mut octets = [0_u8; 4];
    let bits = u8::try_from(digits.len().checked_mul(8)?).ok()?;
    for (octet, label) in octets.iter_mut().zip(digits.iter().rev()) {
        let text = core::str::from_utf8(label).ok()?;
        let canonical =
            text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        *octet = text.parse().ok().filter(|_| canonical)?;
    }
    IpNet::new(IpAddr::V4(Ipv4Addr::from(octets)), bits).ok()
}

fn reverse6(digits: &[&[u8]]) -> Option<IpNet> {
    let mut value = 0_u128;
    let bits = u8::try_from(digits.len().checked_mul(4)?)
        .ok()
        .filter(|bits| *bits <= 128)?;
    for label in digits.iter().rev() {
        let [digit] = label else { return None };
        let digit = char::from(*digit).to_digit(16)?;
        value = value << 4 | u128::from(digit);
    }
    let value = value.checked_shl(u32::from(128 - bits)).unwrap_or(0);
    IpNet::new(IpAddr::V6(Ipv6Addr::from(value)), bits).ok()
}

impl fmt::Display for Name {
    /// Dotted with the final dot; octets other than printable ASCII as `\DDD` (RFC 1035 5.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for label in self.labels() {
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r1_4_names_compare_without_case() {
        assert_eq!(
            Name::parse("WeB.East.Red.Test").unwrap(),
            Name::parse("web.east.red.test.").unwrap()
        );
        let odd = Name::from_labels([b"\xc3\x84B".as_slice(), b"x.y"]).unwrap();
        assert_eq!(
            odd.to_string(),
            "\\195\\132b.x\\.y.",
            "only ASCII letters fold, dots inside labels stay"
        );
    }

    #[test]
    fn r6_8_names_are_bounded_as_the_protocol_says() {
        assert_eq!(Name::parse("a..b"), Err(NameError::EmptyLabel));
        assert_eq!(Name::parse(&"a".repeat(64)), Err(NameError::LongLabel));
        let label = "a".repeat(49);
        let longest = [label.as_str(); 5].join(".");
        assert!(Name::parse(&longest).is_ok_and(|name| name.to_wire().len() == 251));
        assert_eq!(
            Name::parse(&format!("abcd.{longest}")),
            Err(NameError::LongName)
        );
        assert!(Name::parse(&["a"; 127].join(".")).is_ok_and(|name| name.to_wire().len() == 255));
        assert_eq!(Name::parse(&["a"; 128].join(".")), Err(NameError::LongName));
    }

    #[test]
    fn a_suffix_matches_whole_labels_only() {
        let zone = Name::parse("red.test").unwrap();
        assert_eq!(
            Name::parse("a.b.red.test").unwrap().below(&zone).unwrap(),
            [b"a", b"b"]
        );
        assert_eq!(zone.below(&zone).unwrap(), Vec::<&[u8]>::new());
        assert!(Name::parse("colored.test").unwrap().below(&zone).is_none());
        assert!(Name::parse("test").unwrap().below(&zone).is_none());
    }

    #[test]
    fn reverse_names_round_trip() {
        for text in ["10.1.2.3", "0.0.0.0", "fd00::1", "2001:db8:1:2:3:4:5:6"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(
                Name::reverse_of(address).reverse_prefix(),
                Some(IpNet::from(address))
            );
        }
        let prefix = |text: &str| {
            Name::parse(text)
                .unwrap()
                .reverse_prefix()
                .map(|net| net.to_string())
        };
        assert_eq!(
            prefix("16.172.in-addr.arpa").as_deref(),
            Some("172.16.0.0/16")
        );
        assert_eq!(prefix("d.f.ip6.arpa").as_deref(), Some("fd00::/8"));
        assert_eq!(prefix("ip6.arpa").as_deref(), Some("::/0"));
        for bad in [
            "256.in-addr.arpa",
            "01.in-addr.arpa",
            "5.4.3.2.1.in-addr.arpa",
            "g.ip6.arpa",
            "ab.ip6.arpa",
            "a.b",
        ] {
            assert_eq!(prefix(bad), None, "{bad}");
        }
    }
}
