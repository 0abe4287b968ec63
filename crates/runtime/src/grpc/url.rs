//! `tcp://` and `unix://` addresses as NSM writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Where a client dials.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DialUrl {
    /// A name or address, without brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no address: must be {allowed}")]
pub struct BadUrl {
    pub value: String,
    pub allowed: &'static str,
}

impl FromStr for Listen {
    type Err = BadUrl;
    /// `tcp://IP:PORT`, `tcp://:PORT` (all addresses), `unix:///PATH`.
    fn from_str(value: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl {
            value: value.to_owned(),
            allowed: "tcp://IP:PORT, tcp://:PORT or unix:///PATH",
        };
        if let Some(path) = unix_path(value) {
            return path.map(Self::Unix).ok_or_else(bad);
        }
        let rest = value.strip_prefix("tcp://").ok_or_else(bad)?;
        if let Some(port) = rest.strip_prefix(':') {
            let port = port.parse().map_err(|_| bad())?;
            return Ok(Self::Tcp(SocketAddr::new(
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                port,
            )));
        }
        if let Some(port) = rest.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| bad())?;
            return Ok(Self::Tcp(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                port,
            )));
        }
        rest.parse().map(Self::Tcp).map_err(|_| bad())
    }
}

impl FromStr for DialUrl {
    type Err = BadUrl;
    /// `tcp://HOST:PORT`, bare `HOST:PORT`, `unix:///PATH`.
    fn from_str(value: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl {
            value: value.to_owned(),
            allowed: "tcp://HOST:PORT or unix:///PATH",
        };
        if let Some(path) = unix_path(value) {
            return path.map(Self::Unix).ok_or_else(bad);
        }
        let rest = value.strip_prefix("tcp://").unwrap_or(value);
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(bad)?;
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(inner) => inner.parse::<Ipv6Addr>().map_err(|_| bad())?.to_string(),
            None => host.to_owned(),
        };
        let is_address = host.parse::<IpAddr>().is_ok();
        let is_name = host.len() <= 253
            && !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if is_address || is_name {
            Ok(Self::Tcp { host, port })
        } else {
            Err(bad())
        }
    }
}

/// `None`: another scheme. `Some(None)`: unix without an absolute path of at most 107 bytes.
fn unix_path(value: &str) -> Option<Option<PathBuf>> {
    let path = value.strip_prefix("unix:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let fits = path.starts_with('/') && path.len() <= 107 && !path.contains('\0');
    Some(fits.then(|| PathBuf::from(path)))
}

impl Listen {
    /// What a client on this machine dials.
    pub fn dial_url(&self) -> DialUrl {
        match self {
            Self::Tcp(address) => DialUrl::from(*address),
            Self::Unix(path) => DialUrl::Unix(path.clone()),
        }
    }
}

impl From<SocketAddr> for DialUrl {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl fmt::Display for DialUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in [
            "tcp://10.0.0.1:5002",
            "tcp://[fd00::1]:5002",
            "unix:///run/vl3/a.sock",
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
            assert_eq!(text.parse::<DialUrl>().unwrap().to_string(), text);
        }
        assert_eq!(
            "tcp://:5002".parse::<Listen>().unwrap().to_string(),
            "tcp://[::]:5002"
        );
        assert_eq!(
            "registry:5002".parse::<DialUrl>().unwrap().to_string(),
            "tcp://registry:5002"
        );
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "",
            "tcp://",
            "tcp://a",
            "http://a:1",
            "unix://a",
            "tcp://a:70000",
            "tcp://a b:1",
            "unix:",
        ] {
            assert!(bad.parse::<DialUrl>().is_err(), "{bad}");
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
        assert!("tcp://a:0".parse::<DialUrl>().is_err());
    }
}
