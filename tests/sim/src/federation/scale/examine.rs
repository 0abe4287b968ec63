//! Faults, what is measured every minute, and what must hold at the end.

use super::*;

impl Size {
    /// Messages under way: whole snapshots to and from few domains at once, and all changes
    /// of some seconds to everybody.
    pub(super) const fn in_flight_limit(&self) -> u64 {
        (self.domains * (4 * self.endpoints + 8 * self.domains + 4 * WARM_UP * self.domains)) as u64
    }

    /// Events that wait: those of streams between all domains, and some of each domain.
    pub(super) const fn queue_limit(&self) -> u64 {
        (2 * self.domains * self.domains + 64 * self.domains) as u64
    }
}

impl Report {
    /// A quiet run is no good one.
    pub(super) fn proves(&self, size: &Size) -> Result<(), Broken> {
        let wrong = |what: String| Err(Broken::new(10, format!("{what}: it proves nothing")));
        if (self.grown_to as usize) < size.endpoints {
            let (grown, wanted) = (self.grown_to, size.endpoints);
            return wrong(format!("a domain grew to {grown} endpoints of {wanted}"));
        }
        let never = |fault: &&&str| self.faults.get(**fault).copied().unwrap_or_default() == 0;
        let missing: Vec<_> = FAULTS.iter().filter(never).collect();
        if !missing.is_empty() {
            let (minutes, least) = (size.minutes, MINUTES_MIN);
            return wrong(format!(
                "never injected in {minutes} minutes: {missing:?}; {least} minutes are needed"
            ));
        }
        if self.removals_heard == 0 || self.caught_up == 0 {
            let (removals, caught_up) = (self.removals_heard, self.caught_up);
            return wrong(format!(
                "{removals} removals were heard, {caught_up} changes caught up with"
            ));
        }
        if self.latest_after_faults == Duration::ZERO {
            return wrong("no change was heard after the last fault".to_owned());
        }
        Ok(())
    }
}

impl World {
    pub(super) fn minute(
        &mut self,
        begun: Instant,
        tell: &mut impl FnMut(&str),
    ) -> Result<(), Broken> {
        self.later(Duration::from_secs(60), Event::Minute);
        let rss = self.weigh(resident_mib())?;
        let minute = self.now.0 / 60_000_000_000;
        let (minutes, took) = (self.size.minutes, begun.elapsed());
        let left = took.mul_f64((minutes as f64 - minute as f64) / (minute as f64).max(1.0));
        tell(&format!(
            "minute {minute} of {minutes}, {} messages, {rss} MiB, {took:.0?}, about {left:.0?} left",
            self.report.messages
        ));
        Ok(())
    }

    /// Invariant 9: what is held is within its limits, of which the process's is measured.
    pub(super) fn weigh(&mut self, rss: Option<u64>) -> Result<u64, Broken> {
        let wrong = |what: String| Err(Broken::new(9, what));
        let Some(rss) = rss else {
            return wrong("/proc/self/status does not say how much is resident".to_owned());
        };
        self.report.rss_max_mib = self.report.rss_max_mib.max(rss);
        for (index, of) in self.domains.iter().enumerate() {
            let Some(machine) = of.machine.as_ref() else {
                continue;
            };
            let all = machine.counts().remote_bytes;
            self.report.remote_bytes_max = self.report.remote_bytes_max.max(all);
            if all == 0 {
                continue;
            }
            for other in (0..self.size.domains).filter(|other| *other != index) {
                let size = machine.remote_size(&domain_name(other));
                let each = size.bytes.div_ceil(size.endpoints.max(1));
                let report = &mut self.report;
                report.domain_bytes_max = report.domain_bytes_max.max(size.bytes);
                report.endpoint_bytes_max = report.endpoint_bytes_max.max(each);
            }
        }
        let limits = [
            ("MiB resident", rss, self.size.rss_max_mib),
            (
                "bytes for remote endpoints in one registry",
                self.report.remote_bytes_max as u64,
                REMOTE_BYTES_MAX as u64,
            ),
            (
                "bytes for one remote domain",
                self.report.domain_bytes_max as u64,
                DOMAIN_BYTES_MAX as u64,
            ),
            (
                "bytes for one remote endpoint",
                self.report.endpoint_bytes_max as u64,
                ENDPOINT_BYTES_MAX as u64,
            ),
            (
                "messages under way",
                self.report.in_flight_max,
                self.size.in_flight_limit(),
            ),
            (
                "events queued",
                self.report.queue_max as u64,
                self.size.queue_limit(),
            ),
        ];
        match limits.iter().find(|(_, is, limit)| is > limit) {
            Some((what, is, limit)) => wrong(format!("{is} {what}, at most {limit} may be")),
            None => Ok(rss),
        }
    }

    pub(super) fn fault(&mut self) {
        let last = Mono(self.quiet_from.0.saturating_sub(RECOVERY_NANOS));
        if self.now >= last {
            return;
        }
        let next = self.millis(5_000, 30_000);
        self.later(next, Event::Fault);
        let a = below(&mut self.rng, self.size.domains);
        let b = (a + 1 + below(&mut self.rng, self.size.domains - 1)) % self.size.domains;
        let left = last.saturating_since(self.now).as_millis();
        let lasts = self
            .millis(5_000, 60_000)
            .min(Duration::from_millis(u64::try_from(left).unwrap_or(0)));
        // Each kind once, then as it comes.
        let faults = &self.report.faults;
        let first = FAULTS.iter().position(|fault| !faults.contains_key(fault));
        let drawn = self.rng.below(8);
        let kind = first.map_or(drawn, |first| [0, 3, 5, 6, 7][first]);
        let fault = match kind {
            0..=2 => {
                self.cut.insert((a, b));
                self.later(lasts, Event::Heal(a, b));
                "OneWay"
            }
            3 | 4 => {
                self.cut.extend([(a, b), (b, a)]);
                self.later(lasts, Event::Heal(a, b));
                "Partition"
            }
            5 => {
                let streams = &self.domains[a].streams;
                let stream = streams.keys().next().copied();
                let Some(stream) = stream else {
                    return;
                };
                self.close(a, stream);
                "StreamLost"
            }
            6 => {
                self.domains[a].slow = true;
                self.later(lasts, Event::Fast(a));
                "SlowDomain"
            }
            _ => {
                if self.domains[a].machine.is_none() {
                    return;
                }
                self.crash(a);
                self.later(lasts, Event::Start(a));
                "Crash"
            }
        };
        *self.report.faults.entry(fault).or_default() += 1;
    }

    /// What is under way arrives; nobody says anything new.
    pub(super) fn settle(&mut self) -> Result<(), Broken> {
        let until = self.now + RTT_MAX + SECOND;
        while let Some((at, event)) = self.queue.pop().filter(|(at, _)| *at <= until) {
            self.now = at;
            if let Event::Parcels(from, parcels) = event {
                for parcel in parcels {
                    self.hear(from, parcel)?;
                }
            }
        }
        Ok(())
    }

    /// Everybody holds what everybody has, and heard of it in time.
    pub(super) fn examine(&self) -> Result<(), Broken> {
        let wrong = |what: String| Err(Broken::new(7, what));
        for to in 0..self.size.domains {
            for from in (0..self.size.domains).filter(|from| *from != to) {
                let of = &self.domains[from];
                let (count, hash) = if self.observes(to) {
                    let size = self.domains[to]
                        .machine
                        .as_ref()
                        .map(|machine| machine.remote_size(&domain_name(from)));
                    (size.map_or(0, |size| size.endpoints), None)
                } else {
                    let digest = &self.digests[to][from];
                    (digest.count as usize, Some(digest.hash))
                };
                if count != of.count as usize || hash.is_some_and(|hash| hash != of.hash) {
                    return wrong(format!(
                        "d{to} holds {count} endpoints of d{from} ({hash:?}), which has {} ({})",
                        of.count, of.hash
                    ));
                }
            }
        }
        if self.report.lost_after_faults > 0 {
            let lost = self.report.lost_after_faults;
            return wrong(format!("{lost} streams ended after the last fault"));
        }
        for to in 0..self.size.observers {
            self.examine_observer(to)?;
        }
        let allowed = RTT_MAX + SECOND;
        if self.report.latest_after_faults > allowed {
            return wrong(format!(
                "a change was heard of after {:?}, at most {allowed:?} is allowed",
                self.report.latest_after_faults
            ));
        }
        Ok(())
    }

    pub(super) fn examine_observer(&self, to: usize) -> Result<(), Broken> {
        let Some(machine) = self.domains[to].machine.as_ref() else {
            return Ok(());
        };
        for (domain, endpoint) in machine.endpoints() {
            let Some(from) = domain.and_then(|domain| {
                domain
                    .as_str()
                    .trim_start_matches('d')
                    .parse::<usize>()
                    .ok()
            }) else {
                continue;
            };
            let slot = slot_of(&endpoint.name).and_then(|slot| usize::try_from(slot).ok());
            let real = slot.and_then(|slot| self.domains[from].slots.get(slot).copied().flatten());
            if round_of(&endpoint) != real || real.is_none() {
                let what = format!(
                    "d{to} holds {} of d{from} in round {:?}, it is in {real:?}",
                    endpoint.name,
                    round_of(&endpoint)
                );
                return Err(Broken::new(7, what));
            }
        }
        Ok(())
    }
}
