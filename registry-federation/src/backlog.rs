//! What readers of Finds and watches were handed and did not take yet.

use std::sync::{Arc, Mutex, PoisonError};

use vl3_core::caller::Caller;
use vl3_core::registry::Refusal;
use vl3_core::unread::{Full, Unread};

use crate::limits::Met;

/// Callers who may have as much as one may before the whole is full.
const CALLERS: usize = 4;

const UNREAD: &str = "unread bytes of one caller";

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Backlog {
    unread: Arc<Mutex<Unread<Caller>>>,
    met: Met,
}

/// Counted as long as it lives: kept beside what was handed.
#[derive(Debug)]
pub(crate) struct Handed {
    backlog: Backlog,
    caller: Caller,
    bytes: usize,
}

impl Backlog {
    pub(crate) fn new(bytes_per_caller: usize, met: Met) -> Self {
        let unread = Unread::new(bytes_per_caller, bytes_per_caller.saturating_mul(CALLERS));
        Self {
            unread: Arc::new(Mutex::new(unread)),
            met,
        }
    }

    pub(crate) fn hand(&self, caller: &Caller, bytes: usize) -> Result<Handed, Refusal> {
        let handed = self.with(|unread| unread.handed(caller, bytes));
        handed
            .map(|()| Handed {
                backlog: self.clone(),
                caller: caller.clone(),
                bytes,
            })
            .map_err(|Full(limit)| {
                let refusal = Refusal::Limit {
                    what: UNREAD,
                    limit,
                };
                self.met.count(&refusal);
                refusal
            })
    }

    fn with<T>(&self, what: impl FnOnce(&mut Unread<Caller>) -> T) -> T {
        what(&mut self.unread.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.backlog
            .with(|unread| unread.taken(&self.caller, self.bytes));
    }
}
