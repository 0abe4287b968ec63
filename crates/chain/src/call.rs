//! What travels along a chain beside the message.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt;

use vl3_core::{Now, Wall};
use vl3_proto::connection::Connection;
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::tokens::Peer;

/// A family of calls with one shape: a request that is also its own refresh, and a close.
pub trait Family: Send + Sync + 'static {
    type Request: Send + Clone + fmt::Debug;
    type Reply: Send + Clone + fmt::Debug;
    type Closing: Send + Clone + fmt::Debug;
}

/// `networkservice.NetworkService`.
#[derive(Debug)]
pub enum Connections {}

impl Family for Connections {
    type Request = NetworkServiceRequest;
    type Reply = Connection;
    type Closing = Connection;
}

/// One call on its way. Elements talk to each other through the connection; what is left here
/// is what the connection cannot carry.
#[derive(Debug)]
pub struct Call {
    pub now: Now,
    /// Unset for a close that the component itself decided (expiry, revocation).
    pub peer: Option<Peer>,
    /// When the right to this connection ends without a refresh; set by `expire`.
    pub expires: Option<Wall>,
    /// Whether `begin` knew the connection before this call.
    pub known: bool,
    pub slots: Slots,
}

impl Call {
    pub fn new(now: Now, peer: Option<Peer>) -> Self {
        Self {
            now,
            peer,
            expires: None,
            known: false,
            slots: Slots::default(),
        }
    }
}

/// Per-connection state: each element has its own typed slot and touches no other. `begin`
/// keeps the slots between the calls of one connection.
#[derive(Default)]
pub struct Slots(BTreeMap<TypeId, Box<dyn Any + Send>>);

impl Slots {
    pub fn get<T: Any + Send>(&self) -> Option<&T> {
        self.0
            .get(&TypeId::of::<T>())
            .and_then(|slot| slot.downcast_ref())
    }

    pub fn set<T: Any + Send>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Box::new(value));
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slots({})", self.0.len())
    }
}
