use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::route::family_of;
use super::{Netlink, accept};
use crate::error::Error;

/// Packets from `source` look in `table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub source: IpNet,
    pub table: u32,
    /// Lower is asked earlier; main has 32766.
    pub priority: u32,
}

impl Netlink {
    pub async fn add_rule(&self, rule: Rule) -> Result<(), Error> {
        accept(
            self.request(
                || format!("send packets from {} to table {}", rule.source, rule.table),
                RouteNetlinkMessage::NewRule(message_of(rule)),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await,
            &[libc::EEXIST],
        )
    }

    /// Deletes the rule; one that is not there is fine.
    pub async fn delete_rule(&self, rule: Rule) -> Result<(), Error> {
        accept(
            self.request(
                || format!("delete the rule for packets from {}", rule.source),
                RouteNetlinkMessage::DelRule(message_of(rule)),
                0,
            )
            .await,
            &[libc::ENOENT, libc::ESRCH],
        )
    }
}

fn message_of(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family_of(rule.source);
    message.header.src_len = rule.source.prefix_len();
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Table(rule.table));
    message
        .attributes
        .push(RuleAttribute::Priority(rule.priority));
    if rule.source.prefix_len() > 0 {
        message
            .attributes
            .push(RuleAttribute::Source(rule.source.network()));
    }
    message
}
