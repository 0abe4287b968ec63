//! Registry objects in core types, as NSM v1 states them (services and endpoints).

use std::collections::BTreeMap;

use crate::ids::{DomainName, Generation, NetworkUid};
use crate::time::Wall;

pub type Labels = BTreeMap<String, String>;

/// A network service: a name and how its clients choose among endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// `IP` when unset at registration.
    pub payload: String,
    pub matches: Vec<Match>,
    /// SPIFFE IDs of the registration path; the first is the owner.
    pub path_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    pub source_selector: Labels,
    pub routes: Vec<Destination>,
    pub fallthrough: bool,
    pub metadata: Option<Labels>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    pub selector: Labels,
    pub weight: u32,
}

/// Something that serves network services at a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub name: String,
    pub services: Vec<String>,
    /// Labels per service.
    pub labels: BTreeMap<String, Labels>,
    pub url: String,
    /// When the name was registered first; kept until it is unregistered.
    pub registered: Option<Wall>,
    pub path_ids: Vec<String>,
}

/// What an element of a list or map costs beside its text.
const ELEMENT: usize = 16;

fn text(text: &str) -> usize {
    text.len() + ELEMENT
}

pub(super) fn texts<'a>(list: impl IntoIterator<Item = &'a String>) -> usize {
    list.into_iter().map(|element| text(element)).sum()
}

fn labels_size(labels: &Labels) -> usize {
    let pairs = labels.iter();
    pairs.map(|(key, value)| text(key) + text(value)).sum()
}

pub(super) fn labels_per_service_size(labels: &BTreeMap<String, Labels>) -> usize {
    let services = labels.iter();
    services
        .map(|(service, labels)| text(service) + labels_size(labels))
        .sum()
}

impl Service {
    /// The measure of its size limit.
    pub fn size(&self) -> usize {
        text(&self.name)
            + text(&self.payload)
            + texts(&self.path_ids)
            + self.matches.iter().map(Match::size).sum::<usize>()
    }
}

impl Match {
    pub(super) fn size(&self) -> usize {
        let routes = self.routes.iter();
        ELEMENT
            + labels_size(&self.source_selector)
            + self.metadata.as_ref().map_or(0, labels_size)
            + routes
                .map(|route| ELEMENT + labels_size(&route.selector))
                .sum::<usize>()
    }
}

impl Endpoint {
    /// The measure of its size limit: empty texts count as well.
    pub fn size(&self) -> usize {
        text(&self.name)
            + text(&self.url)
            + texts(self.services.iter().chain(&self.path_ids))
            + labels_per_service_size(&self.labels)
    }
}

/// What our own routers say about themselves in the labels of one service key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The network's name: the key of the labels.
    pub service: String,
    /// Protocol version range `min-max`; its presence is the marker of our own kind.
    pub proto: String,
    /// `router` or `leaf`.
    pub role: String,
    pub uid: NetworkUid,
    pub domain: DomainName,
    /// The stable router name.
    pub name: String,
    pub generation: Generation,
    pub dials_only: bool,
    /// `ip:port` of the WireGuard socket, where it is known.
    pub udp: Option<String>,
}

pub const LABEL_PROTO: &str = "vl3/proto";
pub const LABEL_ROLE: &str = "vl3/role";
pub const LABEL_UID: &str = "vl3/uid";
pub const LABEL_DOMAIN: &str = "vl3/domain";
pub const LABEL_NAME: &str = "vl3/name";
pub const LABEL_GENERATION: &str = "vl3/gen";
pub const LABEL_DIALS_ONLY: &str = "vl3/dials-only";
pub const LABEL_UDP: &str = "vl3/udp";

impl Marks {
    /// The marks of an endpoint, if it is of our own kind; an unparsable one has none.
    pub fn of(endpoint: &Endpoint) -> Option<Self> {
        endpoint
            .labels
            .iter()
            .find_map(|(service, labels)| Self::parse(service, labels))
    }

    pub fn parse(service: &str, labels: &Labels) -> Option<Self> {
        let get = |key: &str| labels.get(key).map(String::as_str);
        Some(Self {
            service: service.to_owned(),
            proto: get(LABEL_PROTO)?.to_owned(),
            role: get(LABEL_ROLE)?.to_owned(),
            uid: get(LABEL_UID)?.parse().ok()?,
            domain: DomainName::new(get(LABEL_DOMAIN)?).ok()?,
            name: get(LABEL_NAME)?.to_owned(),
            generation: Generation(get(LABEL_GENERATION)?.parse().ok()?),
            dials_only: get(LABEL_DIALS_ONLY) == Some("true"),
            udp: get(LABEL_UDP)
                .filter(|udp| !udp.is_empty())
                .map(str::to_owned),
        })
    }

    pub fn labels(&self) -> Labels {
        let mut labels = Labels::from([
            (LABEL_PROTO.to_owned(), self.proto.clone()),
            (LABEL_ROLE.to_owned(), self.role.clone()),
            (LABEL_UID.to_owned(), self.uid.to_string()),
            (LABEL_DOMAIN.to_owned(), self.domain.to_string()),
            (LABEL_NAME.to_owned(), self.name.clone()),
            (LABEL_GENERATION.to_owned(), self.generation.to_string()),
        ]);
        if self.dials_only {
            labels.insert(LABEL_DIALS_ONLY.to_owned(), "true".to_owned());
        }
        if let Some(udp) = &self.udp {
            labels.insert(LABEL_UDP.to_owned(), udp.clone());
        }
        labels
    }
}
