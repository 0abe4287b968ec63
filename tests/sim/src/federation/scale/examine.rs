//! Faults, what is measured every minute, and what must hold at the end.

use super::*;

impl World {
    pub(super) fn minute(
        &mut self,
        begun: Instant,
        tell: &mut impl FnMut(&str),
    ) -> Result<(), Broken> {
        self.later(Duration::from_secs(60), Event::Minute);
        let rss = resident_mib();
        self.report.rss_max_mib = self.report.rss_max_mib.max(rss);
        let machines = self
            .domains
            .iter()
            .filter_map(|domain| domain.machine.as_ref());
        let bytes = machines.map(|machine| machine.counts().remote_bytes).max();
        self.report.remote_bytes_max = self.report.remote_bytes_max.max(bytes.unwrap_or(0));
        let minute = self.now.0 / 60_000_000_000;
        let (minutes, took) = (self.size.minutes, begun.elapsed());
        let left = took.mul_f64((minutes as f64 - minute as f64) / (minute as f64).max(1.0));
        tell(&format!(
            "minute {minute} of {minutes}, {} messages, {rss} MiB, {took:.0?}, about {left:.0?} left",
            self.report.messages
        ));
        if rss > self.size.rss_max_mib {
            let what = format!(
                "{rss} MiB are resident, at most {} may be",
                self.size.rss_max_mib
            );
            return Err(Broken::new(9, what));
        }
        Ok(())
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
        let fault = match self.rng.below(8) {
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
                if let Some(stream) = stream {
                    self.close(a, stream);
                }
                "StreamLost"
            }
            6 => {
                self.domains[a].slow = true;
                self.later(lasts, Event::Fast(a));
                "SlowDomain"
            }
            _ => {
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
