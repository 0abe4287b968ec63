//! `[[upstream]]` and `[[policy]]`.

use std::net::SocketAddr;

use vl3_core::ids::DomainName;
use vl3_core::names::{
    Name, Policy, Preference, Question, RecordType, Transport, Upstream, UpstreamId,
};
use vl3_runtime::Section;

const TRANSPORTS: [(&str, Transport); 2] = [("udp", Transport::Udp), ("tcp", Transport::Tcp)];
const CLASSES: [(&str, Preference); 3] = [
    ("local", Preference::Local),
    ("overlay", Preference::Overlay),
    ("outside", Preference::Outside),
];
/// Whether it is a stock router (R2.13).
const KINDS: [(&str, bool); 2] = [("server", false), ("stock", true)];
/// Longest name of an upstream, octets: it is a label of metrics.
const NAME_MAX: usize = 63;

/// `None` only after a problem was recorded.
pub(super) fn read(section: &mut Section<'_>) -> Option<Upstream> {
    let name = section.required::<String>("name");
    if let Some(bad) = name.as_ref().filter(|name| !is_name(name)) {
        section.problem("name", Some(format!("{bad:?}")), NAME_ALLOWED);
    }
    if !section.has("addresses") {
        section.problem("addresses", None, "a list of addresses with port");
    }
    // An empty list is told with what else is wrong with the upstreams as a whole.
    let addresses = section.list::<SocketAddr>("addresses");
    let mut upstream = Upstream::outside(&name.clone().unwrap_or_default(), Vec::new());
    upstream.transport = section.choice("transport", &TRANSPORTS, Transport::Udp);
    upstream.class = section.choice("class", &CLASSES, Preference::Outside);
    upstream.weight = section.or("weight", 1);
    upstream.trusted = section.or("trusted", false);
    upstream.allow_private = section.or("allow_private", false);
    let is_stock = section.choice("kind", &KINDS, false);
    upstream.tags.domain = section.optional("domain");
    upstream.tags.site = section.optional("site");
    for (at, text) in section.list::<String>("suffixes").into_iter().enumerate() {
        match Name::parse(&text) {
            Ok(suffix) => upstream.suffixes.push(suffix),
            Err(error) => section.problem(
                &format!("suffixes[{at}]"),
                Some(format!("{text:?}")),
                &format!("{SUFFIX_ALLOWED} ({error})"),
            ),
        }
    }
    // A name of its own: what it is asked while it is suspected (R3.7).
    if let Some(suffix) = upstream.suffixes.first() {
        upstream.probe = Question::new(suffix.clone(), RecordType::SOA);
    }
    upstream.servers = addresses;
    if is_stock {
        if !section.has("suffixes") {
            section.problem("suffixes", None, STOCK_SUFFIXES);
        }
        match upstream.tags.domain.as_deref().map(DomainName::new) {
            Some(Ok(domain)) => upstream.make_stock(domain),
            found => {
                let shown = found.and(upstream.tags.domain.as_ref());
                section.problem(
                    "domain",
                    shown.map(|text| format!("{text:?}")),
                    STOCK_DOMAIN,
                );
            }
        }
    }
    name.map(|_| upstream)
}

pub(super) fn policy(section: &mut Section<'_>) -> Option<(Name, Policy)> {
    let suffix = section.required::<String>("suffix");
    let choices = Policy::ALL.map(|policy| (policy.label(), policy));
    if !section.has("policy") {
        section.problem("policy", None, &format!("one of {}", words(&choices)));
    }
    let policy = section.choice("policy", &choices, Policy::FirstPositive);
    let text = suffix?;
    match Name::parse(&text) {
        Ok(suffix) => Some((suffix, policy)),
        Err(error) => {
            let allowed = format!("{SUFFIX_ALLOWED} ({error})");
            section.problem("suffix", Some(format!("{text:?}")), &allowed);
            None
        }
    }
}

const NAME_ALLOWED: &str = "1 to 63 letters, digits, '-', '_', '.' (it is shown in metrics)";
const STOCK_DOMAIN: &str = "the domain that the stock router speaks for";
const STOCK_SUFFIXES: &str =
    "the zone of the network: a stock router is asked for names one label before it";
const SUFFIX_ALLOWED: &str = "a domain name, or \".\" for all names";

pub(super) fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn words<T>(choices: &[(&str, T)]) -> String {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    words.join(", ")
}

/// An upstream as the admin socket's `upstream-add` gives it; every mistake at once.
pub(crate) fn from_json(value: &serde_json::Value) -> Result<Upstream, Vec<String>> {
    let mut problems = Vec::new();
    let mut text = |key: &str| match value.get(key) {
        None | Some(serde_json::Value::Null) => None,
        Some(serde_json::Value::String(text)) => Some(text.clone()),
        Some(other) => {
            problems.push(format!("{key} = {other}: must be a text"));
            None
        }
    };
    let (name, transport, class) = (text("name"), text("transport"), text("class"));
    let (kind, domain) = (text("kind"), text("domain"));
    let name = name.unwrap_or_default();
    if !is_name(&name) {
        problems.push(format!("name = {name:?}: must be {NAME_ALLOWED}"));
    }
    let mut upstream = Upstream::outside(&name, Vec::new());
    match word(transport, &TRANSPORTS) {
        Ok(transport) => upstream.transport = transport.unwrap_or_default(),
        Err(problem) => problems.push(format!("transport {problem}")),
    }
    match word(class, &CLASSES) {
        Ok(class) => upstream.class = class.unwrap_or_default(),
        Err(problem) => problems.push(format!("class {problem}")),
    }
    for entry in list(value, "addresses") {
        match entry.parse() {
            Ok(address) => upstream.servers.push(address),
            Err(_) => problems.push(format!(
                "addresses = {entry:?}: must be an address with port, as 192.0.2.1:53"
            )),
        }
    }
    if upstream.servers.is_empty() && problems.is_empty() {
        problems.push("addresses is missing: must be a list of addresses with port".to_owned());
    }
    for entry in list(value, "suffixes") {
        match Name::parse(&entry) {
            Ok(suffix) => upstream.suffixes.push(suffix),
            Err(error) => problems.push(format!(
                "suffixes = {entry:?}: must be {SUFFIX_ALLOWED} ({error})"
            )),
        }
    }
    if let Some(suffix) = upstream.suffixes.first() {
        upstream.probe = Question::new(suffix.clone(), RecordType::SOA);
    }
    upstream.tags.domain.clone_from(&domain);
    match word(kind, &KINDS) {
        Ok(Some(true)) => match domain.as_deref().map(DomainName::new) {
            Some(Ok(domain)) => upstream.make_stock(domain),
            _ => problems.push(format!("domain = {domain:?}: must be {STOCK_DOMAIN}")),
        },
        Ok(_) => {}
        Err(problem) => problems.push(format!("kind {problem}")),
    }
    let flag = |key: &str| value.get(key).and_then(serde_json::Value::as_bool);
    upstream.trusted = flag("trusted").unwrap_or(false);
    upstream.allow_private = flag("allow_private").unwrap_or(upstream.allow_private);
    if let Some(weight) = value.get("weight").filter(|weight| !weight.is_null()) {
        match weight
            .as_u64()
            .and_then(|weight| u32::try_from(weight).ok())
        {
            Some(weight) => upstream.weight = weight,
            None => problems.push(format!(
                "weight = {weight}: must be a number from 0 to 4294967295"
            )),
        }
    }
    if problems.is_empty() {
        Ok(upstream)
    } else {
        Err(problems)
    }
}

fn list(value: &serde_json::Value, key: &str) -> Vec<String> {
    value
        .get(key)
        .and_then(serde_json::Value::as_array)
        .map_or_else(Vec::new, |list| {
            list.iter()
                .map(|entry| entry.as_str().unwrap_or_default().to_owned())
                .collect()
        })
}

fn word<T: Copy>(text: Option<String>, choices: &[(&str, T)]) -> Result<Option<T>, String> {
    let Some(text) = text else {
        return Ok(None);
    };
    choices
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| Some(*value))
        .ok_or_else(|| format!("= {text:?}: must be one of {}", words(choices)))
}

/// As `upstream list` shows it.
pub(crate) fn to_json(upstream: &Upstream, since_start: bool) -> serde_json::Value {
    let texts = |list: &mut dyn Iterator<Item = String>| list.collect::<Vec<_>>();
    serde_json::json!({
        "name": upstream.id.as_str(),
        "addresses": texts(&mut upstream.servers.iter().map(ToString::to_string)),
        "transport": match upstream.transport { Transport::Udp => "udp", Transport::Tcp => "tcp" },
        "suffixes": texts(&mut upstream.suffixes.iter().map(ToString::to_string)),
        "kind": if upstream.stock.is_some() { "stock" } else { "server" },
        "class": upstream.class.label(),
        "weight": upstream.weight,
        "trusted": upstream.trusted,
        "allow_private": upstream.allow_private,
        "from": if since_start { "command" } else { "file" },
    })
}

/// Names are compared as they are written.
pub(crate) fn id(text: &str) -> UpstreamId {
    UpstreamId::new(text)
}
