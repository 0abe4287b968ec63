//! An NSM Request as the machine takes it.

use core::time::Duration;
use std::net::IpAddr;

use nsm_chain::{Error, Peer};
use vl3_core::ids::{NetworkName, RouterName, SpiffeId, WorkloadName};
use vl3_core::router::{ConnectionId, MechanismWish, Request};
use vl3_proto::connection::{Connection, Mechanism};
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_proto::{
    FieldError, Hello, LOCAL, REMOTE, TUN, WIREGUARD, WireguardParameters, prefixes, single_address,
};

use super::hello;

/// What a Request is checked against.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) network: NetworkName,
    pub(crate) router: RouterName,
}

/// Addresses and prefixes in one context; more are refused.
const LIST_MAX: usize = 256;

/// The machine's request, and the mechanism that was chosen (its parameters go back in the
/// answer).
pub(crate) fn to_core(
    expected: &Expected,
    message: &NetworkServiceRequest,
    peer: &Peer,
    claimed: Option<SpiffeId>,
    expires_in: Duration,
    secret: [u8; 16],
) -> Result<(Request, Mechanism), Error> {
    let connection = message
        .connection
        .as_ref()
        .ok_or_else(|| Error::Invalid("connection: must be set".to_owned()))?;
    check_target(expected, connection)?;
    let context = connection.context.clone().unwrap_or_default();
    let ip = context.ip_context.unwrap_or_default();
    bounded("context.ip_context.src_ip_addrs", ip.src_ip_addrs.len())?;
    bounded(
        "context.ip_context.excluded_prefixes",
        ip.excluded_prefixes.len(),
    )?;
    let addresses = ip
        .src_ip_addrs
        .iter()
        .enumerate()
        .map(|(at, one)| single_address(&format!("context.ip_context.src_ip_addrs[{at}]"), one))
        .collect::<Result<Vec<IpAddr>, FieldError>>()?;
    // Routes are ours to give, but malformed ones show a broken peer early.
    for (field, routes) in [
        ("src_routes", &ip.src_routes),
        ("dst_routes", &ip.dst_routes),
    ] {
        bounded(&format!("context.ip_context.{field}"), routes.len())?;
        for (at, route) in routes.iter().enumerate() {
            vl3_proto::prefix(
                &format!("context.ip_context.{field}[{at}].prefix"),
                &route.prefix,
            )?;
        }
    }
    let excluded = prefixes(
        "context.ip_context.excluded_prefixes",
        &ip.excluded_prefixes,
    )?;
    // A stock client sends the context of the last answer back, our own Hello with it.
    let echo = |hello: &Hello| {
        hello.role == vl3_proto::HelloRole::Router && hello.name == expected.router.as_str()
    };
    let wire_hello =
        Hello::from_extra_context(&context.extra_context)?.filter(|hello| !echo(hello));
    let workload = claimed.as_ref().unwrap_or(&peer.id);
    let name = workload_name(connection, wire_hello.as_ref(), workload)?;
    let (mechanism, wish, mechanism_mtu) = choose(message, connection, peer, secret)?;
    let request = Request {
        connection: ConnectionId::new(&connection.id)
            .map_err(|error| FieldError::new("connection.id", error.value, error.allowed))?,
        peer: peer.id.clone(),
        claimed,
        hello: wire_hello.map(hello::to_core).transpose()?,
        name,
        mechanism: wish,
        addresses,
        excluded,
        mtu: smaller(
            u16::try_from(context.mtu).unwrap_or(u16::MAX),
            mechanism_mtu,
        ),
        expires_in,
        local: peer.local,
    };
    Ok((request, mechanism))
}

fn bounded(field: &str, count: usize) -> Result<(), Error> {
    if count > LIST_MAX {
        return Err(Error::Invalid(format!(
            "{field}: {count} entries are not allowed: at most {LIST_MAX}"
        )));
    }
    Ok(())
}

fn check_target(expected: &Expected, connection: &Connection) -> Result<(), Error> {
    if connection.network_service != expected.network.as_str() {
        return Err(FieldError::new(
            "connection.network_service",
            &connection.network_service,
            "the name of this router's network",
        )
        .into());
    }
    let endpoint = &connection.network_service_endpoint_name;
    if !endpoint.is_empty() && endpoint != expected.router.as_str() {
        return Err(FieldError::new(
            "connection.network_service_endpoint_name",
            endpoint,
            "empty, or the name of this router",
        )
        .into());
    }
    if !matches!(connection.payload.as_str(), "" | "IP") {
        return Err(FieldError::new("connection.payload", &connection.payload, "IP").into());
    }
    Ok(())
}

/// Label `podName`, else the Hello's name, else the last part of the SPIFFE ID; none where
/// that is no label.
fn workload_name(
    connection: &Connection,
    hello: Option<&Hello>,
    peer: &SpiffeId,
) -> Result<Option<WorkloadName>, Error> {
    if let Some(name) = connection.labels.get("podName") {
        return WorkloadName::new(name).map(Some).map_err(|error| {
            FieldError::new("connection.labels[\"podName\"]", error.value, error.allowed).into()
        });
    }
    if let Some(hello) = hello {
        return WorkloadName::new(&hello.name)
            .map(Some)
            .or_else(|error| {
                // A router's name may have dots and underscores; it takes no record.
                if hello.role == vl3_proto::HelloRole::Router {
                    Ok(None)
                } else {
                    Err(error)
                }
            })
            .map_err(|error| FieldError::new("hello.name", error.value, error.allowed).into());
    }
    Ok(peer
        .path()
        .rsplit('/')
        .next()
        .and_then(|last| WorkloadName::new(last).ok()))
}

/// The mechanism in the connection alone, if it is set; else the first preference that this
/// router serves (nsm-wire section 2).
fn choose(
    message: &NetworkServiceRequest,
    connection: &Connection,
    peer: &Peer,
    secret: [u8; 16],
) -> Result<(Mechanism, MechanismWish, Option<u16>), Error> {
    if let Some(mechanism) = connection
        .mechanism
        .as_ref()
        .filter(|mechanism| !mechanism.r#type.is_empty())
    {
        return wish(mechanism, peer, secret)?
            .ok_or_else(|| unsupported("mechanism", mechanism, peer));
    }
    for mechanism in &message.mechanism_preferences {
        if let Some(chosen) = wish(mechanism, peer, secret)? {
            return Ok(chosen);
        }
    }
    let offered: Vec<String> = message
        .mechanism_preferences
        .iter()
        .map(|one| format!("{}/{}", one.cls, one.r#type))
        .collect();
    Err(FieldError::new("mechanism_preferences", offered.join(", "), served(peer)).into())
}

fn unsupported(field: &str, mechanism: &Mechanism, peer: &Peer) -> Error {
    FieldError::new(
        field,
        format!("{}/{}", mechanism.cls, mechanism.r#type),
        served(peer),
    )
    .into()
}

const fn served(peer: &Peer) -> &'static str {
    if peer.local.is_none() {
        "LOCAL/TUN or REMOTE/WIREGUARD"
    } else {
        "REMOTE/WIREGUARD (LOCAL/TUN only on the unix socket)"
    }
}

type Chosen = (Mechanism, MechanismWish, Option<u16>);

/// Unset for a mechanism that this router does not serve here.
fn wish(mechanism: &Mechanism, peer: &Peer, secret: [u8; 16]) -> Result<Option<Chosen>, Error> {
    match (mechanism.cls.as_str(), mechanism.r#type.as_str()) {
        (LOCAL, TUN) if peer.local.is_none() => {
            let mtu = vl3_proto::mechanism_mtu(&mechanism.parameters)?;
            Ok(Some((
                mechanism.clone(),
                MechanismWish::Tun { secret },
                mtu,
            )))
        }
        (REMOTE, WIREGUARD) => {
            let parameters = WireguardParameters::from_mechanism(mechanism)?;
            let public_key = parameters.src_public_key.ok_or_else(|| {
                FieldError::new(
                    "mechanism.parameters[\"src_public_key\"]",
                    "",
                    "the client's WireGuard key",
                )
            })?;
            Ok(Some((
                mechanism.clone(),
                MechanismWish::WireGuard { public_key },
                parameters.mtu,
            )))
        }
        _ => Ok(None),
    }
}

fn smaller(context: u16, mechanism: Option<u16>) -> u16 {
    match (context, mechanism) {
        (0, Some(mtu)) => mtu,
        (mtu, None) => mtu,
        (context, Some(mechanism)) => context.min(mechanism),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vl3_core::ids::PublicKey;
    use vl3_proto::connectioncontext::{ConnectionContext, IpContext, Route};

    use super::*;

    fn expected() -> Expected {
        Expected {
            network: NetworkName::new("red").unwrap(),
            router: RouterName::new("red-east").unwrap(),
        }
    }

    fn peer(local: Option<IpAddr>) -> Peer {
        Peer {
            id: SpiffeId::new("spiffe://east.test/workload/alpha").unwrap(),
            certificate: Vec::new().into(),
            token: None,
            local,
            token_expires: None,
        }
    }

    fn wireguard() -> Mechanism {
        WireguardParameters {
            src_public_key: Some(PublicKey([7; 32])),
            mtu: Some(1400),
            ..Default::default()
        }
        .into_mechanism()
    }

    fn request(change: impl FnOnce(&mut Connection)) -> NetworkServiceRequest {
        let mut connection = Connection {
            id: "c".into(),
            network_service: "red".into(),
            ..Connection::default()
        };
        change(&mut connection);
        NetworkServiceRequest {
            connection: Some(connection),
            mechanism_preferences: vec![wireguard()],
        }
    }

    fn convert(message: &NetworkServiceRequest, local: Option<IpAddr>) -> Result<Request, Error> {
        to_core(
            &expected(),
            message,
            &peer(local),
            None,
            Duration::from_secs(60),
            [1; 16],
        )
        .map(|(request, _)| request)
    }

    #[test]
    fn a_stock_request_is_named_after_its_identity() {
        let got = convert(&request(|_| {}), Some([10, 0, 0, 1].into())).unwrap();
        assert_eq!(got.name.unwrap().as_str(), "alpha");
        assert_eq!((got.hello, got.mtu), (None, 1400));
    }

    #[test]
    fn a_refresh_that_carries_our_own_hello_back_keeps_its_name() {
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            uid: vl3_core::ids::NetworkUid([1; 16]),
            domain: "east".parse().unwrap(),
            name: expected().router.to_string(),
            instance: vl3_core::ids::InstanceId([2; 16]),
            generation: vl3_core::ids::Generation(1),
            dials_only: false,
            role: vl3_proto::HelloRole::Router,
        };
        let got = convert(
            &request(|c| {
                let extra_context =
                    BTreeMap::from([(vl3_proto::HELLO_KEY.to_owned(), hello.encode())]);
                c.context = Some(ConnectionContext {
                    extra_context,
                    ..Default::default()
                });
            }),
            Some([10, 0, 0, 1].into()),
        )
        .unwrap();
        assert_eq!((got.name.unwrap().as_str(), got.hello), ("alpha", None));
    }

    #[test]
    fn each_wrong_field_is_named() {
        let with_ip = |ip: IpContext| {
            move |c: &mut Connection| {
                c.context = Some(ConnectionContext {
                    ip_context: Some(ip),
                    ..Default::default()
                })
            }
        };
        let bad = |text: &str| vec![text.to_owned()];
        let route = Route {
            prefix: "10.0.0.0/99".into(),
            next_hop: String::new(),
        };
        let cases: Vec<(NetworkServiceRequest, &str)> = vec![
            (
                request(|c| c.network_service = "blue".into()),
                "network_service",
            ),
            (
                request(|c| c.network_service_endpoint_name = "red-west".into()),
                "network_service_endpoint_name",
            ),
            (request(|c| c.payload = "ETHERNET".into()), "payload"),
            (
                request(|c| c.labels = BTreeMap::from([("podName".into(), "a b".into())])),
                "podName",
            ),
            (
                request(with_ip(IpContext {
                    src_ip_addrs: bad("10.0.0.0/8"),
                    ..Default::default()
                })),
                "src_ip_addrs[0]",
            ),
            (
                request(with_ip(IpContext {
                    excluded_prefixes: bad("x"),
                    ..Default::default()
                })),
                "excluded_prefixes[0]",
            ),
            (
                request(with_ip(IpContext {
                    src_routes: vec![route],
                    ..Default::default()
                })),
                "src_routes[0].prefix",
            ),
            (
                request(|c| {
                    c.mechanism = Some(Mechanism {
                        cls: LOCAL.into(),
                        r#type: "KERNEL".into(),
                        ..Default::default()
                    })
                }),
                "mechanism",
            ),
        ];
        for (message, field) in cases {
            let error = convert(&message, None).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn tun_is_served_on_the_unix_socket_only() {
        let mut message = request(|_| {});
        let tun = Mechanism {
            cls: LOCAL.into(),
            r#type: TUN.into(),
            ..Mechanism::default()
        };
        message.mechanism_preferences = vec![tun];
        let got = convert(&message, None).unwrap();
        assert_eq!(got.mechanism, MechanismWish::Tun { secret: [1; 16] });
        let error = convert(&message, Some([10, 0, 0, 1].into()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("only on the unix socket"), "{error}");
    }
}
