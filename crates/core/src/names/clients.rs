//! Who asks, by the longest prefix of the source address (R4.1, R6.6).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::ClientClass;

/// Who asks.
pub(super) type ClientTable = ByPrefix<ClientClass>;

/// What belongs to the longest prefix that holds an address.
#[derive(Clone, Debug)]
pub struct ByPrefix<T> {
    prefixes: BTreeMap<IpNet, T>,
    /// Lengths in use, per family (v4, v6), longest first.
    lengths: [Vec<u8>; 2],
}

impl<T> Default for ByPrefix<T> {
    fn default() -> Self {
        Self {
            prefixes: BTreeMap::new(),
            lengths: Default::default(),
        }
    }
}

impl<T: Copy + Ord> ByPrefix<T> {
    /// Of equal prefixes the lowest value wins: of classes the one that may get less.
    pub fn new(entries: &[(IpNet, T)]) -> Self {
        let mut table = Self::default();
        for (prefix, value) in entries {
            let entry = table.prefixes.entry(prefix.trunc()).or_insert(*value);
            *entry = (*entry).min(*value);
            table.lengths[family(prefix.addr())].push(prefix.prefix_len());
        }
        for lengths in &mut table.lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        table
    }

    pub fn lookup(&self, address: IpAddr) -> Option<T> {
        self.lengths[family(address)].iter().find_map(|length| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            self.prefixes.get(&prefix).copied()
        })
    }
}

const fn family(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 1,
    }
}
