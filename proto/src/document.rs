//! The network document between its wire form, its file form and the core.
//!
//! What an admin key signed is the encoded `Document`; those bytes are stored and relayed as
//! they came. The file is the base64 of a `DocumentChain` between two armour lines.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prost::Message as _;
use vl3_core::Wall;
use vl3_core::document::{
    AdminKey, AdminSecret, Chain, ChainError, Document, LINKS_MAX, MEMBERS_MAX, Member, Policy,
    RoleIds, SIGNATURES_MAX, Signature, SignedDocument,
};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid};

use crate::convert::{FieldError, network_uid};
use crate::vl3::network::v1 as wire;

const FORMAT: u32 = 1;
const BEGIN: &str = "-----BEGIN VL3 NETWORK DOCUMENT-----";
const END: &str = "-----END VL3 NETWORK DOCUMENT-----";
const LINE: usize = 64;
/// Bytes of one version. A thousand members with their bundles fit.
pub const DOCUMENT_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Bytes of a chain with its signatures. Every program on its way reads messages of 4 MiB, of
/// which some are the message's own.
pub const CHAIN_BYTES_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;

/// Why bytes are no document chain.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("no network document: {0}")]
    Armour(&'static str),
    #[error("the network document cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    #[error("the network document has format {found}, this program reads {FORMAT}")]
    Format { found: u32 },
    #[error("the network document: {0}")]
    Field(#[from] FieldError),
    #[error(
        "a version of the network document has {bytes} bytes, at most {DOCUMENT_BYTES_MAX} are allowed"
    )]
    TooBig { bytes: usize },
    #[error(
        "the chain of versions has {bytes} bytes, at most {CHAIN_BYTES_MAX} are allowed (every version in which admin keys changed stays in it)"
    )]
    ChainTooBig { bytes: usize },
    #[error(transparent)]
    Chain(#[from] ChainError),
}

impl From<DocumentError> for tonic::Status {
    fn from(error: DocumentError) -> Self {
        Self::invalid_argument(format!("document: {error}"))
    }
}

/// Decodes and verifies a chain.
pub fn decode_chain(chain: &wire::DocumentChain) -> Result<Chain, DocumentError> {
    if chain.links.len() > LINKS_MAX {
        return Err(ChainError::TooLong {
            count: chain.links.len(),
        }
        .into());
    }
    let bytes = chain.encoded_len();
    if bytes > CHAIN_BYTES_MAX {
        return Err(DocumentError::ChainTooBig { bytes });
    }
    let links = chain
        .links
        .iter()
        .map(decode_signed)
        .collect::<Result<_, _>>()?;
    Ok(Chain::verify(links)?)
}

pub fn encode_chain(chain: &Chain) -> wire::DocumentChain {
    wire::DocumentChain {
        links: chain.links().iter().map(encode_signed).collect(),
    }
}

/// Whether everybody can read the chain: its newest version and the whole.
pub fn check_size(chain: &Chain) -> Result<(), DocumentError> {
    let bytes = chain.newest().bytes.len();
    if bytes > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooBig { bytes });
    }
    let bytes = encode_chain(chain).encoded_len();
    if bytes > CHAIN_BYTES_MAX {
        return Err(DocumentError::ChainTooBig { bytes });
    }
    Ok(())
}

/// Encodes a version and signs the bytes.
pub fn sign(document: Document, secrets: &[&AdminSecret]) -> SignedDocument {
    SignedDocument::sign(encode_document(&document), document, secrets)
}

/// The text of a document file.
pub fn write_armoured(chain: &Chain) -> String {
    let encoded = STANDARD.encode(encode_chain(chain).encode_to_vec());
    let mut text = String::with_capacity(encoded.len() + encoded.len() / LINE + 80);
    text.push_str(BEGIN);
    text.push('\n');
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(END);
    text.push('\n');
    text
}

/// Whether a file holds a network's document; the error says what is allowed, for people.
pub fn look(file: &std::path::Path, uid: Option<NetworkUid>) -> Result<(), String> {
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("a readable file ({error})"))?;
    let chain = read_armoured(&text).map_err(|error| format!("a valid document ({error})"))?;
    match uid {
        Some(uid) if uid != chain.uid() => Err(format!(
            "the document of network {uid}, not of {}",
            chain.uid()
        )),
        _ => Ok(()),
    }
}

/// Reads and verifies the text of a document file. Text around the armour is ignored.
pub fn read_armoured(text: &str) -> Result<Chain, DocumentError> {
    let (_, rest) = text
        .split_once(BEGIN)
        .ok_or(DocumentError::Armour("its first line is missing"))?;
    let (body, _) = rest
        .split_once(END)
        .ok_or(DocumentError::Armour("its last line is missing"))?;
    let body: String = body.split_ascii_whitespace().collect();
    let bytes = STANDARD
        .decode(body)
        .map_err(|_| DocumentError::Armour("its body is no base64"))?;
    decode_chain(&wire::DocumentChain::decode(bytes.as_slice())?)
}

fn decode_signed(signed: &wire::SignedDocument) -> Result<SignedDocument, DocumentError> {
    if signed.document.len() > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooBig {
            bytes: signed.document.len(),
        });
    }
    let document = decode_document(&signed.document)?;
    let signatures = signed
        .signatures
        .iter()
        .take(SIGNATURES_MAX)
        .map(|signature| {
            Ok(Signature {
                key: admin_key("signatures.key", &signature.key)?,
                signature: signature.signature.as_slice().try_into().map_err(|_| {
                    let bytes = format!("{} bytes", signature.signature.len());
                    FieldError::new(
                        "signatures.signature",
                        bytes,
                        "64 bytes, an Ed25519 signature",
                    )
                })?,
            })
        });
    Ok(SignedDocument {
        bytes: signed.document.clone(),
        document: document.into(),
        signatures: signatures.collect::<Result<_, FieldError>>()?,
    })
}

fn encode_signed(signed: &SignedDocument) -> wire::SignedDocument {
    wire::SignedDocument {
        document: signed.bytes.clone(),
        signatures: signed
            .signatures
            .iter()
            .map(|signature| wire::Signature {
                key: signature.key.0.to_vec(),
                signature: signature.signature.to_vec(),
            })
            .collect(),
    }
}

/// The bytes that are signed.
pub fn encode_document(document: &Document) -> Vec<u8> {
    let policy = &document.policy;
    wire::Document {
        format: FORMAT,
        nonce: document.nonce.clone(),
        uid: document.uid.0.to_vec(),
        version: document.version,
        name: document.name.to_string(),
        zone: document.zone.clone(),
        pool6: document.pool6.to_string(),
        pool4: document
            .pool4
            .map(|pool| pool.to_string())
            .unwrap_or_default(),
        admin_keys: document
            .admin_keys
            .iter()
            .map(|key| key.0.to_vec())
            .collect(),
        members: document.members.values().map(encode_member).collect(),
        policy: Some(wire::Policy {
            exclusions: policy.exclusions.iter().map(IpNet::to_string).collect(),
            shared_names: policy
                .shared_names
                .iter()
                .map(DomainName::to_string)
                .collect(),
            stale_limit_seconds: policy.stale_limit_seconds,
        }),
    }
    .encode_to_vec()
}

fn encode_member(member: &Member) -> wire::Member {
    let roles = &member.roles;
    wire::Member {
        domain: member.domain.to_string(),
        trust_domain: member.trust_domain.clone(),
        bundle: member.bundle.clone(),
        roles: Some(wire::RoleIds {
            registry: roles.registry.clone(),
            router: roles.router.clone(),
            dns: roles.dns.clone(),
            workload: roles.workload.clone(),
            intermediary: roles.intermediary.clone(),
        }),
        contacts: member.contacts.clone(),
        block4: member
            .block4
            .map(|block| block.to_string())
            .unwrap_or_default(),
        block6: member.block6.to_string(),
        generation: member.generation.0,
        not_after: member
            .not_after
            .map_or(0, |end| i64::try_from(end.unix_secs()).unwrap_or(i64::MAX)),
        revoked: member.revoked,
        dials_only: member.dials_only,
    }
}

fn decode_document(bytes: &[u8]) -> Result<Document, DocumentError> {
    let wire = wire::Document::decode(bytes)?;
    if wire.format != FORMAT {
        return Err(DocumentError::Format { found: wire.format });
    }
    if wire.members.len() > MEMBERS_MAX {
        let count = format!("{} members", wire.members.len());
        return Err(FieldError::new("members", count, "at most 1024").into());
    }
    let mut members = BTreeMap::new();
    for member in &wire.members {
        let member = decode_member(member)?;
        let domain = member.domain.clone();
        if members.insert(domain.clone(), member).is_some() {
            return Err(
                FieldError::new("members.domain", domain.as_str(), "each domain once").into(),
            );
        }
    }
    let keys = wire
        .admin_keys
        .iter()
        .map(|key| admin_key("admin_keys", key));
    let policy = wire.policy.unwrap_or_default();
    Ok(Document {
        uid: network_uid("uid", &wire.uid)?,
        nonce: wire.nonce,
        version: wire.version,
        name: NetworkName::new(&wire.name)
            .map_err(|error| FieldError::new("name", &wire.name, error.allowed))?,
        zone: wire.zone,
        pool6: net6("pool6", &wire.pool6)?,
        pool4: net4("pool4", &wire.pool4)?,
        admin_keys: keys.collect::<Result<BTreeSet<_>, _>>()?,
        members,
        policy: Policy {
            exclusions: policy
                .exclusions
                .iter()
                .map(|range| net("policy.exclusions", range))
                .collect::<Result<_, _>>()?,
            shared_names: policy
                .shared_names
                .iter()
                .map(|domain| domain_name("policy.shared_names", domain))
                .collect::<Result<_, _>>()?,
            stale_limit_seconds: policy.stale_limit_seconds,
        },
    })
}

fn decode_member(wire: &wire::Member) -> Result<Member, FieldError> {
    let domain = domain_name("members.domain", &wire.domain)?;
    let field = |name: &str| format!("members[{domain}].{name}");
    let defaults = RoleIds::defaults(&wire.trust_domain);
    let given = wire.roles.clone().unwrap_or_default();
    let or =
        |given: Vec<String>, default: Vec<String>| if given.is_empty() { default } else { given };
    Ok(Member {
        trust_domain: wire.trust_domain.clone(),
        bundle: wire.bundle.clone(),
        roles: RoleIds {
            registry: or(given.registry, defaults.registry),
            router: or(given.router, defaults.router),
            dns: or(given.dns, defaults.dns),
            workload: or(given.workload, defaults.workload),
            intermediary: or(given.intermediary, defaults.intermediary),
        },
        contacts: wire.contacts.clone(),
        block4: net4(&field("block4"), &wire.block4)?,
        block6: net6(&field("block6"), &wire.block6)?,
        generation: Generation(wire.generation),
        not_after: match u64::try_from(wire.not_after) {
            Ok(0) => None,
            Ok(end) => Some(Wall::from_unix_secs(end)),
            // Before 1970: over in any case.
            Err(_) => Some(Wall(0)),
        },
        revoked: wire.revoked,
        dials_only: wire.dials_only,
        domain,
    })
}

fn domain_name(field: &str, value: &str) -> Result<DomainName, FieldError> {
    DomainName::new(value).map_err(|error| FieldError::new(field, value, error.allowed))
}

fn admin_key(field: &str, bytes: &[u8]) -> Result<AdminKey, FieldError> {
    let bad = |_| {
        FieldError::new(
            field,
            format!("{} bytes", bytes.len()),
            "32 bytes, an Ed25519 public key",
        )
    };
    bytes.try_into().map(AdminKey).map_err(bad)
}

/// As written: host bits are the validation's matter.
fn net(field: &str, value: &str) -> Result<IpNet, FieldError> {
    value
        .parse()
        .map_err(|_| FieldError::new(field, value, "a prefix such as 10.0.0.0/8 or fd00::/64"))
}

fn net6(field: &str, value: &str) -> Result<Ipv6Net, FieldError> {
    value
        .parse()
        .map_err(|_| FieldError::new(field, value, "an IPv6 prefix such as fd12:3456::/64"))
}

fn net4(field: &str, value: &str) -> Result<Option<Ipv4Net>, FieldError> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = value.parse().map(Some);
    parsed.map_err(|_| {
        FieldError::new(
            field,
            value,
            "an IPv4 prefix such as 10.0.0.0/16, or nothing",
        )
    })
}

#[cfg(test)]
mod tests {
    use vl3_core::ids::NetworkUid;

    use super::*;

    fn chain() -> Chain {
        let secret = AdminSecret::from_bytes(&[7; 32]);
        let admin_keys = BTreeSet::from([secret.public()]);
        let nonce = vec![1; 16];
        let member = Member {
            domain: DomainName::new("east").unwrap(),
            trust_domain: "east.test".to_owned(),
            bundle: b"PEM".to_vec(),
            roles: RoleIds::defaults("east.test"),
            contacts: vec!["192.0.2.1:5002".to_owned()],
            block4: Some("10.0.0.0/22".parse().unwrap()),
            block6: "fd00:1:2:3:1::/80".parse().unwrap(),
            generation: Generation(1),
            not_after: Some(Wall::from_unix_secs(2_000_000_000)),
            revoked: false,
            dials_only: true,
        };
        let document = Document {
            uid: NetworkUid::derive(&nonce, &admin_keys),
            nonce,
            version: 1,
            name: NetworkName::new("red").unwrap(),
            zone: "red.vl3".to_owned(),
            pool6: "fd00:1:2:3::/64".parse().unwrap(),
            pool4: Some("10.0.0.0/16".parse().unwrap()),
            admin_keys,
            members: BTreeMap::from([(member.domain.clone(), member)]),
            policy: Policy {
                exclusions: vec!["10.244.0.0/16".parse().unwrap()],
                ..Policy::default()
            },
        };
        Chain::verify(vec![sign(document, &[&secret])]).unwrap()
    }

    #[test]
    fn a_document_file_reads_back_as_it_was_written() {
        let chain = chain();
        let text = write_armoured(&chain);
        assert!(text.lines().all(|line| line.len() <= LINE));
        assert_eq!(read_armoured(&format!("a comment\n{text}")).unwrap(), chain);
    }

    #[test]
    fn a_changed_byte_breaks_the_signature() {
        let mut wire = encode_chain(&chain());
        let bytes = &mut wire.links[0].document;
        let at = bytes.windows(3).position(|bytes| bytes == b"PEM").unwrap();
        bytes[at] = b'Q';
        assert!(matches!(
            decode_chain(&wire),
            Err(DocumentError::Chain(ChainError::Unsigned { .. }))
        ));
    }

    #[test]
    fn garbage_and_other_formats_are_named() {
        assert!(matches!(
            read_armoured("nothing"),
            Err(DocumentError::Armour(_))
        ));
        assert!(matches!(
            read_armoured(&format!("{BEGIN}\n!!\n{END}")),
            Err(DocumentError::Armour(_))
        ));
        assert!(matches!(
            read_armoured(&format!("{BEGIN}\n{END}")),
            Err(DocumentError::Chain(ChainError::Empty))
        ));
        let newer = wire::Document {
            format: 2,
            ..Default::default()
        }
        .encode_to_vec();
        let link = wire::SignedDocument {
            document: newer,
            signatures: Vec::new(),
        };
        let error = decode_chain(&wire::DocumentChain { links: vec![link] }).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
    }
}
