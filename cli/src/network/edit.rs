//! New versions of a document. Pure but for the randomness of a new network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use vl3_core::Wall;
use vl3_core::allocator::first_free;
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, Role, RoleIds};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid};
use vl3_proto::document::{check_size, sign};

/// What a network starts with.
#[derive(Clone, Debug)]
pub(crate) struct NewNetwork {
    pub(crate) name: NetworkName,
    pub(crate) zone: String,
    pub(crate) pool4: Option<Ipv4Net>,
    pub(crate) exclusions: Vec<IpNet>,
    pub(crate) stale_limit_seconds: u32,
}

/// A domain that joins.
#[derive(Clone, Debug)]
pub(crate) struct NewMember {
    pub(crate) domain: DomainName,
    pub(crate) trust_domain: String,
    /// PEM.
    pub(crate) bundle: Vec<u8>,
    pub(crate) contacts: Vec<String>,
    /// SPIFFE ID patterns; a role that is not named has its defaults.
    pub(crate) roles: Vec<(Role, String)>,
    pub(crate) block4: Block4,
    pub(crate) dials_only: bool,
    pub(crate) not_after: Option<Wall>,
}

/// The roles as people write them.
pub(crate) const ROLES: [(&str, Role); 5] = [
    ("registry", Role::Registry),
    ("router", Role::Router),
    ("dns", Role::Dns),
    ("workload", Role::Workload),
    ("intermediary", Role::Intermediary),
];

/// Which IPv4 addresses a domain gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block4 {
    /// The first free block of this length.
    Size(u8),
    Exactly(Ipv4Net),
    None,
}

impl FromStr for Block4 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "must be a size such as /22, a prefix such as 10.0.4.0/22, or none".to_owned();
        if text == "none" {
            return Ok(Self::None);
        }
        if let Some(len) = text.strip_prefix('/') {
            return len
                .parse()
                .ok()
                .filter(|len| (8..=30).contains(len))
                .map(Self::Size)
                .ok_or_else(bad);
        }
        text.parse().map(Self::Exactly).map_err(|_| bad())
    }
}

/// Version 1.
pub(crate) fn init(new: NewNetwork, secret: &AdminSecret) -> anyhow::Result<Chain> {
    let nonce: [u8; 32] = rand::random();
    let admin_keys = BTreeSet::from([secret.public()]);
    let document = Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce: nonce.to_vec(),
        version: 1,
        name: new.name,
        zone: new.zone.trim_end_matches('.').to_ascii_lowercase(),
        pool6: random_pool6(rand::random()),
        pool4: new.pool4.map(|pool| pool.trunc()),
        admin_keys,
        members: BTreeMap::new(),
        policy: Policy {
            exclusions: new.exclusions.iter().map(IpNet::trunc).collect(),
            shared_names: BTreeSet::new(),
            stale_limit_seconds: new.stale_limit_seconds,
        },
    };
    checked(Chain::verify(vec![sign(document, &[secret])]).context("make the document")?)
}

/// A unique local /64 (RFC 4193): 40 random bits of global ID, 16 of subnet.
fn random_pool6(random: [u8; 7]) -> Ipv6Net {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&random);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 64)
}

/// The next version, with one more live member. A domain that was removed comes back with
/// the blocks that it had.
pub(crate) fn add_member(
    chain: &Chain,
    new: NewMember,
    secret: &AdminSecret,
) -> anyhow::Result<Chain> {
    let mut document = next_version(chain);
    let before = document.members.get(&new.domain);
    if before.is_some_and(|member| !member.revoked) {
        bail!(
            "{} is a member already (vl3 network remove-member takes it out)",
            new.domain
        );
    }
    let (block4, block6, generation) = match before {
        Some(member) => (member.block4, member.block6, member.generation.0 + 1),
        None => (block4(&document, new.block4)?, block6(&document)?, 1),
    };
    let member = Member {
        domain: new.domain.clone(),
        roles: role_ids(&new.trust_domain, &new.roles),
        trust_domain: new.trust_domain,
        bundle: new.bundle,
        contacts: new.contacts,
        block4,
        block6,
        generation: Generation(generation),
        not_after: new.not_after,
        revoked: false,
        dials_only: new.dials_only,
    };
    document.members.insert(new.domain, member);
    extend(chain, document, secret)
}

/// The defaults, but for the roles that are named.
fn role_ids(trust_domain: &str, named: &[(Role, String)]) -> RoleIds {
    let defaults = RoleIds::defaults(trust_domain);
    let of = |role| {
        let mut patterns: Vec<_> = named
            .iter()
            .filter(|(known, _)| *known == role)
            .map(|(_, pattern)| pattern.clone())
            .collect();
        if patterns.is_empty() {
            patterns.extend_from_slice(defaults.patterns(role));
        }
        patterns
    };
    RoleIds {
        registry: of(Role::Registry),
        router: of(Role::Router),
        dns: of(Role::Dns),
        workload: of(Role::Workload),
        intermediary: of(Role::Intermediary),
    }
}

/// The next version, in which the domain is revoked.
pub(crate) fn remove_member(
    chain: &Chain,
    domain: &DomainName,
    secret: &AdminSecret,
) -> anyhow::Result<Chain> {
    let mut document = next_version(chain);
    let members: Vec<_> = document.members.keys().map(DomainName::to_string).collect();
    let member = document
        .members
        .get_mut(domain)
        .ok_or_else(|| anyhow!("{domain} is no member, these are: {}", members.join(", ")))?;
    if member.revoked {
        bail!("{domain} is revoked already");
    }
    member.revoked = true;
    extend(chain, document, secret)
}

pub(super) fn next_version(chain: &Chain) -> Document {
    let document = Document::clone(chain.document());
    Document {
        version: document.version + 1,
        ..document
    }
}

pub(super) fn extend(
    chain: &Chain,
    document: Document,
    secret: &AdminSecret,
) -> anyhow::Result<Chain> {
    check_admin(chain, secret)?;
    let version = sign(document, &[secret]);
    checked(chain.extend(version).context("write the next version")?)
}

pub(super) fn check_admin(chain: &Chain, secret: &AdminSecret) -> anyhow::Result<()> {
    let document = chain.document();
    if !document.admin_keys.contains(&secret.public()) {
        bail!(
            "{} is no admin key of network {}",
            secret.public(),
            document.name
        );
    }
    Ok(())
}

/// What is too big to travel is not written.
pub(super) fn checked(chain: Chain) -> anyhow::Result<Chain> {
    check_size(&chain).context("write the next version")?;
    Ok(chain)
}

fn block4(document: &Document, wanted: Block4) -> anyhow::Result<Option<Ipv4Net>> {
    let (pool, len) = match (wanted, document.pool4) {
        (Block4::None, _) | (Block4::Size(_), None) => return Ok(None),
        (Block4::Exactly(block), _) => return Ok(Some(block)),
        (Block4::Size(len), Some(pool)) => (pool, len),
    };
    match first_free(IpNet::V4(pool), len, &taken(document)) {
        Some(IpNet::V4(block)) => Ok(Some(block)),
        _ => bail!("the pool {pool} has no room for a block of length {len}"),
    }
}

/// Numbered from 1, so that the pool's first addresses belong to nobody.
fn block6(document: &Document) -> anyhow::Result<Ipv6Net> {
    let mut taken = taken(document);
    taken.push(IpNet::V6(Ipv6Net::new_assert(document.pool6.network(), 80)));
    match first_free(IpNet::V6(document.pool6), 80, &taken) {
        Some(IpNet::V6(block)) => Ok(block),
        _ => bail!("the pool {} has no room for another domain", document.pool6),
    }
}

/// Blocks, those of removed members too, and exclusions.
fn taken(document: &Document) -> Vec<IpNet> {
    let blocks = document.members.values().flat_map(|member| member.blocks());
    blocks
        .chain(document.policy.exclusions.iter().copied())
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn network() -> (Chain, AdminSecret) {
        let secret = AdminSecret::from_bytes(&[3; 32]);
        let new = NewNetwork {
            name: NetworkName::new("red").unwrap(),
            zone: "red.vl3.".to_owned(),
            pool4: Some("10.80.0.0/16".parse().unwrap()),
            exclusions: vec!["10.80.0.0/24".parse().unwrap()],
            stale_limit_seconds: 86_400,
        };
        (init(new, &secret).unwrap(), secret)
    }

    pub(crate) fn member(domain: &str, block4: &str) -> NewMember {
        NewMember {
            domain: DomainName::new(domain).unwrap(),
            trust_domain: format!("{domain}.test"),
            bundle: b"PEM".to_vec(),
            contacts: vec![format!("registry.{domain}:5002")],
            roles: Vec::new(),
            block4: block4.parse().unwrap(),
            dials_only: false,
            not_after: None,
        }
    }

    #[test]
    fn members_get_blocks_of_their_own_beside_the_exclusions() {
        let (chain, secret) = network();
        let chain = add_member(&chain, member("east", "/22"), &secret).unwrap();
        let chain = add_member(&chain, member("west", "/22"), &secret).unwrap();
        let chain = add_member(&chain, member("kiosk", "/28"), &secret).unwrap();
        let blocks: Vec<_> = chain
            .document()
            .members
            .values()
            .map(|member| member.block4.unwrap().to_string())
            .collect();
        assert_eq!(blocks, ["10.80.4.0/22", "10.80.1.0/28", "10.80.8.0/22"]);
        assert_eq!(chain.document().version, 4);
        assert_eq!(chain.links().len(), 2, "version 1 and the newest");
    }

    #[test]
    fn a_domain_that_comes_back_has_its_blocks_again() {
        let (chain, secret) = network();
        let east = DomainName::new("east").unwrap();
        let added = add_member(&chain, member("east", "/22"), &secret).unwrap();
        assert!(add_member(&added, member("east", "/22"), &secret).is_err());
        let removed = remove_member(&added, &east, &secret).unwrap();
        assert!(removed.document().members[&east].revoked);
        assert!(remove_member(&removed, &east, &secret).is_err());
        let back = add_member(&removed, member("east", "none"), &secret).unwrap();
        let (before, after) = (
            &added.document().members[&east],
            &back.document().members[&east],
        );
        assert_eq!((before.block4, before.block6), (after.block4, after.block6));
        assert_eq!(after.generation, Generation(2));
    }

    #[test]
    fn named_roles_replace_their_defaults_alone() {
        let (chain, secret) = network();
        let mut new = member("east", "/22");
        for path in ["ns/*", "vm/db"] {
            let id = format!("spiffe://east.test/{path}");
            new.roles.push((Role::Workload, id));
        }
        let chain = add_member(&chain, new, &secret).unwrap();
        let roles = &chain.document().members[&DomainName::new("east").unwrap()].roles;
        let defaults = RoleIds::defaults("east.test");
        assert_eq!(
            roles.workload,
            ["spiffe://east.test/ns/*", "spiffe://east.test/vm/db"]
        );
        assert_eq!(roles.router, defaults.router);
        assert_eq!(roles.intermediary, defaults.intermediary);
        let mut foreign = member("west", "/22");
        let id = "spiffe://east.test/router/*".to_owned();
        foreign.roles.push((Role::Router, id));
        let error = format!("{:#}", add_member(&chain, foreign, &secret).unwrap_err());
        assert!(error.contains("roles.router"), "{error}");
    }

    #[test]
    fn only_an_admin_writes_and_mistakes_are_named_together() {
        let (chain, secret) = network();
        let stranger = AdminSecret::from_bytes(&[4; 32]);
        let error = add_member(&chain, member("east", "/22"), &stranger).unwrap_err();
        assert!(error.to_string().contains("no admin key"), "{error}");
        let mut bad = member("com", "192.168.0.0/24");
        bad.contacts = vec!["nowhere".to_owned()];
        let error = format!("{:#}", add_member(&chain, bad, &secret).unwrap_err());
        for part in ["top-level", "outside of pool4", "nowhere"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
