//! What a remote domain's endpoint must be to be believed.

use std::net::IpAddr;

use crate::document::{Document, Member};
use crate::ids::{NetworkUid, RouterName};
use crate::registry::{Endpoint, Marks};

/// Why an endpoint is not taken: the field and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Disbelief {
    pub field: &'static str,
    pub reason: String,
}

/// Whether `member`, whose registry speaks, may offer this endpoint in the network.
pub fn believe(
    endpoint: &Endpoint,
    uid: NetworkUid,
    document: &Document,
    member: &Member,
    bytes_max: usize,
) -> Result<(), Disbelief> {
    let no = |field, reason: String| Err(Disbelief { field, reason });
    if endpoint.size() > bytes_max {
        return no(
            "size",
            format!("{} bytes, at most {bytes_max} are taken", endpoint.size()),
        );
    }
    if RouterName::new(&endpoint.name)
        .map(|name| name.to_string())
        .as_deref()
        != Ok(endpoint.name.as_str())
    {
        return no("name", format!("{:?} is no router name", endpoint.name));
    }
    if endpoint.services != [document.name.as_str()]
        || endpoint
            .labels
            .keys()
            .any(|key| key != document.name.as_str())
    {
        return no(
            "network_service_names",
            format!("{:?}, only {} is granted", endpoint.services, document.name),
        );
    }
    let Some(marks) = Marks::of(endpoint) else {
        return no("network_service_labels", "no router of our kind".to_owned());
    };
    if marks.uid != uid || marks.uid != document.uid {
        return no(
            "vl3/uid",
            format!("{} is not the network's {uid}", marks.uid),
        );
    }
    if marks.domain != member.domain {
        return no(
            "vl3/domain",
            format!("{} is not the speaker's {}", marks.domain, member.domain),
        );
    }
    if marks.name != endpoint.name {
        return no(
            "vl3/name",
            format!("{} is not the endpoint's {}", marks.name, endpoint.name),
        );
    }
    check_url(endpoint, document, member)
}

/// A router that can be dialled says so by `tcp://host:port`, outside of the overlay and of
/// what every host has for itself (unless the domain's own contacts are there too).
fn check_url(endpoint: &Endpoint, document: &Document, member: &Member) -> Result<(), Disbelief> {
    let url = &endpoint.url;
    let no = |reason: &str| {
        Err(Disbelief {
            field: "url",
            reason: format!("{url:?} {reason}"),
        })
    };
    let Some((host, port)) = url
        .strip_prefix("tcp://")
        .and_then(|rest| rest.rsplit_once(':'))
    else {
        return no("is not of the form tcp://host:port");
    };
    if !port.parse::<u16>().is_ok_and(|port| port > 0)
        || host.is_empty()
        || host.contains(['/', '@'])
    {
        return no("is not of the form tcp://host:port");
    }
    let address: Option<IpAddr> = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok();
    let Some(address) = address else {
        return Ok(());
    };
    if address.is_unspecified() || address.is_multicast() {
        return no("names no host");
    }
    let in_overlay = match address {
        IpAddr::V4(v4) => document.pool4.is_some_and(|pool| pool.contains(&v4)),
        IpAddr::V6(v6) => document.pool6.contains(&v6),
    };
    if in_overlay {
        return no("lies inside the network itself");
    }
    let own_contact = |contact: &String| {
        let host = contact.rsplit_once(':').map_or("", |(host, _)| host);
        host.trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
    };
    if address.is_loopback() && !member.contacts.iter().any(own_contact) {
        return no("is a loopback address");
    }
    Ok(())
}
