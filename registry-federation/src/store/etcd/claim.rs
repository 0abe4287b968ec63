//! Standing for being the active replica: `active`, created under a lease.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, EventType, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp, WatchOptions,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use vl3_runtime::CancellationToken;

use super::keys::{Keys, decode_active, encode_active};
use super::session::{Session, Trouble};
use crate::store::{Candidate, Claim};

/// Between two tries while the store does not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// Between two looks at another's claim, should the watch stay silent.
const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Campaign {
    session: Session,
    keys: Keys,
    candidate: Candidate,
    ttl: Duration,
    claim: watch::Sender<Claim>,
    lease: Option<i64>,
}

impl Campaign {
    pub(super) fn new(
        session: Session,
        keys: Keys,
        candidate: Candidate,
        ttl: Duration,
        claim: watch::Sender<Claim>,
    ) -> Self {
        Self {
            session,
            keys,
            candidate,
            ttl,
            claim,
            lease: None,
        }
    }

    /// Until cancelled; then the claim is given up.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        loop {
            let round = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                round = self.round() => round,
            };
            if let Err(trouble) = round {
                tracing::debug!(?trouble, "no claim");
                self.publish(Claim::Unknown);
                self.session.next_member();
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = sleep(PAUSE) => {}
                }
            }
        }
        self.publish(Claim::Unknown);
        self.give_up().await;
    }

    fn publish(&self, claim: Claim) {
        self.claim.send_if_modified(|known| {
            let changed = *known != claim;
            if changed {
                tracing::info!(?claim, "claim");
                *known = claim;
            }
            changed
        });
    }

    async fn give_up(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        for _ in 0..self.session.members() {
            let revoked = self
                .session
                .call(|client| async move { client.lease_client().revoke(lease).await });
            if revoked.await.is_ok() {
                return;
            }
        }
        // It lapses by itself.
    }

    /// Who is active, or we try to be it; returns when that may have changed.
    async fn round(&mut self) -> Result<(), Trouble> {
        match self.active().await? {
            Some(kv) if self.lease.is_some_and(|lease| kv.lease() == lease) => {
                // An earlier try got through although nobody told.
                let (term, asked) = (kv.create_revision(), Instant::now());
                if self.confirm(term, self.session.timeout()).await? {
                    return self.hold(term, asked).await;
                }
                self.give_up().await;
                Ok(())
            }
            Some(kv) => self.other(&kv).await,
            None => self.stand().await,
        }
    }

    async fn active(&mut self) -> Result<Option<KeyValue>, Trouble> {
        let key = self.keys.active();
        let found = self
            .session
            .call(|client| async move { client.kv_client().get(key, None).await });
        Ok(found.await?.take_kvs().pop())
    }

    async fn stand(&mut self) -> Result<(), Trouble> {
        let begun = Instant::now();
        let ttl = i64::try_from(self.ttl.as_secs()).unwrap_or(1);
        let lease = match self.lease {
            Some(lease) => lease,
            None => {
                let granted = self
                    .session
                    .call(|client| async move { client.lease_client().grant(ttl, None).await });
                let lease = granted.await?.id();
                self.lease = Some(lease);
                lease
            }
        };
        let key = self.keys.active();
        let value = encode_active(&self.candidate);
        let put = TxnOp::put(
            key.clone(),
            value,
            Some(PutOptions::new().with_lease(lease)),
        );
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([put]);
        let stood = self
            .session
            .call(|client| async move { client.kv_client().txn(txn).await });
        let response = match stood.await {
            // The lease ran out meanwhile.
            Err(Trouble::Unavailable(reason)) if reason.contains("lease not found") => {
                self.lease = None;
                return Ok(());
            }
            response => response?,
        };
        if response.succeeded() {
            let term = response.header().map_or(0, ResponseHeader::revision);
            return self.hold(term, begun).await;
        }
        // Ours after all, or another's: the next round looks.
        Ok(())
    }

    /// Keeps the lease alive until it is lost. `confirmed`: when the store was last asked with
    /// success, by our clock before the question.
    async fn hold(&mut self, term: i64, mut confirmed: Instant) -> Result<(), Trouble> {
        let active = Claim::Active {
            term: u64::try_from(term).unwrap_or(0),
        };
        let third = self.ttl / 3;
        self.publish(active.clone());
        let mut asked = confirmed;
        loop {
            let lapse = confirmed + self.ttl;
            sleep_until((asked + third).min(lapse)).await;
            asked = Instant::now();
            if asked >= lapse {
                // The store may keep it longer than we may believe; nobody else has it before.
                self.publish(Claim::Unknown);
            }
            let limit = if asked < lapse {
                third.min(lapse - asked)
            } else {
                third
            };
            match self.confirm(term, limit).await {
                Ok(true) => {
                    confirmed = asked;
                    self.publish(active.clone());
                }
                Ok(false) => {
                    self.publish(Claim::Unknown);
                    self.give_up().await;
                    return Ok(());
                }
                Err(trouble) => tracing::debug!(?trouble, "claim not confirmed"),
            }
        }
    }

    /// Keeps the lease alive and looks whether `active` still is of that term.
    async fn confirm(&mut self, term: i64, limit: Duration) -> Result<bool, Trouble> {
        let Some(lease) = self.lease else {
            return Ok(false);
        };
        let key = self.keys.active();
        let asked = self.session.call_within(limit, |client| async move {
            let kept = client.lease_client().keep_alive(lease).await;
            if matches!(&kept, Err(etcd_client::Error::LeaseKeepAliveError(_))) {
                return Ok(None);
            }
            kept?;
            client.kv_client().get(key, None).await.map(Some)
        });
        let Some(found) = asked.await? else {
            return Ok(false);
        };
        let ours = |kv: &KeyValue| kv.create_revision() == term;
        Ok(found.kvs().first().is_some_and(ours))
    }

    /// Waits until the other's claim may be over.
    async fn other(&mut self, kv: &KeyValue) -> Result<(), Trouble> {
        self.give_up().await;
        let claim = decode_active(kv).map_or(Claim::Unknown, |candidate| Claim::Other {
            candidate,
            term: u64::try_from(kv.create_revision()).unwrap_or(0),
        });
        self.publish(claim);
        let key = self.keys.active();
        let options = WatchOptions::new().with_start_revision(kv.mod_revision() + 1);
        let opened = self
            .session
            .call(|client| async move { client.watch_client().watch(key, Some(options)).await });
        let mut stream = opened.await?;
        loop {
            match timeout(LOOK, stream.message()).await {
                Ok(Ok(Some(message))) => {
                    let gone = |event: &etcd_client::Event| event.event_type() == EventType::Delete;
                    if message.canceled() || message.events().iter().any(gone) {
                        return Ok(());
                    }
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(Trouble::Unavailable(error.to_string())),
                Err(_) => {
                    let stands = self.active().await?;
                    if stands.is_none_or(|now| now.create_revision() != kv.create_revision()) {
                        return Ok(());
                    }
                }
            }
        }
    }
}
