//! What a key may hold.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use vl3_core::ids::{DomainName, NetworkName, NetworkUid, RouterName, SpiffeId, WorkloadName};

use crate::grpc::{DialUrl, Listen};

/// A configuration value: from text (environment, flag, TOML string) or a TOML value.
pub trait Value: Sized {
    /// What is allowed, for people.
    const ALLOWED: &'static str;

    fn from_text(text: &str) -> Option<Self>;

    fn from_toml(value: &toml::Value) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }
}

impl Value for bool {
    const ALLOWED: &'static str = "true or false";
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_bool()
    }
}

macro_rules! integer {
    ($($type:ty, $allowed:literal);* $(;)?) => {$(
        impl Value for $type {
            const ALLOWED: &'static str = $allowed;
            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn from_toml(value: &toml::Value) -> Option<Self> {
                Self::try_from(value.as_integer()?).ok()
            }
        }
    )*};
}
integer! {
    u8, "a number from 0 to 255";
    u16, "a number from 0 to 65535";
    u32, "a number from 0 to 4294967295";
    u64, "a number from 0 on";
    usize, "a number from 0 on";
}

impl Value for f64 {
    const ALLOWED: &'static str = "a number";
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &Self| number.is_finite())
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        let whole = value.as_integer().map(|whole| whole as Self);
        value
            .as_float()
            .filter(|number| number.is_finite())
            .or(whole)
    }
}

impl Value for String {
    const ALLOWED: &'static str = "a text that is not empty";
    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.to_owned())
    }
}

impl Value for PathBuf {
    const ALLOWED: &'static str = "a path";
    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }
}

macro_rules! parsed {
    ($($type:ty, $allowed:literal);* $(;)?) => {$(
        impl Value for $type {
            const ALLOWED: &'static str = $allowed;
            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )*};
}
parsed! {
    IpAddr, "an IP address";
    SocketAddr, "an address with port, as 127.0.0.1:9100 or [::1]:9100";
    DomainName, "a domain name: 1 to 63 letters a-z, digits and inner hyphens";
    NetworkName, "a network name: 1 to 63 letters a-z, digits and inner hyphens";
    WorkloadName, "a workload name: 1 to 63 letters a-z, digits and inner hyphens";
    RouterName, "a router name: 1 to 253 letters a-z, digits, '-', '_', '.'";
    NetworkUid, "a network uid: 16 bytes in hexadecimal";
    SpiffeId, "spiffe://TRUST-DOMAIN/path";
    Listen, "tcp://IP:PORT, tcp://:PORT or unix:///PATH";
    DialUrl, "tcp://HOST:PORT or unix:///PATH";
}

impl Value for IpNet {
    const ALLOWED: &'static str = "a prefix without host bits, as 10.0.0.0/8 or fd00::/64";
    fn from_text(text: &str) -> Option<Self> {
        text.parse::<Self>()
            .ok()
            .filter(|prefix| *prefix == prefix.trunc())
    }
}

impl Value for Ipv4Net {
    const ALLOWED: &'static str = "an IPv4 prefix without host bits, as 10.0.0.0/8";
    fn from_text(text: &str) -> Option<Self> {
        text.parse::<Self>()
            .ok()
            .filter(|prefix| *prefix == prefix.trunc())
    }
}

impl Value for Ipv6Net {
    const ALLOWED: &'static str = "an IPv6 prefix without host bits, as fd00::/64";
    fn from_text(text: &str) -> Option<Self> {
        text.parse::<Self>()
            .ok()
            .filter(|prefix| *prefix == prefix.trunc())
    }
}

impl Value for Duration {
    const ALLOWED: &'static str = "a duration as 500ms, 15s, 10m, 1h, 1m30s";
    fn from_text(text: &str) -> Option<Self> {
        parse_duration(text)
    }
}

/// Go's duration spelling without signs and fractions: one or more of `<digits><unit>`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ms" => Duration::from_millis(count),
            "s" => Duration::from_secs(count),
            "m" => Duration::from_secs(count.checked_mul(60)?),
            "h" => Duration::from_secs(count.checked_mul(3600)?),
            _ => return None,
        };
        total = total.checked_add(unit)?;
        rest = &rest[unit_end..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelled_as_in_go() {
        assert_eq!(Duration::from_text("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(
            Duration::from_text("200ms"),
            Some(Duration::from_millis(200))
        );
        for bad in ["", "10", "s", "5x", "-1s", "1.5s", "99999999999999999999s"] {
            assert_eq!(Duration::from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn prefixes_with_host_bits_are_refused() {
        assert!(IpNet::from_text("10.0.0.0/8").is_some());
        assert!(IpNet::from_text("10.0.0.1/8").is_none());
    }
}
