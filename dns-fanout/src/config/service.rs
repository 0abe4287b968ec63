//! `[[service]]`: which workloads of the own domain stand behind a service (R1.7).

use std::collections::BTreeSet;

use vl3_core::ids::{DomainName, WorkloadName};
use vl3_core::names::{
    Endpoint, LABEL_OCTETS_MAX, ResolverState, Service, ServiceKind, ServiceName, ServicePort,
    Services,
};
use vl3_runtime::Section;
use vl3_runtime::config::Value;

/// Services of one domain, and workloads behind one of them.
const SERVICES_MAX: usize = 1_000;
const WORKLOADS_MAX: usize = 1_000;
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// A service as the domain's operator exports it. Who is attached under one of the names is an
/// endpoint; names are bound to identities, so nobody gets in by himself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub name: ServiceName,
    pub ports: Vec<ServicePort>,
    pub workloads: Vec<WorkloadName>,
}

/// `NAME=PORT` or `NAME=PORT/PROTOCOL`.
struct Port(ServicePort);

impl Value for Port {
    const ALLOWED: &'static str =
        "NAME=PORT or NAME=PORT/PROTOCOL with tcp, udp or sctp, as http=8080";

    fn from_text(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once('=')?;
        let (port, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        // It stands behind an underscore.
        let fits = is_label(name) && name.len() < LABEL_OCTETS_MAX && PROTOCOLS.contains(&protocol);
        fits.then(|| {
            Self(ServicePort {
                name: name.to_owned(),
                protocol: protocol.to_owned(),
                port,
            })
        })
    }
}

/// All of them; `has_router`: whether it is known who is attached.
pub(super) fn read(section: &mut Section<'_>, has_router: bool) -> Vec<Export> {
    let exports = section.tables("service", |service| {
        let name = label(service, "name");
        let namespace = label(service, "namespace");
        let ports = service.list::<Port>("ports");
        let workloads = service.list_required::<WorkloadName>("workloads");
        let count = workloads.as_ref().map_or(0, Vec::len);
        if count > WORKLOADS_MAX {
            service.problem("workloads", Some(count.to_string()), "at most 1,000 names");
        }
        Some(Export {
            name: ServiceName {
                namespace: namespace?,
                name: name?,
            },
            ports: ports.into_iter().map(|port| port.0).collect(),
            workloads: workloads?,
        })
    });
    let count = exports.len();
    if count > SERVICES_MAX {
        section.problem("service", Some(count.to_string()), "at most 1,000 tables");
    }
    if count > 0 && !has_router {
        let allowed = "no table without the key router: who is attached is known there";
        section.problem("service", Some(count.to_string()), allowed);
    }
    let mut known = BTreeSet::new();
    for (at, export) in exports.iter().enumerate() {
        let Some(ServiceName { namespace, name }) = export.as_ref().map(|export| &export.name)
        else {
            continue;
        };
        if !known.insert((namespace.to_ascii_lowercase(), name.to_ascii_lowercase())) {
            section.problem(
                &format!("service[{at}].name"),
                Some(format!("{name:?}")),
                "another name than the other tables of this namespace",
            );
        }
    }
    exports.into_iter().flatten().collect()
}

fn label(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let text = section.required::<String>(key)?;
    if is_label(&text) {
        return Some(text);
    }
    let allowed = "1 to 63 letters, digits and hyphens, which stand neither first nor last";
    section.problem(key, Some(format!("{text:?}")), allowed);
    None
}

fn is_label(text: &str) -> bool {
    (1..=LABEL_OCTETS_MAX).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// What the own domain has of these: an endpoint for each workload that is attached.
pub(crate) fn services(exports: &[Export], state: &ResolverState) -> Services {
    Services::new(exports.iter().map(|export| {
        let attached = export.workloads.iter().filter_map(|workload| {
            let local = state.names.get(workload)?;
            Some(endpoint(
                &state.domain,
                workload,
                local.addresses.iter().copied().collect(),
            ))
        });
        let service = Service {
            kind: ServiceKind::Headless {
                endpoints: attached.collect(),
            },
            ports: export.ports.clone(),
        };
        (export.name.clone(), service)
    }))
}

fn endpoint(
    domain: &DomainName,
    workload: &WorkloadName,
    addresses: BTreeSet<std::net::IpAddr>,
) -> Endpoint {
    Endpoint {
        hostname: Some(workload.to_string()),
        cluster: domain.to_string(),
        addresses,
        ready: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_name_a_number_and_a_protocol() {
        let port = |text: &str| {
            Port::from_text(text).map(|port| (port.0.name, port.0.port, port.0.protocol))
        };
        let is = |name: &str, number, protocol: &str| {
            Some((name.to_owned(), number, protocol.to_owned()))
        };
        assert_eq!(port("http=8080"), is("http", 8080, "tcp"));
        assert_eq!(port("dns=53/udp"), is("dns", 53, "udp"));
        for wrong in [
            "http",
            "=80",
            "http=0",
            "http=70000",
            "http=80/icmp",
            "a_b=80",
            "-a=80",
        ] {
            assert_eq!(port(wrong), None, "{wrong}");
        }
    }
}
