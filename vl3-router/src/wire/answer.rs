//! The machine's answer as an NSM Connection.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use vl3_core::router::{Answer, LinkAnswer, MechanismAnswer, WorkloadAnswer};
use vl3_proto::connection::{Connection, Mechanism};
use vl3_proto::connectioncontext::{DnsConfig, DnsContext, IpContext, Route};
use vl3_proto::{FieldError, HELLO_KEY, TunAnswer, WireguardParameters};

use super::hello;
use super::request::Expected;

/// Fills the connection that was asked for with what the machine granted.
pub(crate) fn to_connection(
    mut connection: Connection,
    chosen: Mechanism,
    answer: Answer,
    expected: &Expected,
    fd_socket: &Path,
) -> Result<Connection, FieldError> {
    expected
        .router
        .as_str()
        .clone_into(&mut connection.network_service_endpoint_name);
    "IP".clone_into(&mut connection.payload);
    match answer {
        Answer::Workload(answer) => fill_workload(&mut connection, chosen, answer, fd_socket)?,
        Answer::Link(answer) => fill_link(&mut connection, &chosen, &answer)?,
        Answer::Closed => {}
    }
    Ok(connection)
}

fn fill_workload(
    connection: &mut Connection,
    chosen: Mechanism,
    answer: WorkloadAnswer,
    fd_socket: &Path,
) -> Result<(), FieldError> {
    let context = connection.context.get_or_insert_default();
    context.mtu = u32::from(answer.mtu);
    let search_domains = vec![answer.search];
    let dns_server_ips = answer.dns_servers.iter().map(IpAddr::to_string).collect();
    context.dns_context = Some(DnsContext {
        configs: vec![DnsConfig {
            dns_server_ips,
            search_domains,
        }],
    });
    if let Some(value) = context.extra_context.get_mut(HELLO_KEY) {
        *value = hello::to_wire(answer.hello).encode();
    }
    let excluded = context
        .ip_context
        .take()
        .unwrap_or_default()
        .excluded_prefixes;
    context.ip_context = Some(IpContext {
        src_ip_addrs: texts(&answer.addresses),
        dst_ip_addrs: texts(&answer.router),
        src_routes: src_routes(&answer.router, &answer.routes),
        dst_routes: answer
            .addresses
            .iter()
            .map(|net| route(*net, None))
            .collect(),
        excluded_prefixes: excluded,
        ..IpContext::default()
    });
    connection.mechanism = Some(match answer.mechanism {
        MechanismAnswer::Tun { secret } => TunAnswer {
            ticket: secret,
            socket: fd_socket.to_owned(),
        }
        .into_mechanism(chosen.parameters),
        MechanismAnswer::WireGuard {
            public_key,
            address,
            port,
        } => {
            let mut parameters = WireguardParameters::from_mechanism(&chosen)?;
            parameters.dst_ip = Some(address);
            parameters.dst_port = Some(port);
            parameters.dst_public_key = Some(public_key);
            parameters.mtu = Some(answer.mtu);
            parameters.into_mechanism()
        }
    });
    Ok(())
}

fn fill_link(
    connection: &mut Connection,
    chosen: &Mechanism,
    answer: &LinkAnswer,
) -> Result<(), FieldError> {
    let context = connection.context.get_or_insert_default();
    context.mtu = u32::from(answer.mtu);
    context.extra_context.insert(
        HELLO_KEY.to_owned(),
        hello::to_wire(answer.hello.clone()).encode(),
    );
    let ip = context.ip_context.get_or_insert_default();
    ip.dst_ip_addrs = texts(&answer.router);
    let mut parameters = WireguardParameters::from_mechanism(chosen)?;
    parameters.dst_ip = Some(answer.address);
    parameters.dst_port = Some(answer.port);
    parameters.dst_public_key = Some(answer.public_key);
    parameters.mtu = Some(answer.mtu);
    connection.mechanism = Some(parameters.into_mechanism());
    Ok(())
}

/// The router itself first, then the network's pools by way of it (vl3-behaviour 4.3).
fn src_routes(router: &[IpNet], pools: &[IpNet]) -> Vec<Route> {
    let via = |net: &IpNet| {
        router
            .iter()
            .map(IpNet::addr)
            .find(|address| address.is_ipv4() == net.addr().is_ipv4())
    };
    router
        .iter()
        .chain(pools)
        .map(|net| route(*net, via(net)))
        .collect()
}

fn route(prefix: IpNet, next_hop: Option<IpAddr>) -> Route {
    Route {
        prefix: prefix.to_string(),
        next_hop: next_hop
            .map(|address| address.to_string())
            .unwrap_or_default(),
    }
}

fn texts(nets: &[IpNet]) -> Vec<String> {
    nets.iter().map(IpNet::to_string).collect()
}
