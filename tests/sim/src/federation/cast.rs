//! Domains and networks of one run, and the versions of their documents.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds, SignedDocument};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid, SpiffeId};

pub(super) fn domain_name(domain: usize) -> DomainName {
    DomainName::new(&format!("d{domain}")).expect("a label")
}

pub(super) fn trust_domain(domain: usize) -> String {
    format!("d{domain}.test")
}

pub(super) fn spiffe(domain: usize, path: &str) -> SpiffeId {
    SpiffeId::new(&format!("spiffe://{}/{path}", trust_domain(domain))).expect("an id")
}

pub(super) fn registry_id(domain: usize) -> SpiffeId {
    spiffe(domain, "vl3/registry/r")
}

/// One network, its newest document and who may sign the next.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) name: NetworkName,
    pub(super) uid: NetworkUid,
    index: u8,
    pub(super) chain: Chain,
    /// Every version that an admin ever signed and somebody may hold.
    signed: Vec<SignedDocument>,
    secret: AdminSecret,
    keys: u8,
}

impl Network {
    /// Version 1, with these domains.
    pub(super) fn new(name: &str, index: u8, domains: impl IntoIterator<Item = usize>) -> Self {
        let secret = AdminSecret::from_bytes(&[index + 1; 32]);
        let nonce = vec![index; 16];
        let admin_keys = [secret.public()].into();
        let uid = NetworkUid::derive(&nonce, &admin_keys);
        let members = domains.into_iter();
        let members = members.map(|domain| (domain_name(domain), member(index, domain)));
        let document = Document {
            uid,
            nonce,
            version: 1,
            name: NetworkName::new(name).expect("a label"),
            zone: format!("{name}.example"),
            pool6: format!("fd00:0:0:{index:x}::/64")
                .parse()
                .expect("a prefix"),
            pool4: Some("10.0.0.0/8".parse().expect("a prefix")),
            admin_keys,
            members: members.collect(),
            policy: Policy {
                exclusions: vec!["10.0.0.128/28".parse().expect("a prefix")],
                ..Policy::default()
            },
        };
        let name = document.name.clone();
        let chain = Chain::verify(vec![signed(&secret, document)]).expect("a valid first version");
        Self {
            name,
            uid,
            index,
            signed: vec![chain.newest().clone()],
            chain,
            secret,
            keys: 0,
        }
    }

    pub(super) fn document(&self) -> &Document {
        self.chain.document()
    }

    pub(super) fn has(&self, domain: usize) -> bool {
        has(self.document(), domain)
    }

    /// Signs a next version without making it the newest.
    pub(super) fn next(&self, change: impl FnOnce(&mut Document)) -> Chain {
        let mut document = Document::clone(self.document());
        document.version += 1;
        change(&mut document);
        let next = signed(&self.secret, document);
        self.chain.extend(next).expect("a valid next version")
    }

    pub(super) fn publish(&mut self, change: impl FnOnce(&mut Document)) {
        self.chain = self.next(change);
        self.signed.push(self.chain.newest().clone());
    }

    /// Two contents of the next version; the first one is what later versions follow.
    pub(super) fn publish_two(&mut self, change: impl Fn(&mut Document, u8)) -> Chain {
        let other = self.next(|document| change(document, 2));
        self.publish(|document| change(document, 1));
        self.signed.push(other.newest().clone());
        other
    }

    /// What an admin wrote into the version that somebody holds; None: no admin signed that.
    pub(super) fn written(&self, held: &Chain) -> Option<&Document> {
        let held = held.newest();
        let mut signed = self.signed.iter().rev();
        let is_it = |signed: &&SignedDocument| {
            signed.document.version == held.document.version && signed.bytes == held.bytes
        };
        signed.find(is_it).map(|signed| &*signed.document)
    }

    pub(super) fn add(&mut self, domain: usize) {
        let member = member(self.index, domain);
        self.publish(|document| {
            document.members.insert(domain_name(domain), member);
        });
    }

    pub(super) fn revoke(&mut self, domain: usize) {
        self.publish(|document| {
            if let Some(member) = document.members.get_mut(&domain_name(domain)) {
                member.revoked = true;
            }
        });
    }

    /// The next version is signed by the old key and names another.
    pub(super) fn rotate_key(&mut self) {
        self.keys += 1;
        let mut seed = [self.index + 1; 32];
        seed[0] = 100 + self.keys;
        let secret = AdminSecret::from_bytes(&seed);
        let keys = [secret.public()].into();
        self.publish(|document| document.admin_keys = keys);
        self.secret = secret;
    }
}

/// Whether the domain is a member by that version.
pub(super) fn has(document: &Document, domain: usize) -> bool {
    let member = document.members.get(&domain_name(domain));
    member.is_some_and(|member| !member.revoked)
}

fn signed(secret: &AdminSecret, document: Document) -> SignedDocument {
    // The core never decodes; any faithful text does for the encoding.
    let bytes = format!("{document:?}").into_bytes();
    SignedDocument::sign(bytes, document, &[secret])
}

fn member(network: u8, domain: usize) -> Member {
    let octet = u8::try_from(domain).unwrap_or(u8::MAX);
    let block6 = format!("fd00:0:0:{network:x}:{domain:x}::/80");
    Member {
        domain: domain_name(domain),
        trust_domain: trust_domain(domain),
        bundle: Vec::new(),
        roles: RoleIds::defaults(&trust_domain(domain)),
        contacts: vec![format!("registry.d{domain}.test:5002")],
        block4: Some(Ipv4Net::new_assert(Ipv4Addr::new(10, octet, 0, 0), 24)),
        block6: block6.parse::<Ipv6Net>().expect("a prefix"),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: domain == 5,
    }
}
