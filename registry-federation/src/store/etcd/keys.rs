//! Names and values below the prefix.

use etcd_client::KeyValue;
use serde::{Deserialize, Serialize};
use vl3_core::registry::Record;

use crate::store::{Candidate, StoreError, decode_removal};

/// Format of what is below the prefix. A newer one is refused.
pub(super) const FORMAT: u64 = 1;

/// Builds keys; numbers are written so that their order is that of the keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

/// What `head` says. JSON, for people with `etcdctl`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Which `journal/GENERATION/` counts.
    pub(super) generation: u64,
    /// Number of its first entry; numbers of history are below.
    pub(super) first: u64,
    /// Number of the next entry.
    pub(super) next: u64,
    /// The last job, and how many transactions of it are done.
    pub(super) batch: String,
    pub(super) part: u32,
    /// The replica that wrote last, for people.
    pub(super) writer: String,
}

#[derive(Serialize, Deserialize)]
struct ActiveValue {
    id: String,
    name: String,
    address: String,
}

/// A key below the prefix, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Head,
    Journal {
        generation: u64,
    },
    Object(&'a str),
    /// A part of a large entry too.
    Other,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn all(&self) -> String {
        self.prefix.clone()
    }

    pub(super) fn format(&self) -> String {
        format!("{}format", self.prefix)
    }

    pub(super) fn head(&self) -> String {
        format!("{}head", self.prefix)
    }

    pub(super) fn active(&self) -> String {
        format!("{}active", self.prefix)
    }

    pub(super) fn journals(&self) -> String {
        format!("{}journal/", self.prefix)
    }

    pub(super) fn journal(&self, generation: u64) -> String {
        format!("{}journal/{generation:020}/", self.prefix)
    }

    pub(super) fn entry(&self, generation: u64, number: u64) -> String {
        format!("{}{number:020}", self.journal(generation))
    }

    pub(super) fn history(&self) -> String {
        format!("{}history/", self.prefix)
    }

    pub(super) fn replaced(&self, number: u64) -> String {
        format!("{}{number:020}", self.history())
    }

    /// Part of what stands under the key of an entry.
    pub(super) fn part(key: &str, at: usize) -> String {
        format!("{}{at:05}", Self::parts(key))
    }

    pub(super) fn parts(key: &str) -> String {
        format!("{key}/")
    }

    pub(super) fn objects(&self) -> String {
        format!("{}objects/", self.prefix)
    }

    pub(super) fn object(&self, key: &str) -> String {
        format!("{}{key}", self.objects())
    }

    pub(super) fn place<'a>(&self, key: &'a [u8]) -> Place<'a> {
        let key = std::str::from_utf8(key).unwrap_or_default();
        let Some(rest) = key.strip_prefix(&self.prefix) else {
            return Place::Other;
        };
        if rest == "head" {
            return Place::Head;
        }
        if let Some(key) = rest.strip_prefix("objects/") {
            return Place::Object(key);
        }
        let journal = rest.strip_prefix("journal/");
        let entry = journal.and_then(|rest| rest.split_once('/'));
        match entry {
            Some((generation, number)) if !number.contains('/') => generation
                .parse()
                .map_or(Place::Other, |generation| Place::Journal { generation }),
            _ => Place::Other,
        }
    }
}

/// The number at the end of a key.
pub(super) fn number(key: &[u8]) -> u64 {
    let key = std::str::from_utf8(key).unwrap_or_default();
    let number = key.rsplit('/').next().and_then(|last| last.parse().ok());
    number.unwrap_or(0)
}

/// The first key that has no such prefix.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // Prefixes end with a slash or a digit, never with the last byte.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

pub(super) fn encode_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

pub(super) fn decode_head(kv: &KeyValue) -> Result<Head, StoreError> {
    serde_json::from_slice(kv.value()).map_err(|error| damaged(kv, &error.to_string()))
}

pub(super) fn check_format(kv: &KeyValue) -> Result<(), StoreError> {
    let text = kv.value_str().unwrap_or_default();
    match text.parse::<u64>() {
        Ok(found) if found > FORMAT => Err(StoreError::Newer { found }),
        Ok(_) => Ok(()),
        Err(error) => Err(damaged(kv, &error.to_string())),
    }
}

pub(super) fn encode_active(candidate: &Candidate) -> Vec<u8> {
    encode_json(&ActiveValue {
        id: format!("{:032x}", candidate.id),
        name: candidate.name.clone(),
        address: candidate.address.clone(),
    })
}

/// None where somebody else wrote something else there.
pub(super) fn decode_active(kv: &KeyValue) -> Option<Candidate> {
    let value: ActiveValue = serde_json::from_slice(kv.value()).ok()?;
    Some(Candidate {
        id: u128::from_str_radix(&value.id, 16).ok()?,
        name: value.name,
        address: value.address,
    })
}

/// What the end of an object means to those who follow.
pub(super) fn removal(key: &str) -> Option<Record> {
    decode_removal(key).ok()
}

/// Names the key; nothing in it is read or written.
pub(super) fn damaged(kv: &KeyValue, reason: &str) -> StoreError {
    let key = String::from_utf8_lossy(kv.key());
    StoreError::Read(format!("{key} is damaged: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        let keys = Keys::new("/vl3/east/");
        let entry = keys.entry(3, 41);
        assert_eq!(
            entry,
            "/vl3/east/journal/00000000000000000003/00000000000000000041"
        );
        assert_eq!(
            keys.place(entry.as_bytes()),
            Place::Journal { generation: 3 }
        );
        assert_eq!(number(entry.as_bytes()), 41);
        let part = Keys::part(&entry, 7);
        assert_eq!(part, format!("{entry}/00007"));
        assert_eq!(keys.place(part.as_bytes()), Place::Other);
        let object = keys.object("remote/west/a/b");
        assert_eq!(
            keys.place(object.as_bytes()),
            Place::Object("remote/west/a/b")
        );
        assert_eq!(keys.place(keys.head().as_bytes()), Place::Head);
        assert_eq!(keys.place(b"/vl3/eastern/head"), Place::Other);
        assert_eq!(keys.place(keys.active().as_bytes()), Place::Other);
        assert_eq!(end_of("/vl3/east/"), b"/vl3/east0");
    }

    #[test]
    fn a_removed_object_is_named_by_its_key() {
        let remote = Record::RemoteRemoved {
            domain: vl3_core::ids::DomainName::new("west").unwrap(),
            name: "a/b".to_owned(),
        };
        assert_eq!(removal("remote/west/a/b"), Some(remote.clone()));
        assert_eq!(remote.object_key().unwrap().to_string(), "remote/west/a/b");
        assert_eq!(removal("unknown/x"), None);
    }
}
