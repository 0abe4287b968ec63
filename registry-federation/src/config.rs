//! The role's configuration.

use std::path::PathBuf;
use std::time::Duration;

use crate::store::StoreConfig;
use ipnet::IpNet;
use vl3_core::document::Chain;
use vl3_core::ids::{DomainName, NetworkName, NetworkUid};
use vl3_core::registry::contradictions;
use vl3_proto::document::read_armoured;
use vl3_runtime::grpc::{DialUrl, Listen};
use vl3_runtime::{Configure, Section};

use crate::limits::Limits;

/// Port of NSM's reference deployment (nsm-wire 4.6).
const LISTEN_DEFAULT: &str = "tcp://:5002";
const JOURNAL_RECORDS: usize = 20_000;
/// Below, a busy registry would rewrite its journal all the time.
const JOURNAL_RECORDS_MIN: usize = 100;
const JOURNAL_RECORDS_MAX: usize = 10_000_000;

#[derive(Clone, Debug)]
pub struct Config {
    pub domain: DomainName,
    pub listen: Vec<Listen>,
    /// Where other replicas of this domain reach this one; the first specific address of
    /// `listen` unless set.
    pub advertise: Option<DialUrl>,
    /// Identities of the other replicas, as SPIFFE ID patterns of the own trust domain. This
    /// one's own, and without any `spiffe://TD/vl3/registry/*`, are believed.
    pub replicas: Vec<String>,
    /// What this registry serves. Members may come and go; a network is added here.
    pub networks: Vec<NetworkConfig>,
    /// Ports where stock routers get their prefixes.
    pub prefixes: Vec<PrefixesConfig>,
    /// Longest and usual lifetime of an endpoint that is not refreshed.
    pub endpoint_lifetime: Duration,
    /// Silence after which a router's lease ends.
    pub lease_lifetime: Duration,
    pub renew_after: Duration,
    /// IPv4 prefix length of a router that asks for none.
    pub prefix_len4: Option<u8>,
    /// How long a domain's entries stay without a stream to its registry.
    pub stale_grace: Duration,
    /// Journal records after which the journal is replaced by what they come to.
    pub journal_records: usize,
    pub limits: Limits,
    /// What keeps the state.
    pub store: StoreConfig,
    /// The state was restored from a backup: for a while leases are only taken back.
    pub restored: bool,
}

/// One port for stock routers: their messages name neither network nor family.
#[derive(Clone, Debug)]
pub struct PrefixesConfig {
    pub network: NetworkUid,
    pub family: Family,
    pub listen: Vec<Listen>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(crate) fn has(self, prefix: &IpNet) -> bool {
        matches!(
            (self, prefix),
            (Self::Ipv4, IpNet::V4(_)) | (Self::Ipv6, IpNet::V6(_))
        )
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

#[derive(Clone, Debug)]
pub struct NetworkConfig {
    pub document: PathBuf,
    /// The document that the file held, verified.
    pub chain: Chain,
}

impl NetworkConfig {
    /// Reads and verifies a document file; the error is for people.
    pub fn load(document: PathBuf, uid: Option<NetworkUid>) -> Result<Self, String> {
        let text = std::fs::read_to_string(&document)
            .map_err(|error| format!("a readable file ({error})"))?;
        let chain = read_armoured(&text).map_err(|error| format!("a valid document ({error})"))?;
        match uid {
            Some(uid) if uid != chain.uid() => Err(format!(
                "the document of network {uid}, not of {}",
                chain.uid()
            )),
            _ => Ok(Self { document, chain }),
        }
    }
}

impl Configure for Config {
    const ROLE: &'static str = "registry";
    const ENVIRONMENT: &'static [(&'static str, &'static str)] = &[("NSM_LISTEN_ON", "listen")];

    fn read(section: &mut Section<'_>) -> Option<Self> {
        let domain = section.required::<DomainName>("domain");
        let listen = section.list_or("listen", LISTEN_DEFAULT.parse().into_iter().collect());
        let is_advertised = section.has("advertise");
        let advertise = section.optional::<DialUrl>("advertise");
        let replicas: Vec<String> = section.list("replicas");
        for replica in replicas.iter().filter(|id| !id.starts_with("spiffe://")) {
            let allowed = "SPIFFE IDs, of which the last part may be *";
            section.problem("replicas", Some(replica.clone()), allowed);
        }
        let networks: Vec<_> = section
            .tables("network", read_network)
            .into_iter()
            .collect();
        let has_networks = !networks.is_empty();
        if !has_networks {
            section.problem(
                "network",
                None,
                "at least one [[network]] with its document",
            );
        }
        let networks: Option<Vec<NetworkConfig>> = networks.into_iter().collect();
        if let (Some(domain), Some(networks)) = (&domain, &networks) {
            check_networks(section, domain, networks);
        }
        let prefixes: Vec<_> = section
            .tables("prefixes", |section| {
                read_prefixes(section, networks.as_deref().unwrap_or_default())
            })
            .into_iter()
            .flatten()
            .collect();
        let core = vl3_core::allocator::Config::default();
        let endpoint_lifetime = section.or("endpoint_lifetime", Duration::from_secs(60));
        let lease_lifetime = section.or("lease_lifetime", core.lifetime);
        let renew_after = section.or("renew_after", core.renew_after);
        let prefix_len4 = section.optional::<u8>("prefix_len4");
        let stale_grace = section.or(
            "stale_grace",
            vl3_core::federation::Config::default().stale_grace,
        );
        let journal_records = section.or("journal_records", JOURNAL_RECORDS);
        let limits = section.table("limits", Limits::read);
        let restored = section.or("restored", false);
        let name = domain.as_ref().map_or("", DomainName::as_str).to_owned();
        let store = section.table("store", |section| StoreConfig::read(section, &name));
        let is_specific = |listen: &Listen| matches!(listen, Listen::Tcp(address) if !address.ip().is_unspecified());
        if matches!(store, Some(StoreConfig::Etcd(_)))
            && !is_advertised
            && !listen.iter().any(is_specific)
        {
            section.problem(
                "advertise",
                None,
                "tcp://HOST:PORT, where the other replicas of this store reach it: no address of listen is a specific one",
            );
        }
        if renew_after * 2 > lease_lifetime || renew_after < Duration::from_secs(1) {
            let value = format!("{renew_after:?}");
            section.problem("renew_after", Some(value), "1s to half of lease_lifetime");
        }
        if !(JOURNAL_RECORDS_MIN..=JOURNAL_RECORDS_MAX).contains(&journal_records) {
            section.problem(
                "journal_records",
                Some(journal_records.to_string()),
                &format!("{JOURNAL_RECORDS_MIN} to {JOURNAL_RECORDS_MAX}"),
            );
        }
        if endpoint_lifetime < Duration::from_secs(1) {
            section.problem(
                "endpoint_lifetime",
                Some(format!("{endpoint_lifetime:?}")),
                "1s or more",
            );
        }
        if let Some(len) = prefix_len4.filter(|len| !(8..=30).contains(len)) {
            section.problem("prefix_len4", Some(len.to_string()), "8 to 30");
        }
        Some(Self {
            domain: domain?,
            listen,
            advertise,
            replicas,
            networks: networks?,
            prefixes,
            endpoint_lifetime,
            lease_lifetime,
            renew_after,
            prefix_len4,
            stale_grace,
            journal_records,
            limits,
            store: store?,
            restored,
        })
    }
}

fn read_network(section: &mut Section<'_>) -> Option<NetworkConfig> {
    let document = section.required::<PathBuf>("document");
    let uid = section.optional::<NetworkUid>("uid");
    let document = document?;
    let shown = document.display().to_string();
    NetworkConfig::load(document, uid)
        .map_err(|allowed| section.problem("document", Some(shown), &allowed))
        .ok()
}

fn read_prefixes(section: &mut Section<'_>, networks: &[NetworkConfig]) -> Option<PrefixesConfig> {
    let name = section.required::<NetworkName>("network");
    let families = [("ipv4", Family::Ipv4), ("ipv6", Family::Ipv6)];
    let family = section.choice("family", &families, Family::Ipv4);
    let listen = section.list_required::<Listen>("listen");
    let name = name?;
    let mut named = networks
        .iter()
        .filter(|network| network.chain.document().name == name);
    let network = named.next().map(|network| network.chain.uid());
    if network.is_none() {
        let known: Vec<_> = networks
            .iter()
            .map(|network| network.chain.document().name.as_str())
            .collect();
        let allowed = format!("a network that is served: {}", known.join(", "));
        section.problem("network", Some(name.to_string()), &allowed);
    }
    Some(PrefixesConfig {
        network: network?,
        family,
        listen: listen?,
    })
}

fn check_networks(section: &mut Section<'_>, domain: &DomainName, networks: &[NetworkConfig]) {
    for (at, network) in networks.iter().enumerate() {
        let document = network.chain.document();
        if !document.members.contains_key(domain) {
            let members: Vec<_> = document.members.keys().map(DomainName::as_str).collect();
            let allowed = format!(
                "a member of network {}: {}",
                document.name,
                members.join(", ")
            );
            section.problem("domain", Some(domain.to_string()), &allowed);
        }
        if networks[..at]
            .iter()
            .any(|other| other.chain.uid() == network.chain.uid())
        {
            let value = network.document.display().to_string();
            section.problem("network", Some(value), "each network once");
        }
        for other in &networks[..at] {
            let other = other.chain.document();
            for contradiction in contradictions([&**other, &**document]) {
                let value = network.document.display().to_string();
                let allowed = format!(
                    "networks that agree about their members, unlike {} and {}: {}",
                    other.name, document.name, contradiction.what
                );
                section.problem("network", Some(value), &allowed);
            }
        }
    }
}
