//! Mechanism parameters: WIREGUARD as NSM states them (nsm-wire section 2), and our local TUN.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use vl3_core::ids::PublicKey;

use super::FieldError;
use crate::connection::Mechanism;

pub const LOCAL: &str = "LOCAL";
pub const REMOTE: &str = "REMOTE";
pub const WIREGUARD: &str = "WIREGUARD";
/// Ours: the client makes the TUN and passes its descriptor.
pub const TUN: &str = "TUN";
/// Ours: more places where the answering side can be reached, `ip:port` with commas.
pub const VL3_ENDPOINTS: &str = "vl3-endpoints";

const KEY: &str = "44 characters of standard base64, a 32-byte X25519 public key";
const PORT: &str = "a decimal UDP port from 1 to 65535";
const ADDRESS: &str = "an IPv4 or IPv6 address";

/// Both halves of a WIREGUARD mechanism. Empty values read as unset (nsm-wire 9.1, 16).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WireguardParameters {
    pub src_ip: Option<IpAddr>,
    pub src_port: Option<u16>,
    pub src_public_key: Option<PublicKey>,
    pub dst_ip: Option<IpAddr>,
    pub dst_port: Option<u16>,
    pub dst_public_key: Option<PublicKey>,
    pub mtu: Option<u16>,
    pub endpoints: Vec<SocketAddr>,
}

impl WireguardParameters {
    pub fn from_mechanism(mechanism: &Mechanism) -> Result<Self, FieldError> {
        let map = &mechanism.parameters;
        Ok(Self {
            src_ip: parsed(map, "src_ip", ADDRESS)?,
            src_port: port(map, "src_port")?,
            src_public_key: key(map, "src_public_key")?,
            dst_ip: parsed(map, "dst_ip", ADDRESS)?,
            dst_port: port(map, "dst_port")?,
            dst_public_key: key(map, "dst_public_key")?,
            mtu: mechanism_mtu(map)?,
            endpoints: endpoints(map)?,
        })
    }

    pub fn into_mechanism(self) -> Mechanism {
        let mut map = BTreeMap::new();
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                map.insert(name.to_owned(), value);
            }
        };
        set("src_ip", self.src_ip.map(|ip| ip.to_string()));
        set("src_port", self.src_port.map(|port| port.to_string()));
        set(
            "src_public_key",
            self.src_public_key.map(|key| STANDARD.encode(key.0)),
        );
        set("dst_ip", self.dst_ip.map(|ip| ip.to_string()));
        set("dst_port", self.dst_port.map(|port| port.to_string()));
        set(
            "dst_public_key",
            self.dst_public_key.map(|key| STANDARD.encode(key.0)),
        );
        set("MTU", self.mtu.map(|mtu| mtu.to_string()));
        let list: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        set(VL3_ENDPOINTS, (!list.is_empty()).then(|| list.join(",")));
        Mechanism {
            cls: REMOTE.to_owned(),
            r#type: WIREGUARD.to_owned(),
            parameters: map,
        }
    }
}

fn present<'a>(map: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    map.get(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

fn field(name: &str) -> String {
    format!("mechanism.parameters[{name:?}]")
}

fn parsed<T: std::str::FromStr>(
    map: &BTreeMap<String, String>,
    name: &str,
    allowed: &'static str,
) -> Result<Option<T>, FieldError> {
    present(map, name)
        .map(|value| {
            value
                .parse()
                .map_err(|_| FieldError::new(field(name), value, allowed))
        })
        .transpose()
}

fn port(map: &BTreeMap<String, String>, name: &str) -> Result<Option<u16>, FieldError> {
    match parsed::<u16>(map, name, PORT)? {
        Some(0) => Err(FieldError::new(field(name), "0", PORT)),
        other => Ok(other),
    }
}

fn key(map: &BTreeMap<String, String>, name: &str) -> Result<Option<PublicKey>, FieldError> {
    present(map, name)
        .map(|value| {
            let bytes = STANDARD
                .decode(value)
                .ok()
                .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            match bytes {
                Some(bytes) if bytes != [0; 32] => Ok(PublicKey(bytes)),
                _ => Err(FieldError::new(field(name), value, KEY)),
            }
        })
        .transpose()
}

/// The `MTU` parameter of a mechanism, 0 reads as unset.
pub fn mechanism_mtu(map: &BTreeMap<String, String>) -> Result<Option<u16>, FieldError> {
    const ALLOWED: &str = "0 (unset) or 576 to 65535";
    match parsed::<u16>(map, "MTU", ALLOWED)? {
        Some(0) | None => Ok(None),
        Some(mtu) if mtu < 576 => Err(FieldError::new(field("MTU"), mtu.to_string(), ALLOWED)),
        other => Ok(other),
    }
}

fn endpoints(map: &BTreeMap<String, String>) -> Result<Vec<SocketAddr>, FieldError> {
    const MAX: usize = 8;
    const ALLOWED: &str = "at most 8 ip:port, comma between";
    let Some(list) = present(map, VL3_ENDPOINTS) else {
        return Ok(Vec::new());
    };
    let bad = || FieldError::new(field(VL3_ENDPOINTS), list, ALLOWED);
    let all: Vec<SocketAddr> = list
        .split(',')
        .map(|one| one.trim().parse().map_err(|_| bad()))
        .collect::<Result<_, _>>()?;
    if all.len() > MAX { Err(bad()) } else { Ok(all) }
}

/// What the router answers to a TUN Request: where to bring the descriptor, and the one-use
/// ticket to show there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunAnswer {
    pub ticket: [u8; 16],
    pub socket: PathBuf,
}

impl TunAnswer {
    pub fn into_mechanism(self, mut parameters: BTreeMap<String, String>) -> Mechanism {
        let ticket: String = self
            .ticket
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        parameters.insert("fdTicket".to_owned(), ticket);
        parameters.insert(
            "fdSocket".to_owned(),
            self.socket.to_string_lossy().into_owned(),
        );
        Mechanism {
            cls: LOCAL.to_owned(),
            r#type: TUN.to_owned(),
            parameters,
        }
    }

    /// Unset where the answer carries no ticket (nothing to attach: the descriptor is live).
    pub fn from_mechanism(mechanism: &Mechanism) -> Result<Option<Self>, FieldError> {
        const TICKET: &str = "32 hexadecimal digits";
        const SOCKET: &str = "an absolute path of at most 107 bytes";
        let map = &mechanism.parameters;
        let Some(text) = present(map, "fdTicket") else {
            return Ok(None);
        };
        let ticket = text
            .parse::<vl3_core::ids::InstanceId>()
            .map_err(|_| FieldError::new(field("fdTicket"), text, TICKET))?;
        let socket = present(map, "fdSocket").unwrap_or_default();
        if !socket.starts_with('/') || socket.len() > 107 {
            return Err(FieldError::new(field("fdSocket"), socket, SOCKET));
        }
        Ok(Some(Self {
            ticket: ticket.0,
            socket: PathBuf::from(socket),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> WireguardParameters {
        WireguardParameters {
            src_ip: Some([10, 0, 0, 1].into()),
            src_port: Some(51820),
            src_public_key: Some(PublicKey([7; 32])),
            dst_ip: Some("fd00::1".parse().unwrap()),
            dst_port: Some(4500),
            dst_public_key: Some(PublicKey([8; 32])),
            mtu: Some(1420),
            endpoints: vec!["10.0.0.2:51820".parse().unwrap()],
        }
    }

    #[test]
    fn wireguard_parameters_round_trip() {
        let mechanism = full().into_mechanism();
        assert_eq!(
            (mechanism.cls.as_str(), mechanism.r#type.as_str()),
            (REMOTE, WIREGUARD)
        );
        assert_eq!(
            WireguardParameters::from_mechanism(&mechanism).unwrap(),
            full()
        );
    }

    #[test]
    fn empty_values_read_as_unset() {
        let mut mechanism = full().into_mechanism();
        mechanism
            .parameters
            .insert("dst_ip".to_owned(), String::new());
        assert_eq!(
            WireguardParameters::from_mechanism(&mechanism)
                .unwrap()
                .dst_ip,
            None
        );
    }

    #[test]
    fn each_bad_parameter_is_named() {
        for (name, value) in [
            ("src_ip", "10.0.0"),
            ("src_port", "0"),
            ("dst_port", "70000"),
            ("src_public_key", "short"),
            ("dst_public_key", &STANDARD.encode([0; 32])),
            ("MTU", "100"),
            ("vl3-endpoints", "nowhere"),
        ] {
            let mut mechanism = full().into_mechanism();
            mechanism
                .parameters
                .insert(name.to_owned(), value.to_owned());
            let error = WireguardParameters::from_mechanism(&mechanism).unwrap_err();
            assert!(error.field.contains(name), "{error}");
        }
    }

    #[test]
    fn a_tun_answer_round_trips_and_a_relative_socket_is_refused() {
        let answer = TunAnswer {
            ticket: [9; 16],
            socket: PathBuf::from("/run/vl3/router-a/fd.sock"),
        };
        let mut mechanism = answer.clone().into_mechanism(BTreeMap::new());
        assert_eq!(TunAnswer::from_mechanism(&mechanism).unwrap(), Some(answer));
        mechanism
            .parameters
            .insert("fdSocket".to_owned(), "fd.sock".to_owned());
        assert!(TunAnswer::from_mechanism(&mechanism).is_err());
        mechanism.parameters.clear();
        assert_eq!(TunAnswer::from_mechanism(&mechanism).unwrap(), None);
    }
}
