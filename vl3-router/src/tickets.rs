//! Tickets of the DNS server: whoever proved to be it over mutual TLS is sent one, and shows it
//! on `fd.sock`, where no other proof exists. A user id proves nothing: workloads may share it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use vl3_core::ids::SpiffeId;

pub(crate) type Secret = [u8; 16];

/// The tickets that are good at the moment. Cheap to clone; clones share them.
#[derive(Clone)]
pub(crate) struct Tickets {
    issued: Arc<Mutex<Vec<(Secret, SpiffeId)>>>,
    granted: Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>,
}

/// One ticket; good until dropped.
pub(crate) struct Ticket {
    secret: Secret,
    tickets: Tickets,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// `granted`: who is a DNS server of this domain, as the newest document says.
    pub(crate) fn new(granted: impl Fn(&SpiffeId) -> bool + Send + Sync + 'static) -> Self {
        Self {
            issued: Arc::default(),
            granted: Arc::new(granted),
        }
    }

    /// Whether that identity is still a DNS server of this domain.
    pub(crate) fn grants(&self, id: &SpiffeId) -> bool {
        (self.granted)(id)
    }

    /// A fresh ticket for who proved to be `id`; unset when that is no DNS server of the domain.
    /// As many as there are streams, which the server bounds.
    pub(crate) fn issue(&self, id: &SpiffeId) -> Option<Ticket> {
        if !self.grants(id) {
            return None;
        }
        let secret: Secret = rand::random();
        self.lock().push((secret, id.clone()));
        Some(Ticket {
            secret,
            tickets: self.clone(),
        })
    }

    /// Who was sent this ticket.
    pub(crate) fn holder(&self, shown: &Secret) -> Option<SpiffeId> {
        let held = self.lock();
        let found = held.iter().find(|(secret, _)| same(secret, shown));
        found.map(|(_, id)| id.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Secret, SpiffeId)>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    pub(crate) const fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tickets
            .lock()
            .retain(|(secret, _)| *secret != self.secret);
    }
}

/// Compares without an early end.
fn same(a: &Secret, b: &Secret) -> bool {
    a.iter()
        .zip(b)
        .fold(0, |difference, (x, y)| difference | (x ^ y))
        == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_while_it_is_held_and_only_for_a_dns_server() {
        let id = |path: &str| SpiffeId::new(&format!("spiffe://east.test/{path}")).unwrap();
        let dns = id("vl3/dns/a");
        let tickets = Tickets::new({
            let dns = dns.clone();
            move |id| *id == dns
        });
        assert!(tickets.issue(&id("workload/a")).is_none());
        let (first, second) = (tickets.issue(&dns).unwrap(), tickets.issue(&dns).unwrap());
        assert_eq!(tickets.holder(first.secret()), Some(dns.clone()));
        let secret = *first.secret();
        drop(first);
        assert_eq!(tickets.holder(&secret), None);
        assert_eq!(tickets.holder(second.secret()), Some(dns));
    }
}
