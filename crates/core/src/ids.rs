//! Names and keys, one type each.

use core::fmt;
use core::str::FromStr;

/// Why a name was refused: the value and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no {what}: {allowed}")]
pub struct InvalidName {
    pub what: &'static str,
    pub value: String,
    pub allowed: &'static str,
}

const LABEL: &str = "1 to 63 letters a-z, digits and inner hyphens";
const ENDPOINT: &str = "1 to 253 letters a-z, digits, '-', '_', '.'";
const SPIFFE: &str = "spiffe://TRUST-DOMAIN/path, at most 2048 bytes";

/// One LDH label (RFC 1123), lower case.
fn check_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

fn check_endpoint(value: &str) -> bool {
    (1..=253).contains(&value.len())
        && value.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
        })
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $allowed:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Lower-cases and checks; the error names the value and what is allowed.
            pub fn new(value: &str) -> Result<Self, InvalidName> {
                let lower = value.to_ascii_lowercase();
                if $check(&lower) {
                    Ok(Self(lower))
                } else {
                    Err(InvalidName { what: $what, value: value.to_owned(), allowed: $allowed })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }
    };
}

name_type!(
    /// A domain's label in names, documents and logs.
    DomainName, "domain name", LABEL, check_label
);
name_type!(
    /// A network's name, also its NSM network service name.
    NetworkName, "network name", LABEL, check_label
);
name_type!(
    /// A workload's name: one label of `<name>.<domain>.<zone>`.
    WorkloadName, "workload name", LABEL, check_label
);
name_type!(
    /// A router's stable name, also its NSM endpoint name: `<network>-<domain>[-n]`.
    RouterName, "router name", ENDPOINT, check_endpoint
);

/// Which network: the first 128 bits of SHA-256 over the nonce and the admin keys of version 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkUid(pub [u8; 16]);

/// One life of a state directory: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub [u8; 16]);

/// A WireGuard public key (X25519).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Who holds a lease, since which round; only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

macro_rules! hex_type {
    ($name:ident, $len:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                let bad = || InvalidName {
                    what: stringify!($name),
                    value: value.to_owned(),
                    allowed: concat!($len, " bytes in hexadecimal"),
                };
                let mut bytes = [0; $len];
                if value.len() != 2 * $len || !value.is_ascii() {
                    return Err(bad());
                }
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&value[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
                }
                Ok(Self(bytes))
            }
        }
    };
}
hex_type!(NetworkUid, 16);
hex_type!(InstanceId, 16);
hex_type!(PublicKey, 32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A SPIFFE ID (`spiffe://trust-domain/path`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(String);

impl SpiffeId {
    pub fn new(value: &str) -> Result<Self, InvalidName> {
        let bad = || InvalidName {
            what: "SPIFFE ID",
            value: value.to_owned(),
            allowed: SPIFFE,
        };
        let rest = value.strip_prefix("spiffe://").ok_or_else(bad)?;
        let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        let domain_ok = !domain.is_empty()
            && domain.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
            });
        let path_ok = path.is_empty() && !rest.ends_with('/')
            || path.split('/').all(|segment| {
                !matches!(segment, "" | "." | "..")
                    && segment
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            });
        if value.len() <= 2048 && domain_ok && path_ok {
            Ok(Self(value.to_owned()))
        } else {
            Err(bad())
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn trust_domain(&self) -> &str {
        let rest = self.0.strip_prefix("spiffe://").unwrap_or_default();
        rest.split_once('/').map_or(rest, |(domain, _)| domain)
    }

    /// With the leading slash, empty for a trust domain's own ID.
    pub fn path(&self) -> &str {
        let rest = self.0.strip_prefix("spiffe://").unwrap_or_default();
        rest.find('/').map_or("", |at| &rest[at..])
    }

    /// Whether a pattern of the document covers this ID: equal, or a prefix before a final `*`.
    pub fn matches(&self, pattern: &str) -> bool {
        match pattern.strip_suffix('*') {
            Some(prefix) => self.0.starts_with(prefix),
            None => self.0 == pattern,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        Self::new(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_cased_and_checked() {
        assert_eq!(DomainName::new("East").unwrap().as_str(), "east");
        for bad in ["", "-a", "a-", "a.b", "a b", "ä", &"a".repeat(64)] {
            let error = WorkloadName::new(bad).unwrap_err();
            assert!(error.to_string().contains("workload name"), "{error}");
        }
    }

    #[test]
    fn spiffe_ids_split_into_trust_domain_and_path() {
        let id = SpiffeId::new("spiffe://east.test/workload/a").unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("east.test", "/workload/a"));
        assert!(id.matches("spiffe://east.test/workload/*"));
        assert!(!id.matches("spiffe://east.test/vl3/*"));
        for bad in [
            "",
            "http://a/b",
            "spiffe://",
            "spiffe://A/b",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/../b",
        ] {
            assert!(SpiffeId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hexadecimal_ids_round_trip() {
        let uid = NetworkUid([0xab; 16]);
        assert_eq!(uid.to_string().parse::<NetworkUid>().unwrap(), uid);
        assert!("xyz".parse::<NetworkUid>().is_err());
    }
}
