//! Streams between the domains, and what those keep who hear without a full view.

use super::*;

impl World {
    /// The disk is as fast as memory; what goes out is put together by how far it goes.
    pub(super) fn effects(&mut self, domain: usize, mut out: Outbox<Effect>) {
        let mut parcels: [Vec<_>; WAYS.len()] = Default::default();
        let mut effects: std::collections::VecDeque<_> = out.take().into();
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Append { ticket, .. } | Effect::Rewrite { ticket, .. } => {
                    let now = self.now();
                    let mut more = Outbox::default();
                    if let Some(machine) = self.domains[domain].machine.as_mut() {
                        machine.handle(Input::Appended { ticket }, now, &mut more);
                    }
                    effects.extend(more.take());
                }
                Effect::Send { stream, messages } => {
                    let end = self.domains[domain].streams.get(&stream);
                    let end = end
                        .copied()
                        .filter(|(to, ..)| !self.cut.contains(&(domain, *to)));
                    if let Some((to, stream, pipe)) = end {
                        if let Some(SyncMessage::Open { .. }) = messages.first() {
                            let changes = self.domains[domain].changes.len();
                            self.greeted.insert((pipe, domain), changes);
                        }
                        self.in_flight += messages.len() as u64;
                        let parcel = Parcel {
                            to,
                            stream,
                            pipe,
                            messages,
                        };
                        parcels[(domain + to) % WAYS.len()].push(parcel);
                    }
                }
                Effect::Dial {
                    stream, domain: to, ..
                } => {
                    let to = to.as_str().trim_start_matches('d').parse().unwrap_or(0);
                    let life = self.domains[domain].life;
                    let way = WAYS[(domain + to) % WAYS.len()];
                    self.later(
                        way * 2,
                        Event::Dialled {
                            from: domain,
                            life,
                            stream,
                            to,
                        },
                    );
                }
                Effect::CloseStream { stream, .. } => self.close(domain, stream),
                _ => {}
            }
        }
        self.report.in_flight_max = self.report.in_flight_max.max(self.in_flight);
        for (index, parcels) in parcels.into_iter().enumerate() {
            if parcels.is_empty() {
                continue;
            }
            let of = &mut self.domains[domain];
            let slow = if of.slow { SECOND * 2 } else { Duration::ZERO };
            // Nothing overtakes what was said before.
            of.last[index] = of.last[index].max(self.now + WAYS[index] + slow);
            let at = of.last[index];
            self.queue.push(at, Event::Parcels(domain, parcels));
        }
        self.arm(domain);
    }

    pub(super) fn close(&mut self, domain: usize, stream: StreamId) {
        if let Some((to, other, _)) = self.domains[domain].streams.remove(&stream) {
            self.report.lost_after_faults += u64::from(self.now >= self.quiet_from);
            self.domains[to].streams.remove(&other);
            self.tell_closed(to, other, RTT_MAX);
        }
        self.tell_closed(domain, stream, Duration::from_millis(1));
    }

    pub(super) fn tell_closed(&mut self, domain: usize, stream: StreamId, after: Duration) {
        let life = self.domains[domain].life;
        self.later(
            after,
            Event::Closed {
                domain,
                life,
                stream,
            },
        );
    }

    pub(super) fn break_between(&mut self, a: usize, b: usize) {
        let streams = self.domains[a].streams.iter();
        let streams = streams.filter(|(_, (to, ..))| *to == b);
        let streams: Vec<_> = streams.map(|(stream, _)| *stream).collect();
        streams.into_iter().for_each(|stream| self.close(a, stream));
    }

    pub(super) fn dialled(&mut self, from: usize, life: u64, stream: StreamId, to: usize) {
        if self.domains[from].life != life || self.domains[from].machine.is_none() {
            return;
        }
        if self.domains[to].machine.is_none()
            || self.cut.contains(&(from, to))
            || self.cut.contains(&(to, from))
        {
            let reason = "unreachable".to_owned();
            return self.input(from, Input::SyncClosed { stream, reason });
        }
        self.next += 1;
        let accepted = StreamId::Accepted(self.next);
        let pipe = self.next;
        self.domains[from]
            .streams
            .insert(stream, (to, accepted, pipe));
        self.domains[to]
            .streams
            .insert(accepted, (from, stream, pipe));
        let peer = |domain| Peer::vouched(registry_id(domain), [self.uid].into());
        let (of_from, of_to) = (peer(from), peer(to));
        self.input(
            to,
            Input::SyncOpened {
                stream: accepted,
                peer: of_from,
            },
        );
        self.input(
            from,
            Input::SyncOpened {
                stream,
                peer: of_to,
            },
        );
    }

    pub(super) fn hear(&mut self, from: usize, parcel: Parcel) -> Result<(), Broken> {
        let (to, stream, pipe) = (parcel.to, parcel.stream, parcel.pipe);
        for message in parcel.messages {
            self.report.messages += 1;
            let end = self.domains[to].streams.get(&stream);
            let stands = end.is_some_and(|(.., of)| *of == pipe);
            if !stands || self.domains[to].machine.is_none() {
                continue;
            }
            if let SyncMessage::Open { .. } = &message {
                self.digests[to][from] = Digest {
                    known: self.digests[to][from].known,
                    in_snapshot: true,
                    next: self.greeted.remove(&(pipe, from)).unwrap_or_default(),
                    ..Digest::default()
                };
            }
            self.measure(from, to, &message)?;
            if self.observes(to) {
                if matches!(message, SyncMessage::EndOfSnapshot { .. }) {
                    self.digests[to][from].in_snapshot = false;
                }
                self.input(to, Input::SyncReceived { stream, message });
                continue;
            }
            if let Some(message) = self.digest(from, to, message)? {
                self.input(to, Input::SyncReceived { stream, message });
            }
        }
        Ok(())
    }

    /// Changes are heard one after another, none twice and none left out; those that a snapshot
    /// brings are all heard at its end.
    fn measure(&mut self, from: usize, to: usize, message: &SyncMessage) -> Result<(), Broken> {
        let digest = &mut self.digests[to][from];
        let (slot, round) = match message {
            SyncMessage::EndOfSnapshot { .. } => {
                let since = core::mem::replace(&mut digest.known, digest.next);
                let until = digest.next;
                if since < until {
                    self.report.caught_up += (until - since) as u64;
                    // Those before were made earlier, but by the last fault at the latest.
                    self.heard_of(from, since);
                }
                return Ok(());
            }
            SyncMessage::Upsert { endpoint, .. } => (slot_of(&endpoint.name), round_of(endpoint)),
            SyncMessage::Remove { name, .. } => (slot_of(name), None),
            _ => return Ok(()),
        };
        if digest.in_snapshot {
            return Ok(());
        }
        let index = digest.next;
        digest.next += 1;
        digest.known = digest.next;
        let change = self.domains[from].changes.get(index);
        let fits = |change: &&Change| {
            Some(change.slot) == slot && round.is_none_or(|round| round == index as u64)
        };
        if change.filter(fits).is_none() {
            let what = format!("d{to} hears {message:?} of d{from}, which did {change:?}");
            return Err(Broken::new(7, what));
        }
        self.report.removals_heard += u64::from(round.is_none());
        self.heard_of(from, index);
        Ok(())
    }

    /// What was changed before the last fault is late from then on.
    fn heard_of(&mut self, from: usize, index: usize) {
        let Some(change) = self.domains[from].changes.get(index) else {
            return;
        };
        let late = self.now.saturating_since(change.at);
        self.report.latest = self.report.latest.max(late);
        if self.now >= self.quiet_from {
            let late = self.now.saturating_since(change.at.max(self.quiet_from));
            let latest = &mut self.report.latest_after_faults;
            *latest = (*latest).max(late);
        }
    }

    /// Takes in what only the digest keeps; returns what the machine has to hear.
    pub(super) fn digest(
        &mut self,
        from: usize,
        to: usize,
        message: SyncMessage,
    ) -> Result<Option<SyncMessage>, Broken> {
        let digest = &mut self.digests[to][from];
        let sequence = match &message {
            SyncMessage::Open { .. } | SyncMessage::Document(_) => return Ok(Some(message)),
            SyncMessage::KeepAlive { sequence } if *sequence == digest.sequence => {
                return Ok(Some(SyncMessage::KeepAlive { sequence: 0 }));
            }
            SyncMessage::Upsert { sequence, .. }
            | SyncMessage::Remove { sequence, .. }
            | SyncMessage::EndOfSnapshot { sequence }
            | SyncMessage::KeepAlive { sequence } => *sequence,
        };
        if sequence != digest.sequence + 1 {
            let what = format!(
                "d{to} hears {sequence} of d{from} after {}",
                digest.sequence
            );
            return Err(Broken::new(7, what));
        }
        digest.sequence = sequence;
        let (slot, after) = match &message {
            SyncMessage::Upsert { endpoint, .. } => (slot_of(&endpoint.name), round_of(endpoint)),
            SyncMessage::Remove { name, .. } => (slot_of(name), None),
            _ => {
                digest.in_snapshot = false;
                return Ok(None);
            }
        };
        let Some(slot) = slot else {
            return Ok(None);
        };
        let before = if digest.in_snapshot {
            None
        } else {
            let heard = digest.next.checked_sub(1);
            let change = heard.and_then(|heard| self.domains[from].changes.get(heard));
            change.and_then(|change| change.before)
        };
        (digest.hash, digest.count) = exchange(digest.hash, digest.count, slot, before, after);
        Ok(None)
    }

    pub(super) fn crash(&mut self, domain: usize) {
        let of = &mut self.domains[domain];
        let Some(machine) = of.machine.take() else {
            return;
        };
        of.disk = machine.snapshot();
        for (to, other, _) in core::mem::take(&mut of.streams).into_values() {
            self.domains[to].streams.remove(&other);
            self.tell_closed(to, other, RTT_MAX);
        }
    }
}
