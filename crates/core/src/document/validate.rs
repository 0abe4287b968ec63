//! Everything that can be wrong inside one document, all at once.

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Document, Member};

/// Domains of one network.
pub const MEMBERS_MAX: usize = 1024;
const ADMIN_KEYS_MAX: usize = 16;
const EXCLUSIONS_MAX: usize = 256;
const CONTACTS_MAX: usize = 16;
const PATTERNS_MAX: usize = 64;
const BUNDLE_BYTES_MAX: usize = 64 * 1024;

/// One thing that is wrong: where, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub field: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All problems of one document; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Checks the content of one document. Signatures are the chain's matter.
pub fn validate(document: &Document) -> Result<(), Problems> {
    let mut problems = Vec::new();
    let mut say = |field: &str, message: String| {
        problems.push(Problem {
            field: field.to_owned(),
            message,
        });
    };
    check_header(document, &mut say);
    check_pools(document, &mut say);
    check_members(document, &mut say);
    check_blocks(document, &mut say);
    check_policy(document, &mut say);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Problems(problems))
    }
}

type Say<'a> = dyn FnMut(&str, String) + 'a;

fn check_header(document: &Document, say: &mut Say<'_>) {
    if document.version == 0 {
        say(
            "version",
            "0 is not allowed, versions start at 1".to_owned(),
        );
    }
    if !(16..=64).contains(&document.nonce.len()) {
        say(
            "nonce",
            format!("{} bytes, 16 to 64 are allowed", document.nonce.len()),
        );
    }
    if document.admin_keys.is_empty() || document.admin_keys.len() > ADMIN_KEYS_MAX {
        let count = document.admin_keys.len();
        say(
            "admin_keys",
            format!("{count} keys, 1 to {ADMIN_KEYS_MAX} are allowed"),
        );
    }
    let labels_ok = document.zone.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    if !labels_ok || document.zone.len() > 100 {
        let zone = &document.zone;
        say(
            "zone",
            format!(
                "{zone:?} is no DNS zone: lower-case labels, at most 100 bytes, no dot at the end"
            ),
        );
    }
}

fn check_pools(document: &Document, say: &mut Say<'_>) {
    let pool6 = document.pool6;
    let ula = Ipv6Net::new_assert(core::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 8);
    if pool6.prefix_len() != 64 || pool6.trunc() != pool6 || !ula.contains(&pool6) {
        say(
            "pool6",
            format!("{pool6} is not allowed, a /64 inside fd00::/8 without host bits is"),
        );
    }
    if let Some(pool4) = document.pool4 {
        if pool4.trunc() != pool4 {
            say(
                "pool4",
                format!("{pool4} has host bits, {} would be allowed", pool4.trunc()),
            );
        }
        let bad: [Ipv4Net; 4] = [
            Ipv4Net::new_assert(core::net::Ipv4Addr::new(0, 0, 0, 0), 8),
            Ipv4Net::new_assert(core::net::Ipv4Addr::LOCALHOST, 8),
            Ipv4Net::new_assert(core::net::Ipv4Addr::new(169, 254, 0, 0), 16),
            Ipv4Net::new_assert(core::net::Ipv4Addr::new(224, 0, 0, 0), 3),
        ];
        if !(4..=28).contains(&pool4.prefix_len()) || bad.iter().any(|bad| overlap4(*bad, pool4)) {
            say(
                "pool4",
                format!("{pool4} is not allowed, unicast ranges from /4 to /28 are"),
            );
        }
    }
}

fn check_members(document: &Document, say: &mut Say<'_>) {
    if document.members.len() > MEMBERS_MAX {
        let count = document.members.len();
        say(
            "members",
            format!("{count} members, at most {MEMBERS_MAX} are allowed"),
        );
    }
    let mut trust_domains = BTreeMap::new();
    for (domain, member) in &document.members {
        let field = |name: &str| format!("members[{domain}].{name}");
        if member.domain != *domain {
            say(
                &field("domain"),
                format!("filed under another name than {}", member.domain),
            );
        }
        if PUBLIC_TLDS.binary_search(&domain.as_str()).is_ok() {
            say(
                &field("domain"),
                "named like a public top-level domain, which names outside use".to_owned(),
            );
        }
        check_member(member, &field, say);
        if let Some(other) = trust_domains.insert(&member.trust_domain, domain) {
            say(
                &field("trust_domain"),
                format!(
                    "{} is {other}'s too, each domain has its own",
                    member.trust_domain
                ),
            );
        }
    }
}

fn check_member(member: &Member, field: &dyn Fn(&str) -> String, say: &mut Say<'_>) {
    let trust_domain_ok = (1..=255).contains(&member.trust_domain.len())
        && member.trust_domain.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
        });
    if !trust_domain_ok {
        let value = &member.trust_domain;
        say(
            &field("trust_domain"),
            format!("{value:?}: a-z, 0-9, '-', '_', '.' are allowed"),
        );
    }
    if member.bundle.len() > BUNDLE_BYTES_MAX {
        let bytes = member.bundle.len();
        say(
            &field("bundle"),
            format!("{bytes} bytes, at most {BUNDLE_BYTES_MAX} are allowed"),
        );
    }
    let own = format!("spiffe://{}/", member.trust_domain);
    let roles = &member.roles;
    let patterns = [
        ("roles.registry", &roles.registry),
        ("roles.router", &roles.router),
        ("roles.dns", &roles.dns),
        ("roles.workload", &roles.workload),
        ("roles.intermediary", &roles.intermediary),
    ];
    for (name, patterns) in patterns {
        if patterns.len() > PATTERNS_MAX {
            say(
                &field(name),
                format!(
                    "{} patterns, at most {PATTERNS_MAX} are allowed",
                    patterns.len()
                ),
            );
        }
        for pattern in patterns.iter().take(PATTERNS_MAX) {
            let stars = pattern.matches('*').count();
            if !pattern.starts_with(&own) || stars > usize::from(pattern.ends_with('*')) {
                say(
                    &field(name),
                    format!("{pattern:?}: must start with {own} and may end with one '*'"),
                );
            }
        }
    }
    if member.contacts.len() > CONTACTS_MAX {
        say(
            &field("contacts"),
            format!(
                "{} addresses, at most {CONTACTS_MAX} are allowed",
                member.contacts.len()
            ),
        );
    }
    for contact in member.contacts.iter().take(CONTACTS_MAX) {
        let ok = contact.rsplit_once(':').is_some_and(|(host, port)| {
            let host_ok = if let Some(literal) = host.strip_prefix('[') {
                literal
                    .strip_suffix(']')
                    .is_some_and(|v6| v6.parse::<core::net::Ipv6Addr>().is_ok())
            } else {
                !host.is_empty()
                    && host.len() <= 253
                    && host
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
            };
            host_ok && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !ok {
            say(
                &field("contacts"),
                format!("{contact:?} is no address: host:port or [v6]:port are allowed"),
            );
        }
    }
}

fn check_blocks(document: &Document, say: &mut Say<'_>) {
    let exclusions: Vec<_> = document
        .policy
        .exclusions
        .iter()
        .map(IpNet::trunc)
        .collect();
    let mut seen4: Vec<(Ipv4Net, &Member)> = Vec::new();
    let mut seen6: Vec<(Ipv6Net, &Member)> = Vec::new();
    for member in document.members.values() {
        let domain = &member.domain;
        let (field4, field6) = (
            format!("members[{domain}].block4"),
            format!("members[{domain}].block6"),
        );
        let block6 = member.block6;
        if block6.prefix_len() != 80 || block6.trunc() != block6 {
            say(
                &field6,
                format!("{block6} is not allowed, a /80 without host bits is"),
            );
        }
        if !document.pool6.contains(&block6) {
            say(
                &field6,
                format!("{block6} lies outside of pool6 {}", document.pool6),
            );
        }
        for (other, whose) in &seen6 {
            if overlap6(*other, block6) {
                say(
                    &field6,
                    format!("{block6} overlaps {other} of {}", whose.domain),
                );
            }
        }
        seen6.push((block6, member));
        if let Some(block4) = member.block4 {
            if block4.trunc() != block4 || block4.prefix_len() > 30 {
                say(
                    &field4,
                    format!("{block4} is not allowed, at most a /30 without host bits is"),
                );
            }
            match document.pool4 {
                None => say(
                    &field4,
                    format!("{block4} given, but the network has no pool4"),
                ),
                Some(pool4) if !pool4.contains(&block4) => {
                    say(&field4, format!("{block4} lies outside of pool4 {pool4}"));
                }
                Some(_) => {}
            }
            for (other, whose) in &seen4 {
                if overlap4(*other, block4) {
                    say(
                        &field4,
                        format!("{block4} overlaps {other} of {}", whose.domain),
                    );
                }
            }
            seen4.push((block4, member));
        }
        for exclusion in &exclusions {
            for block in member.blocks() {
                if exclusion.contains(&block) {
                    say(
                        "policy.exclusions",
                        format!("{exclusion} leaves nothing of {domain}'s block {block}"),
                    );
                }
            }
        }
    }
}

fn check_policy(document: &Document, say: &mut Say<'_>) {
    let policy = &document.policy;
    if policy.exclusions.len() > EXCLUSIONS_MAX {
        let count = policy.exclusions.len();
        say(
            "policy.exclusions",
            format!("{count} ranges, at most {EXCLUSIONS_MAX} are allowed"),
        );
    }
    let mut seen = BTreeSet::new();
    for exclusion in &policy.exclusions {
        if exclusion.trunc() != *exclusion {
            say(
                "policy.exclusions",
                format!(
                    "{exclusion} has host bits, {} would be allowed",
                    exclusion.trunc()
                ),
            );
        }
        if !seen.insert(exclusion) {
            say("policy.exclusions", format!("{exclusion} is given twice"));
        }
        let pools = [
            Some(IpNet::V6(document.pool6)),
            document.pool4.map(IpNet::V4),
        ];
        for pool in pools.into_iter().flatten() {
            if exclusion.trunc().contains(&pool) {
                say(
                    "policy.exclusions",
                    format!("{exclusion} leaves nothing of the pool {pool}"),
                );
            }
        }
    }
    for domain in &policy.shared_names {
        if !document.members.contains_key(domain) {
            say("policy.shared_names", format!("{domain} is no member"));
        }
    }
}

fn overlap4(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn overlap6(a: Ipv6Net, b: Ipv6Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Top-level domains that a domain label would shadow through the search suffix
/// (`example.com` asked as `example.com.<zone>` must not be taken for a name of domain
/// `com`). The original generic ones, the popular new ones and names reserved by RFC 6761,
/// 6762 and 8375; of the country codes those in common use as generic ones. Sorted.
const PUBLIC_TLDS: [&str; 46] = [
    "aero",
    "ai",
    "alt",
    "app",
    "arpa",
    "asia",
    "biz",
    "blog",
    "cat",
    "cloud",
    "club",
    "com",
    "coop",
    "dev",
    "edu",
    "email",
    "eu",
    "example",
    "gov",
    "home",
    "icu",
    "info",
    "int",
    "internal",
    "invalid",
    "io",
    "jobs",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "mil",
    "mobi",
    "museum",
    "name",
    "net",
    "online",
    "org",
    "page",
    "post",
    "pro",
    "shop",
    "site",
    "test",
    "wpad",
    "xyz",
];
