//! Entries of the journal and of history as values: eight bytes of time, then what was appended.
//!
//! etcd refuses requests of more than 1.5 MiB, and a network document may take more. A value
//! above [`PART_BYTES`] stands in parts, `KEY/00000` and on, and under its key how many there
//! are and how long they are together. The parts are written before, in transactions of their
//! own where they need some: the key says that all of them are there.

use etcd_client::KeyValue;
use serde::{Deserialize, Serialize};
use vl3_core::Wall;

use super::keys::{Keys, damaged, encode_json};
use crate::store::{Entry, StoreError};

/// Two of them fit into one transaction.
pub(super) const PART_BYTES: usize = 480 * 1024;

/// In the place of the time: no entry is of that one.
const IN_PARTS: [u8; 8] = [0xFF; 8];

/// What stands under the key of a value in parts, after [`IN_PARTS`]. JSON, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InParts {
    pub(super) parts: usize,
    bytes: usize,
}

/// One entry as what is put into the store, in this order.
pub(super) fn encode_entry(key: String, entry: &Entry) -> Vec<(String, Vec<u8>)> {
    let mut value = entry.at.0.to_be_bytes().to_vec();
    value.extend_from_slice(&entry.bytes);
    if value.len() <= PART_BYTES {
        return vec![(key, value)];
    }
    let parts = value.chunks(PART_BYTES).enumerate();
    let mut puts: Vec<_> = parts
        .map(|(at, part)| (Keys::part(&key, at), part.to_vec()))
        .collect();
    let head = InParts {
        parts: puts.len(),
        bytes: value.len(),
    };
    puts.push((key, [&IN_PARTS, encode_json(&head).as_slice()].concat()));
    puts
}

/// Where the entry stands in parts: how they are to be put together.
pub(super) fn in_parts(kv: &KeyValue) -> Result<Option<InParts>, StoreError> {
    let Some(head) = kv.value().strip_prefix(&IN_PARTS) else {
        return Ok(None);
    };
    let head = serde_json::from_slice(head).map_err(|error| damaged(kv, &error.to_string()))?;
    Ok(Some(head))
}

/// The entry under that key; `after` are the keys and values that follow it in the order of keys.
pub(super) fn decode_entry(kv: &KeyValue, after: &[KeyValue]) -> Result<Entry, StoreError> {
    let Some(head) = in_parts(kv)? else {
        return split(kv, kv.value());
    };
    let parts = after.get(..head.parts).unwrap_or(after);
    let key = kv.key_str().unwrap_or_default();
    let right = parts.len() == head.parts
        && (0..)
            .zip(parts)
            .all(|(at, part)| part.key() == Keys::part(key, at).as_bytes());
    let value = parts
        .iter()
        .map(KeyValue::value)
        .collect::<Vec<_>>()
        .concat();
    if !right || value.len() != head.bytes {
        let reason = format!(
            "{} parts of {} bytes together are missing or others",
            head.parts, head.bytes
        );
        return Err(damaged(kv, &reason));
    }
    split(kv, &value)
}

fn split(kv: &KeyValue, value: &[u8]) -> Result<Entry, StoreError> {
    let Some((at, bytes)) = value.split_first_chunk::<8>() else {
        return Err(damaged(kv, "shorter than its time"));
    };
    Ok(Entry {
        at: Wall(u64::from_be_bytes(*at)),
        bytes: bytes.to_vec(),
    })
}
