//! Replicas of one registry over one store: at most one is active and decides, the others
//! follow the records that it wrote and answer what only reads.
//!
//! ```text
//!            Promoted           Deposed
//! following ----------> active ----------> halted: the shell boots another machine
//!                        |  ^
//!            Unconfirmed v  | Confirmed
//!                     unconfirmed: nothing is accepted, nothing ends
//! ```
//!
//! A following machine journals nothing, ends nothing by time and has no streams: whatever the
//! active one derives from a record comes as records of its own. It does follow the documents,
//! so that it knows whom to trust.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::api::{Alarm, Effect, Refusal};
use super::machine::{Boot, RegistryMachine};
use super::record::Record;
use crate::allocator::LeaseRecord;
use crate::document::{Chain, DocumentStore, Offer};
use crate::ids::{DomainName, NetworkUid, RouterName, WorkloadName};
use crate::machine::Outbox;
use crate::time::Now;

type Out<'a> = &'a mut Outbox<Effect>;

/// What a replica that follows keeps in mind for its promotion.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// The documents of the configuration.
    configured: Vec<Chain>,
    /// Networks whose document the store does not hold.
    unrecorded: BTreeSet<NetworkUid>,
    /// The store was restored from a backup.
    restored: bool,
}

/// What a record is about: of two records about the same, the later one counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Document(NetworkUid),
    Floor(NetworkUid),
    Exclusion(NetworkUid, IpNet),
    Restored(NetworkUid),
    Lease(NetworkUid, RouterName),
    Name(NetworkUid, WorkloadName),
    Service(String),
    Endpoint(String),
    Remote(DomainName, String),
}

impl About {
    fn of(record: &Record) -> Self {
        match record {
            Record::Document { chain } => Self::Document(chain.uid()),
            Record::Lease { uid, record } => match record {
                LeaseRecord::Floor { .. } => Self::Floor(*uid),
                LeaseRecord::Excluded { range } | LeaseRecord::Included { range } => {
                    Self::Exclusion(*uid, *range)
                }
                LeaseRecord::Granted { lease, .. } => Self::Lease(*uid, lease.router.clone()),
                LeaseRecord::Ended { router } => Self::Lease(*uid, router.clone()),
                LeaseRecord::Restored { .. } | LeaseRecord::Readopted => Self::Restored(*uid),
            },
            Record::Name { uid, claim, .. } => Self::Name(*uid, claim.name.clone()),
            Record::NameReleased { uid, name } => Self::Name(*uid, name.clone()),
            Record::Service { service, .. } => Self::Service(service.name.clone()),
            Record::ServiceRemoved { name } => Self::Service(name.clone()),
            Record::Endpoint { endpoint, .. } => Self::Endpoint(endpoint.name.clone()),
            Record::EndpointRemoved { name } => Self::Endpoint(name.clone()),
            Record::Remote {
                domain, endpoint, ..
            } => Self::Remote(domain.clone(), endpoint.name().to_owned()),
            Record::RemoteRemoved { domain, name } => Self::Remote(domain.clone(), name.clone()),
        }
    }

    /// The record that takes it away; None for what only grows.
    fn removal(self) -> Option<Record> {
        let lease = |uid, record| Some(Record::Lease { uid, record });
        match self {
            Self::Document(_) | Self::Floor(_) => None,
            Self::Exclusion(uid, range) => lease(uid, LeaseRecord::Included { range }),
            Self::Restored(uid) => lease(uid, LeaseRecord::Readopted),
            Self::Lease(uid, router) => lease(uid, LeaseRecord::Ended { router }),
            Self::Name(uid, name) => Some(Record::NameReleased { uid, name }),
            Self::Service(name) => Some(Record::ServiceRemoved { name }),
            Self::Endpoint(name) => Some(Record::EndpointRemoved { name }),
            Self::Remote(domain, name) => Some(Record::RemoteRemoved { domain, name }),
        }
    }
}

impl Following {
    /// At the start: nothing of the configuration is known to be in the store.
    pub(super) fn new(boot: &Boot) -> Self {
        Self {
            configured: boot.documents.clone(),
            unrecorded: BTreeSet::new(),
            restored: boot.restored,
        }
    }

    pub(super) fn unrecorded(&mut self, uid: NetworkUid) {
        self.unrecorded.insert(uid);
    }
}

impl RegistryMachine {
    /// Whether another replica decides.
    pub const fn is_following(&self) -> bool {
        self.following.is_some()
    }

    /// Takes what the active replica wrote, and tells watchers.
    pub(super) fn followed(&mut self, records: Vec<Record>, now: Now, out: Out<'_>) {
        if !self.is_following() {
            return;
        }
        for record in records {
            let is_news = match &record {
                Record::Document { chain } => self.follow_document(chain),
                Record::Lease { .. }
                | Record::Name { .. }
                | Record::NameReleased { .. }
                | Record::Service { .. }
                | Record::ServiceRemoved { .. }
                | Record::Endpoint { .. }
                | Record::EndpointRemoved { .. }
                | Record::Remote { .. }
                | Record::RemoteRemoved { .. } => true,
            };
            if is_news {
                let before = self.last_known(&record);
                self.apply(&record, now.mono);
                self.announce(&record, before, now, out);
            }
        }
    }

    /// False for a version that is held, and for networks that are not served.
    fn follow_document(&mut self, chain: &Chain) -> bool {
        let uid = chain.uid();
        let was_unrecorded = self
            .following
            .as_mut()
            .is_some_and(|following| following.unrecorded.remove(&uid));
        let Some(network) = self.networks.get_mut(&uid) else {
            self.keep_dormant(chain);
            return false;
        };
        if was_unrecorded && network.store.chain() != chain {
            // What the store holds counts, also where our configuration is ahead of it.
            network.store = DocumentStore::new(chain.clone());
            return true;
        }
        chain.document().version > network.store.version()
    }

    /// The feed had a gap: takes the whole state, as the changes that lead to it.
    pub(super) fn reload(&mut self, records: Vec<Record>, now: Now, out: Out<'_>) {
        if !self.is_following() {
            return;
        }
        let boot = Boot {
            records,
            ..Boot::default()
        };
        let wanted = match Self::boot(self.config.clone(), boot, now) {
            Ok(wanted) => wanted,
            Err(error) => {
                let reason = error.to_string();
                self.halted = Some(reason.clone());
                return out.push(Effect::Alarm(Alarm::JournalFailed { reason }));
            }
        };
        let by_subject = |records: Vec<Record>| -> BTreeMap<_, _> {
            let subject = |record| (About::of(&record), record);
            records.into_iter().map(subject).collect()
        };
        let (held, wanted) = (by_subject(self.snapshot()), by_subject(wanted.snapshot()));
        let gone = held
            .keys()
            .filter(|about| !wanted.contains_key(about))
            .cloned();
        let mut changes: Vec<_> = gone.filter_map(About::removal).collect();
        // A document that is held as well is now known to be in the store.
        let news = wanted.into_iter().filter(|(about, record)| {
            matches!(about, About::Document(_)) || held.get(about) != Some(record)
        });
        changes.extend(news.map(|(_, record)| record));
        // Networks before what is in them.
        changes.sort_by_key(|record| !matches!(record, Record::Document { .. }));
        self.followed(changes, now, out);
    }

    /// This replica decides from now on, starting from what the store holds: everything lives
    /// one full lifetime more, as after a restart.
    pub(super) fn promoted(&mut self, records: Vec<Record>, now: Now, out: Out<'_>) {
        self.reload(records, now, out);
        if self.halted.is_some() {
            return;
        }
        let Some(mut following) = self.following.take() else {
            return;
        };
        for record in self.snapshot() {
            self.apply(&record, now.mono);
        }
        self.start_journal();
        if following.restored {
            let records = self.restored();
            self.commit(records, now, out);
        }
        for chain in following.configured {
            let Some(network) = self.networks.get(&chain.uid()) else {
                continue;
            };
            let is_new = matches!(network.store.decide(&chain), Offer::Newer(_));
            if following.unrecorded.remove(&chain.uid()) || is_new {
                self.commit(vec![Record::Document { chain }], now, out);
            }
        }
        self.membership_check = Some(now.mono);
    }

    /// Another replica decides: what waits is refused, watches end (their readers open them
    /// again, at a machine that holds what the store holds), and this machine is done.
    pub(super) fn deposed(&mut self, reason: String, out: Out<'_>) {
        self.refuse_held(&reason, out);
        let refusal = Refusal::Unavailable {
            reason: reason.clone(),
        };
        for watcher in self.watchers.clear() {
            let refusal = refusal.clone();
            out.push(Effect::EndWatch { watcher, refusal });
        }
        self.halted = Some(reason);
    }
}
