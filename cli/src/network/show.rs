//! A document for people and for programs.

use serde_json::{Value, json};
use vl3_core::document::{Chain, Member, RoleIds};
use vl3_identity::token::format_rfc3339;
use vl3_runtime::clock;

use super::edit::ROLES;
use crate::output::{self, Output};

pub(super) fn table(chain: &Chain, out: &Output) {
    let document = chain.document();
    out.heading(&format!(
        "network {} version {}",
        document.name, document.version
    ));
    let pool4 = document
        .pool4
        .map_or_else(|| "none".to_owned(), |pool| pool.to_string());
    let keys: Vec<_> = document
        .admin_keys
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut facts = vec![
        ("uid", document.uid.to_string()),
        ("zone", document.zone.clone()),
        ("pools", format!("{}, IPv4 {pool4}", document.pool6)),
        ("admin keys", keys.join(", ")),
        (
            "stale limit",
            format!("{} s", document.policy.stale_limit_seconds),
        ),
    ];
    if !document.policy.exclusions.is_empty() {
        let ranges: Vec<_> = document
            .policy
            .exclusions
            .iter()
            .map(ToString::to_string)
            .collect();
        facts.push(("exclusions", ranges.join(", ")));
    }
    if !document.policy.shared_names.is_empty() {
        let domains: Vec<_> = document
            .policy
            .shared_names
            .iter()
            .map(ToString::to_string)
            .collect();
        facts.push(("shared names", domains.join(", ")));
    }
    for (name, value) in facts {
        out.line(&format!("{name:<13}{value}"));
    }
    out.line("");
    let header = [
        "domain",
        "trust domain",
        "IPv4 block",
        "IPv6 block",
        "registry",
        "state",
    ];
    let mut members = output::table(&header.map(str::to_owned));
    for member in document.members.values() {
        members.add_row([
            member.domain.to_string(),
            member.trust_domain.clone(),
            member
                .block4
                .map_or_else(|| "-".to_owned(), |block| block.to_string()),
            member.block6.to_string(),
            if member.contacts.is_empty() {
                "-".to_owned()
            } else {
                member.contacts.join(", ")
            },
            state(member),
        ]);
    }
    out.line(&members.to_string());
    for member in document.members.values() {
        let defaults = RoleIds::defaults(&member.trust_domain);
        for (word, role) in ROLES {
            let patterns = member.roles.patterns(role);
            if patterns != defaults.patterns(role) {
                let (domain, ids) = (&member.domain, patterns.join(", "));
                out.line(&format!("{word} of {domain}: {ids}"));
            }
        }
    }
}

fn state(member: &Member) -> String {
    let live = member.is_live(clock::wall());
    match (member.revoked, live, member.not_after) {
        (true, ..) => "revoked".to_owned(),
        (false, false, Some(end)) => format!("ended {}", format_rfc3339(end)),
        (false, _, Some(end)) => format!("until {}", format_rfc3339(end)),
        (false, _, None) if member.dials_only => "member, dials only".to_owned(),
        (false, _, None) => "member".to_owned(),
    }
}

pub(super) fn json(chain: &Chain) -> Value {
    let document = chain.document();
    let members: Vec<_> = document
        .members
        .values()
        .map(|member| {
            json!({
                "domain": member.domain.as_str(),
                "trust_domain": member.trust_domain,
                "block4": member.block4.map(|block| block.to_string()),
                "block6": member.block6.to_string(),
                "contacts": member.contacts,
                "roles": ROLES
                    .iter()
                    .map(|(word, role)| ((*word).to_owned(), json!(member.roles.patterns(*role))))
                    .collect::<serde_json::Map<_, _>>(),
                "dials_only": member.dials_only,
                "revoked": member.revoked,
                "not_after": member.not_after.map(format_rfc3339),
                "generation": member.generation.0,
                "live": member.is_live(clock::wall()),
            })
        })
        .collect();
    json!({
        "network": document.name.as_str(),
        "uid": document.uid.to_string(),
        "version": document.version,
        "zone": document.zone,
        "pool6": document.pool6.to_string(),
        "pool4": document.pool4.map(|pool| pool.to_string()),
        "admin_keys": document.admin_keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "policy": {
            "exclusions": document.policy.exclusions.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "shared_names": document.policy.shared_names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "stale_limit_seconds": document.policy.stale_limit_seconds,
        },
        "members": members,
    })
}
