//! Effects that rest on records which are not on disk yet. What goes to one sync stream or
//! one watcher meanwhile becomes one batch: many small ones would end a stream as too slow.

use core::mem;
use std::collections::BTreeMap;

use super::api::{Effect, WatcherId};
use crate::federation::StreamId;

#[derive(Debug, Default)]
pub(super) struct Held {
    effects: Vec<Effect>,
    /// Where the batch of a stream, of a watcher is.
    streams: BTreeMap<StreamId, usize>,
    watchers: BTreeMap<WatcherId, usize>,
    messages: usize,
}

impl Held {
    pub(super) fn push(&mut self, mut effect: Effect) {
        let next = self.effects.len();
        let place = match &effect {
            Effect::Send { stream, messages } => {
                self.messages += messages.len();
                *self.streams.entry(*stream).or_insert(next)
            }
            Effect::Deliver {
                watcher, events, ..
            } => {
                self.messages += events.len();
                *self.watchers.entry(*watcher).or_insert(next)
            }
            _ => next,
        };
        match (self.effects.get_mut(place), &mut effect) {
            (
                Some(Effect::Send {
                    messages: batch, ..
                }),
                Effect::Send { messages, .. },
            ) => {
                batch.append(messages);
            }
            (
                Some(Effect::Deliver {
                    events: batch,
                    rest: has_rest,
                    ..
                }),
                Effect::Deliver { events, rest, .. },
            ) => {
                batch.append(events);
                *has_rest |= *rest;
            }
            _ => self.effects.push(effect),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.effects.len()
    }

    /// Events and sync messages in all batches.
    pub(super) const fn messages(&self) -> usize {
        self.messages
    }

    pub(super) fn take(&mut self) -> Vec<Effect> {
        mem::take(self).effects
    }
}
