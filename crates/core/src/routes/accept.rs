//! Which announced routes are believed.

use core::fmt;

use ipnet::IpNet;

use crate::allocator::Lease;
use crate::document::Document;
use crate::ids::DomainName;
use crate::time::Wall;

/// The preference of a router's prefix or a host route.
pub const PREFIX: u32 = 0;
/// The preference of a domain's block: only where nothing better is known.
pub const BLOCK: u32 = 1;

/// Why a route was not believed. Also the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disbelief {
    /// Host bits set, or an unknown preference.
    Malformed,
    /// The announcer's domain is no live member.
    NoMember,
    /// Outside the announcing domain's blocks.
    Foreign,
    /// A host route or a block from where it does not belong.
    WrongKind,
    /// Overlaps this router's own prefix.
    Own,
    /// One route more than the link may have.
    TooMany,
}

impl Disbelief {
    pub const ALL: [Self; 6] = [
        Self::Malformed,
        Self::NoMember,
        Self::Foreign,
        Self::WrongKind,
        Self::Own,
        Self::TooMany,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoMember => "no_member",
            Self::Foreign => "foreign",
            Self::WrongKind => "wrong_kind",
            Self::Own => "own",
            Self::TooMany => "too_many",
        }
    }
}

impl fmt::Display for Disbelief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Who judges.
#[derive(Debug)]
pub struct Judge<'a> {
    pub document: &'a Document,
    pub own_domain: &'a DomainName,
    pub own_lease: Option<&'a Lease>,
    pub wall: Wall,
}

impl Judge<'_> {
    /// Whether `announcer` (a domain) may speak for `prefix` towards this router.
    pub fn judge(
        &self,
        announcer: &DomainName,
        prefix: IpNet,
        preference: u32,
    ) -> Result<(), Disbelief> {
        if prefix != prefix.trunc() || preference > BLOCK {
            return Err(Disbelief::Malformed);
        }
        let member = self
            .document
            .member(announcer, self.wall)
            .ok_or(Disbelief::NoMember)?;
        if !member.owns(&prefix) {
            return Err(Disbelief::Foreign);
        }
        let host = prefix.prefix_len() == prefix.max_prefix_len();
        let sibling = announcer == self.own_domain;
        if sibling && preference != PREFIX || !sibling && host {
            return Err(Disbelief::WrongKind);
        }
        let overlaps = |own: IpNet| own.contains(&prefix) || prefix.contains(&own);
        if let Some(lease) = self.own_lease.filter(|_| sibling) {
            // A sibling may serve single workloads of ours, never our address or a range.
            let router = lease.addresses().any(|address| prefix.contains(&address));
            if router || !host && lease.prefixes().any(overlaps) {
                return Err(Disbelief::Own);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::fixture::{document, domain};
    use crate::ids::{Generation, InstanceId};

    #[test]
    fn a_sibling_may_serve_a_workload_of_ours_but_never_our_own_address() {
        let (document, east) = (document(&["east"]), domain("east"));
        let lease = Lease {
            uid: document.uid,
            router: "red-east-1".parse().unwrap(),
            instance: InstanceId([1; 16]),
            generation: Generation(1),
            prefix4: Some("10.80.4.0/24".parse().unwrap()),
            prefix6: "fd00:1:2:3:1::/96".parse().unwrap(),
        };
        let judge = Judge {
            document: &document,
            own_domain: &east,
            own_lease: Some(&lease),
            wall: Wall::from_unix_secs(1_800_000_000),
        };
        let said = |prefix: &str| judge.judge(&east, prefix.parse().unwrap(), PREFIX);
        for workload in ["10.80.4.9/32", "fd00:1:2:3:1::9/128"] {
            assert_eq!(said(workload), Ok(()), "{workload}");
        }
        for own in ["10.80.4.0/32", "fd00:1:2:3:1::/128"] {
            assert_eq!(said(own), Err(Disbelief::Own), "{own}");
        }
    }
}
