//! What domains need before they can run: `DIR/NAME/{ca,registry}/..` for each domain and
//! `DIR/red.vl3net`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid};
use vl3_identity::authority::Authority;
use vl3_proto::document::{read_armoured, sign, write_armoured};
use vl3_runtime::clock;

pub(crate) const NETWORK: &str = "red";
pub(crate) const REGISTRY_PORT: u16 = 5002;
const DOCUMENT: &str = "red.vl3net";
const DAY: Duration = Duration::from_secs(86_400);
const DOMAINS_MAX: u16 = 255;

pub(crate) fn domain(number: u16) -> String {
    format!("d{number:03}")
}

/// Where that domain's registry listens.
pub(crate) fn address(number: u16) -> IpAddr {
    let [high, low] = (number + 1).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 1, high, low))
}

pub(crate) fn authority(dir: &Path, number: u16) -> anyhow::Result<Authority> {
    Ok(Authority::load(&dir.join(domain(number)).join("ca"))?)
}

pub(crate) fn chain(dir: &Path) -> anyhow::Result<Chain> {
    let path = dir.join(DOCUMENT);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(read_armoured(&text)?)
}

pub(crate) fn prepare(dir: &Path, domains: u16) -> anyhow::Result<Value> {
    anyhow::ensure!(
        (1..=DOMAINS_MAX).contains(&domains),
        "domains: {domains} is not allowed, 1 to {DOMAINS_MAX} are"
    );
    let members: BTreeMap<_, _> = (0..domains)
        .map(|number| member(dir, number).map(|member| (member.domain.clone(), member)))
        .collect::<anyhow::Result<_>>()?;
    let admin = AdminSecret::from_bytes(&rand::random());
    let admin_keys = BTreeSet::from([admin.public()]);
    let nonce = vec![9; 32];
    let document = Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce,
        version: 1,
        name: NetworkName::new(NETWORK)?,
        zone: "red.vl3".to_owned(),
        pool6: "fd00:1:2:3::/64".parse()?,
        pool4: Some("10.64.0.0/10".parse()?),
        admin_keys,
        members,
        policy: Policy::default(),
    };
    let chain = Chain::verify(vec![sign(document, &[&admin])])?;
    let file: PathBuf = dir.join(DOCUMENT);
    std::fs::write(&file, write_armoured(&chain))?;
    let known: Vec<_> = (0..domains)
        .map(|number| json!({ "domain": domain(number), "address": address(number) }))
        .collect();
    Ok(json!({ "uid": chain.uid().to_string(), "document": file, "domains": known }))
}

/// One domain: its CA, its registry's identity, its entry in the document.
fn member(dir: &Path, number: u16) -> anyhow::Result<Member> {
    let name = domain(number);
    let authority = Authority::create(&format!("{name}.test"), clock::wall())?;
    let at = dir.join(&name);
    std::fs::create_dir_all(&at)?;
    authority.store(&at.join("ca"))?;
    authority
        .issue(&format!("vl3/registry/{name}"), DAY, clock::wall())?
        .store(&at.join("registry"))?;
    Ok(Member {
        domain: DomainName::new(&name)?,
        trust_domain: authority.trust_domain().to_owned(),
        bundle: authority.bundle_pem().into_bytes(),
        roles: RoleIds::defaults(authority.trust_domain()),
        contacts: vec![format!("{}:{REGISTRY_PORT}", address(number))],
        block4: Some(format!("10.64.{number}.0/24").parse()?),
        block6: format!("fd00:1:2:3:{:x}::/80", number + 1).parse()?,
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    })
}
