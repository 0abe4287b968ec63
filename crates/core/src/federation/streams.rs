//! The life of streams: dial preference, greeting, sequences, silence.

use core::mem;
use core::time::Duration;
use std::collections::BTreeMap;

use super::{
    Config, Dial, Event, Federation, Membership, Remote, RemoteStatus, SYNC_VERSION, Scope, Stream,
    StreamId, SyncMessage,
};
use crate::backoff::Backoff;
use crate::deadlines::Deadlines;
use crate::ids::{DomainName, NetworkUid};
use crate::machine::Outbox;
use crate::rng::Rng;
use crate::time::Mono;

type Out<'a> = &'a mut Outbox<Event>;

/// What is kept of a stream's last error.
const ERROR_CHARS_MAX: usize = 512;

impl Federation {
    pub fn new(domain: DomainName, epoch: [u8; 16], config: Config, rng: Rng) -> Self {
        Self {
            domain,
            epoch,
            next_stream: config.streams_above,
            config,
            rng,
            dials_only: false,
            remotes: BTreeMap::new(),
            streams: BTreeMap::new(),
            timers: Deadlines::default(),
            connected: 0,
        }
    }

    /// Takes what the documents say: whom to reach, where, for which networks.
    pub fn reconcile(
        &mut self,
        dials_only: bool,
        mut members: BTreeMap<DomainName, Membership>,
        now: Mono,
        out: Out<'_>,
    ) {
        self.dials_only = dials_only;
        members.remove(&self.domain);
        let gone: Vec<_> = self
            .remotes
            .keys()
            .filter(|domain| !members.contains_key(domain))
            .cloned()
            .collect();
        for domain in gone {
            if let Some(remote) = self.remotes.remove(&domain) {
                self.timers.set(&domain, remote.armed, None);
                self.connected -= usize::from(remote.counted);
                let dialling = if let Dial::Dialling(id) = remote.dial {
                    Some(id)
                } else {
                    None
                };
                for stream in remote
                    .stream
                    .map(|stream| stream.id)
                    .into_iter()
                    .chain(dialling)
                {
                    self.streams.remove(&stream);
                    out.push(Event::Close {
                        stream,
                        reason: "no common network any more".to_owned(),
                    });
                }
                out.push(Event::Lost { domain });
            }
        }
        for (domain, membership) in members {
            if let Some(remote) = self.remotes.get_mut(&domain) {
                let other_networks = remote.membership.uids != membership.uids;
                let idle = remote.stream.is_none() && remote.dial == Dial::Never;
                remote.membership = membership;
                let common = &remote.membership.uids;
                remote.paces.retain(|uid, _| common.contains(uid));
                if let Some(stream) = remote
                    .stream
                    .as_ref()
                    .map(|stream| stream.id)
                    .filter(|_| other_networks)
                {
                    // In which networks the other end counts was settled in its handshake.
                    let reason = "the common networks changed";
                    out.push(Event::Close {
                        stream,
                        reason: reason.to_owned(),
                    });
                    self.closed(stream, reason, now, out);
                } else if idle {
                    self.schedule(&domain, Duration::ZERO, now);
                }
            } else {
                let backoff = Backoff::new(self.config.backoff_first, self.config.backoff_max);
                let remote = Remote {
                    membership,
                    stream: None,
                    dial: Dial::Never,
                    backoff,
                    paces: BTreeMap::new(),
                    heard: None,
                    error: None,
                    armed: None,
                    counted: false,
                };
                self.remotes.insert(domain.clone(), remote);
                self.schedule(&domain, Duration::ZERO, now);
            }
            self.rearm(&domain);
        }
    }

    /// A stream stands whose other end is the registry of `domain` in these networks. One that
    /// speaks in better networks takes the place of the one before; else the preference of
    /// dials decides between two.
    pub fn opened(
        &mut self,
        id: StreamId,
        domain: &DomainName,
        scope: Scope,
        now: Mono,
        out: Out<'_>,
    ) {
        self.open(id, domain, scope, now, out);
        self.rearm(domain);
    }

    fn open(&mut self, id: StreamId, domain: &DomainName, scope: Scope, now: Mono, out: Out<'_>) {
        let Some(remote) = self.remotes.get(domain) else {
            return out.push(Event::Close {
                stream: id,
                reason: format!("{domain} has no common network"),
            });
        };
        if let Some(existing) = &remote.stream {
            let same_way = matches!(
                (existing.id, id),
                (StreamId::Dialled(_), StreamId::Dialled(_))
                    | (StreamId::Accepted(_), StreamId::Accepted(_))
            );
            let quiet = now.saturating_since(existing.heard) > self.config.keep_alive * 2;
            let preferred = matches!(id, StreamId::Dialled(_)) == self.dials_first(domain);
            let wins = if existing.scope == scope {
                same_way || preferred || quiet
            } else {
                scope.outranks(&existing.scope) || quiet
            };
            if !wins {
                if remote.dial == Dial::Dialling(id) {
                    self.set_dial(domain, Dial::Never);
                }
                self.streams.remove(&id);
                return out.push(Event::Close {
                    stream: id,
                    reason: "another stream stands".to_owned(),
                });
            }
            let stream = existing.id;
            self.streams.remove(&stream);
            out.push(Event::Close {
                stream,
                reason: "replaced by a later stream".to_owned(),
            });
            // The later one vouches anew for what it names.
            out.push(Event::Lost {
                domain: domain.clone(),
            });
        }
        self.streams.insert(id, domain.clone());
        if let Some(remote) = self.remotes.get_mut(domain) {
            if matches!(remote.dial, Dial::At(_)) || remote.dial == Dial::Dialling(id) {
                remote.dial = Dial::Never;
            }
            remote.heard = Some(now);
            remote.stream = Some(Stream {
                id,
                scope,
                sent: 0,
                received: 0,
                heard: now,
                next_keep_alive: now + self.config.keep_alive,
                greeted: false,
                snapshot: false,
                synced: false,
            });
            out.push(Event::Greet {
                domain: domain.clone(),
            });
        }
    }

    pub fn received(&mut self, id: StreamId, message: SyncMessage, now: Mono, out: Out<'_>) {
        let Some(domain) = self.streams.get(&id).cloned() else {
            return;
        };
        let Some(remote) = self.remotes.get_mut(&domain) else {
            return;
        };
        let Some(stream) = remote.stream.as_mut().filter(|stream| stream.id == id) else {
            return;
        };
        stream.heard = now;
        remote.heard = Some(now);
        match stream.take(&domain, message) {
            Ok(Some(event)) => {
                if matches!(event, Event::Synced { .. }) {
                    remote.backoff.reset();
                }
                out.push(event);
            }
            Ok(None) => {}
            Err(reason) => self.close(id, &reason, now, out),
        }
        self.rearm(&domain);
    }

    /// Ends a stream; it may be dialled again.
    pub fn close(&mut self, id: StreamId, reason: &str, now: Mono, out: Out<'_>) {
        out.push(Event::Close {
            stream: id,
            reason: reason.to_owned(),
        });
        self.closed(id, reason, now, out);
    }

    /// The stream ended, broke, or could not be dialled.
    pub fn closed(&mut self, id: StreamId, reason: &str, now: Mono, out: Out<'_>) {
        let Some(domain) = self.streams.remove(&id) else {
            return;
        };
        let Some(remote) = self.remotes.get_mut(&domain) else {
            return;
        };
        remote.error = Some((now, reason.chars().take(ERROR_CHARS_MAX).collect()));
        if remote.dial == Dial::Dialling(id) {
            remote.dial = Dial::Never;
        }
        if remote.stream.as_ref().is_some_and(|stream| stream.id == id) {
            remote.stream = None;
            out.push(Event::Lost {
                domain: domain.clone(),
            });
        }
        if remote.stream.is_none() && remote.dial == Dial::Never {
            let delay = remote.backoff.next(&mut self.rng);
            self.schedule(&domain, delay, now);
        }
        self.rearm(&domain);
    }

    pub fn wake(&mut self, now: Mono, out: Out<'_>) {
        let due: Vec<_> = self.timers.due(now).cloned().collect();
        for domain in due {
            self.wake_remote(&domain, now, out);
            self.rearm(&domain);
        }
    }

    fn wake_remote(&mut self, domain: &DomainName, now: Mono, out: Out<'_>) {
        let Some(remote) = self.remotes.get_mut(domain) else {
            return;
        };
        if let Some(stream) = &mut remote.stream {
            if now >= stream.heard + self.config.silence {
                let (id, reason) = (stream.id, "silent for too long");
                out.push(Event::Close {
                    stream: id,
                    reason: reason.to_owned(),
                });
                return self.closed(id, reason, now, out);
            }
            if now >= stream.next_keep_alive {
                stream.next_keep_alive = now + self.config.keep_alive;
                let messages = vec![SyncMessage::KeepAlive {
                    sequence: stream.sent,
                }];
                out.push(Event::Send {
                    stream: stream.id,
                    messages,
                });
            }
        } else if let Dial::At(at) = remote.dial
            && at <= now
        {
            self.next_stream += 1;
            let stream = StreamId::Dialled(self.next_stream);
            remote.dial = Dial::Dialling(stream);
            let contacts = remote.membership.contacts.clone();
            self.streams.insert(stream, domain.clone());
            out.push(Event::Dial {
                stream,
                domain: domain.clone(),
                contacts,
            });
        }
    }

    pub fn next_wake(&self) -> Option<(Mono, &'static str)> {
        let (_, domain) = self.timers.first()?;
        self.remotes.get(domain)?.next_wake(&self.config)
    }

    /// Brings what is kept about all domains in line with one that may have changed.
    fn rearm(&mut self, domain: &DomainName) {
        let Some(remote) = self.remotes.get_mut(domain) else {
            return;
        };
        let next = remote.next_wake(&self.config).map(|(at, _)| at);
        let before = mem::replace(&mut remote.armed, next);
        self.timers.set(domain, before, next);
        let connected = remote.stream.is_some();
        self.connected += usize::from(connected);
        self.connected -= usize::from(mem::replace(&mut remote.counted, connected));
    }

    pub fn status(&self) -> Vec<RemoteStatus> {
        let of = |(domain, remote): (&DomainName, &Remote)| RemoteStatus {
            domain: domain.clone(),
            connected: remote.stream.is_some(),
            synced: remote.stream.as_ref().is_some_and(|stream| stream.synced),
            dialled_by_us: matches!(
                remote.stream.as_ref().map(|s| s.id),
                Some(StreamId::Dialled(_))
            ),
            heard: remote.heard,
            last_error: remote.error.clone(),
        };
        self.remotes.iter().map(of).collect()
    }

    /// The domain that a stream was dialled to reach.
    pub fn dialled(&self, stream: StreamId) -> Option<&DomainName> {
        self.streams.get(&stream)
    }

    /// Whether that network is common with a domain.
    pub fn is_common(&self, domain: &DomainName, uid: NetworkUid) -> bool {
        let remote = self.remotes.get(domain);
        remote.is_some_and(|remote| remote.membership.uids.contains(&uid))
    }

    /// The stream that stands with a domain, and where its other end speaks.
    pub fn stream(&self, domain: &DomainName) -> Option<(StreamId, &Scope)> {
        let stream = self.remotes.get(domain)?.stream.as_ref()?;
        Some((stream.id, &stream.scope))
    }

    /// Streams with domains that have the network in common and do not speak in it.
    pub fn streams_without(&self, uid: NetworkUid) -> Vec<StreamId> {
        let remotes = self.remotes.values();
        let common = remotes.filter(|remote| remote.membership.uids.contains(&uid));
        let streams = common.filter_map(|remote| remote.stream.as_ref());
        let without = streams.filter(|stream| !stream.scope.contains(uid));
        without.map(|stream| stream.id).collect()
    }

    /// Domains that speak in a network.
    pub fn speaking_in(&self, uid: NetworkUid) -> impl Iterator<Item = &DomainName> + '_ {
        let remotes = self.remotes.iter();
        let speaking = remotes.filter(move |(_, remote)| {
            let stream = remote.stream.as_ref();
            stream.is_some_and(|stream| stream.scope.contains(uid))
        });
        speaking.map(|(domain, _)| domain)
    }

    pub const fn connected_count(&self) -> usize {
        self.connected
    }

    /// A domain that only dials dials at once, else the lower name.
    fn dials_first(&self, domain: &DomainName) -> bool {
        let other_only_dials = self
            .remotes
            .get(domain)
            .is_some_and(|remote| remote.membership.dials_only);
        match (self.dials_only, other_only_dials) {
            (true, false) => true,
            (false, true) => false,
            (true, true) | (false, false) => self.domain < *domain,
        }
    }

    fn schedule(&mut self, domain: &DomainName, delay: Duration, now: Mono) {
        let first = self.dials_first(domain);
        let second = self.config.second_dial_after;
        let jitter = self
            .rng
            .below(u64::try_from(second.as_nanos() / 4).unwrap_or(0));
        let Some(remote) = self.remotes.get_mut(domain) else {
            return;
        };
        let reachable = !remote.membership.contacts.is_empty() && !remote.membership.dials_only;
        remote.dial = match (reachable, first) {
            (false, _) => Dial::Never,
            (true, true) => Dial::At(now + delay),
            (true, false) => Dial::At(now + delay + second + Duration::from_nanos(jitter)),
        };
    }

    fn set_dial(&mut self, domain: &DomainName, dial: Dial) {
        if let Some(remote) = self.remotes.get_mut(domain) {
            remote.dial = dial;
        }
    }
}

impl Remote {
    fn next_wake(&self, config: &Config) -> Option<(Mono, &'static str)> {
        match (&self.stream, self.dial) {
            (Some(stream), _) => {
                let silence = (stream.heard + config.silence, "sync silence");
                Some(silence.min((stream.next_keep_alive, "sync keep-alive")))
            }
            (None, Dial::At(at)) => Some((at, "sync dial")),
            (None, Dial::Never | Dial::Dialling(_)) => None,
        }
    }
}

impl Stream {
    /// An error ends the stream.
    fn take(&mut self, domain: &DomainName, message: SyncMessage) -> Result<Option<Event>, String> {
        let domain = domain.clone();
        match message {
            SyncMessage::Open {
                version,
                domain: said,
                uids,
                ..
            } => {
                if version != SYNC_VERSION {
                    return Err(format!(
                        "sync version {version} is not spoken here, {SYNC_VERSION} is"
                    ));
                }
                if said != domain {
                    return Err(format!("the registry of {domain} says it is {said}"));
                }
                if mem::replace(&mut self.greeted, true) {
                    return Err(format!("the registry of {domain} opens twice"));
                }
                self.snapshot = true;
                let uids = uids.into_iter().collect();
                Ok(Some(Event::Opened { domain, uids }))
            }
            SyncMessage::Upsert {
                sequence,
                uid,
                endpoint,
                ..
            } => {
                self.expect(sequence)?;
                Ok(Some(Event::Upsert {
                    domain,
                    uid,
                    endpoint,
                }))
            }
            SyncMessage::Remove {
                sequence,
                uid,
                name,
            } => {
                self.expect(sequence)?;
                Ok(Some(Event::Remove { domain, uid, name }))
            }
            SyncMessage::EndOfSnapshot { sequence } => {
                self.expect(sequence)?;
                if !mem::take(&mut self.snapshot) {
                    return Err("end of a snapshot that was not opened".to_owned());
                }
                self.synced = true;
                Ok(Some(Event::Synced { domain }))
            }
            SyncMessage::Document(chain) => Ok(Some(Event::Offered { domain, chain })),
            SyncMessage::KeepAlive { sequence } if sequence == self.received => Ok(None),
            SyncMessage::KeepAlive { sequence } => Err(format!(
                "keep-alive of sequence {sequence}, {} was received",
                self.received
            )),
        }
    }

    fn expect(&mut self, sequence: u64) -> Result<(), String> {
        if sequence != self.received + 1 {
            return Err(format!("sequence {sequence} after {}", self.received));
        }
        self.received = sequence;
        Ok(())
    }
}
