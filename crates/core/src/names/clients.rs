//! Who asks, by the longest prefix of the source address (R4.1, R6.6).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::ClientClass;

/// Longest prefix of a source address.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientTable {
    prefixes: BTreeMap<IpNet, ClientClass>,
    /// Lengths in use, per family (v4, v6), longest first.
    lengths: [Vec<u8>; 2],
}

impl ClientTable {
    /// Of equal prefixes the class that may get less wins.
    pub(super) fn new(clients: &[(IpNet, ClientClass)]) -> Self {
        let mut table = Self::default();
        for (prefix, class) in clients {
            let entry = table.prefixes.entry(prefix.trunc()).or_insert(*class);
            *entry = (*entry).min(*class);
            table.lengths[family(prefix.addr())].push(prefix.prefix_len());
        }
        for lengths in &mut table.lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        table
    }

    pub(super) fn lookup(&self, source: IpAddr) -> Option<ClientClass> {
        self.lengths[family(source)].iter().find_map(|length| {
            let prefix = IpNet::new(source, *length).ok()?.trunc();
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
