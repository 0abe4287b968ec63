//! One network as this domain's registry holds it.

use super::names::Names;
use super::record::Record;
use crate::allocator::Allocator;
use crate::document::DocumentStore;

#[derive(Debug)]
pub(super) struct Network {
    pub(super) store: DocumentStore,
    pub(super) allocator: Allocator,
    pub(super) names: Names,
}

impl Network {
    pub(super) fn snapshot(&self) -> Vec<Record> {
        let uid = self.store.uid();
        let document = [Record::Document {
            chain: self.store.chain().clone(),
        }];
        let leases = self
            .allocator
            .snapshot()
            .into_iter()
            .map(|record| Record::Lease { uid, record });
        document
            .into_iter()
            .chain(leases)
            .chain(self.names.snapshot(uid))
            .collect()
    }
}
