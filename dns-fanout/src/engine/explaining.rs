//! One question explained (R7.3): asked anew of everybody, and what happened on the way.

use std::net::IpAddr;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use vl3_core::Ticket;
use vl3_core::names::{
    Answered, Asking, Data, Flags, Question, Record, RecordType, ResolverInput, Step, Transport,
};

use super::Engine;

/// Explanations under way at one time; more are refused.
const EXPLAINED_MAX: usize = 16;
/// Tells their numbers from those of clients' questions, whose generations are below.
const EXPLAINED: u64 = 1 << 63;

/// What somebody wants to know.
#[derive(Debug)]
pub(crate) struct Explain {
    pub(crate) question: Question,
    /// Whose question it would be.
    pub(crate) source: IpAddr,
    pub(crate) reply: oneshot::Sender<Result<Value, String>>,
}

/// One that is under way.
#[derive(Debug)]
pub(super) struct Explained {
    question: Question,
    reply: oneshot::Sender<Result<Value, String>>,
}

impl Engine {
    pub(super) fn explain(&mut self, explain: Explain) {
        if self.explained.len() >= EXPLAINED_MAX {
            let busy = "too many questions are being explained; try again".to_owned();
            // Err: who asked left.
            return drop(explain.reply.send(Err(busy)));
        }
        let question = explain.question.clone();
        let at = self.explained.insert(Explained {
            question: explain.question,
            reply: explain.reply,
        });
        let asker = Ticket(EXPLAINED | u64::from(at));
        let flags = Flags {
            recursion_desired: true,
            ..Flags::default()
        };
        let mut asking = Asking::new(asker, explain.source, question, flags);
        asking.explain = true;
        self.input(ResolverInput::Ask(asking));
    }

    /// Whether an answer is one of these.
    pub(super) const fn is_explained(asker: Ticket) -> bool {
        asker.0 & EXPLAINED != 0
    }

    pub(super) fn explained(&mut self, answered: Answered) {
        let at = u32::try_from(answered.asker.0 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        if let Some(explained) = self.explained.remove(at) {
            let shown = show(&explained.question, &answered);
            // Err: who asked left.
            let _left = explained.reply.send(Ok(shown));
        }
    }
}

fn show(question: &Question, answered: &Answered) -> Value {
    let answer = answered.reading.to_answer();
    let records = |list: &[Record]| list.iter().map(record).collect::<Vec<_>>();
    let steps: Vec<Value> = answered
        .trace
        .iter()
        .flat_map(|trace| &trace.steps)
        .map(|(at, shown)| step(at.as_secs_f64() * 1e3, shown))
        .collect();
    json!({
        "name": question.name.to_string(),
        "type": type_text(question.rtype),
        "steps": steps,
        "steps_left_out": answered.trace.as_ref().map_or(0, |trace| trace.left_out),
        "answer": {
            "rcode": answer.rcode.label(),
            "decision": answer.decision.label(),
            "rule": answer.decision.rule(),
            "authoritative": answer.authoritative,
            "records": records(&answer.answers),
            "authority": records(&answer.authority),
            "because": answer.extended.map(|error| json!({
                "code": error.code,
                "text": error.text,
            })),
        },
    })
}

fn step(at_ms: f64, step: &Step) -> Value {
    let mut shown = match step {
        Step::Planned {
            rule,
            policy,
            upstreams,
        } => {
            let upstreams: Vec<&str> = upstreams.iter().map(|id| id.as_str()).collect();
            json!({ "step": "planned", "rule": rule, "policy": policy.label(), "upstreams": upstreams })
        }
        Step::Cached { state, age } => json!({ "step": "cached", "state": state, "age_s": age }),
        Step::LeftOut { upstream, failure } => {
            json!({ "step": "left_out", "upstream": upstream.as_str(), "why": failure.label() })
        }
        Step::Joined => json!({ "step": "joined" }),
        Step::Asked {
            upstream,
            server,
            transport,
        } => json!({
            "step": "asked",
            "upstream": upstream.as_str(),
            "server": server.to_string(),
            "transport": match transport { Transport::Udp => "udp", Transport::Tcp => "tcp" },
        }),
        Step::Said {
            upstream,
            vote,
            records,
            truncated,
        } => json!({
            "step": "said",
            "upstream": upstream.as_str(),
            "vote": vote,
            "records": records,
            "truncated": truncated,
        }),
        Step::Failed { upstream, failure } => {
            json!({ "step": "failed", "upstream": upstream.as_str(), "why": failure.label() })
        }
        Step::Answered {
            rcode,
            decision,
            rule,
        } => json!({
            "step": "answered",
            "rcode": rcode.label(),
            "decision": decision.label(),
            "rule": rule,
        }),
    };
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("at_ms".to_owned(), json!(at_ms));
    }
    shown
}

fn record(record: &Record) -> Value {
    let data = match &record.data {
        Data::A(address) => address.to_string(),
        Data::Aaaa(address) => address.to_string(),
        Data::Cname(target) | Data::Ptr(target) => target.to_string(),
        Data::Srv {
            priority,
            weight,
            port,
            target,
        } => format!("{priority} {weight} {port} {target}"),
        Data::Soa(soa) => format!("{} {} {}", soa.mname, soa.rname, soa.serial),
        // RFC 3597 5.
        Data::Opaque { data, .. } => {
            let octets: String = data.iter().map(|octet| format!("{octet:02x}")).collect();
            format!("\\# {} {octets}", data.len())
        }
    };
    json!({
        "name": record.owner.to_string(),
        "ttl": record.ttl,
        "type": type_text(record.data.rtype()),
        "data": data,
    })
}

/// The type as people write it; RFC 3597 5 for others.
pub(crate) fn type_text(rtype: RecordType) -> String {
    TYPES.iter().find(|(known, _)| *known == rtype).map_or_else(
        || format!("TYPE{}", rtype.0),
        |(_, text)| (*text).to_owned(),
    )
}

const TYPES: [(RecordType, &str); 14] = [
    (RecordType::A, "A"),
    (RecordType::NS, "NS"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::SOA, "SOA"),
    (RecordType::PTR, "PTR"),
    (RecordType(15), "MX"),
    (RecordType::TXT, "TXT"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::SRV, "SRV"),
    (RecordType::DS, "DS"),
    (RecordType::DNSKEY, "DNSKEY"),
    (RecordType(65), "HTTPS"),
    (RecordType(257), "CAA"),
    (RecordType::ANY, "ANY"),
];

/// A type as people write it.
pub(crate) fn type_of(text: &str) -> Option<RecordType> {
    let upper = text.to_ascii_uppercase();
    TYPES
        .iter()
        .find(|(_, known)| *known == upper)
        .map(|(known, _)| *known)
        .or_else(|| upper.strip_prefix("TYPE")?.parse().ok().map(RecordType))
}
