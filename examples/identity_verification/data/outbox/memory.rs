//! The outbox in memory. The lock of the data also protects the outbox.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Bytes;
use tokio::time::Instant;

use super::super::super::events::{Claimed, Outgoing};
use super::super::memory::MemoryData;

#[derive(Default)]
pub(in super::super) struct Outbox {
    events: HashMap<String, Entry>,
}

struct Entry {
    body: Bytes,
    attempts: u64,
    due: Instant,
    refused_since: Option<Instant>,
    is_given_up: bool,
}

impl Outbox {
    pub(in super::super) fn append(&mut self, event: Outgoing) {
        let entry = Entry {
            body: event.body,
            attempts: 0,
            due: Instant::now(),
            refused_since: None,
            is_given_up: false,
        };
        self.events.insert(event.id, entry);
    }

    /// Returns the event, if this claim is still the latest claim.
    fn held(&mut self, claimed: &Claimed) -> Option<&mut Entry> {
        let entry = self.events.get_mut(&claimed.event.id)?;
        (entry.attempts == claimed.attempt && !entry.is_given_up).then_some(entry)
    }
}

impl MemoryData {
    pub(super) async fn claim_events(&self, limit: usize, lease: Duration) -> Vec<Claimed> {
        let now = Instant::now();
        let mut tables = self.lock();
        let events = tables.outbox.events.iter_mut();
        let mut due: Vec<_> = events
            .filter(|(_, entry)| !entry.is_given_up && entry.due <= now)
            .collect();
        due.sort_unstable_by_key(|(_, entry)| entry.due);
        due.truncate(limit);
        due.into_iter()
            .map(|(id, entry)| {
                entry.attempts += 1;
                entry.due = now + lease;
                Claimed {
                    event: Outgoing {
                        id: id.clone(),
                        body: entry.body.clone(),
                    },
                    attempt: entry.attempts,
                    refused_for: entry.refused_since.map(|since| now - since),
                }
            })
            .collect()
    }

    pub(super) async fn event_delivered(&self, id: &str) {
        self.lock().outbox.events.remove(id);
    }

    pub(super) async fn postpone_event(&self, claimed: &Claimed, delay: Duration, refused: bool) {
        let now = Instant::now();
        if let Some(entry) = self.lock().outbox.held(claimed) {
            entry.due = now + delay;
            entry.refused_since = refused.then(|| entry.refused_since.unwrap_or(now));
        }
    }

    pub(super) async fn give_up_event(&self, claimed: &Claimed) {
        if let Some(entry) = self.lock().outbox.held(claimed) {
            entry.is_given_up = true;
        }
    }

    pub(super) async fn pending_events(&self) -> u64 {
        let tables = self.lock();
        let events = tables.outbox.events.values();
        events.filter(|entry| !entry.is_given_up).count() as u64
    }
}
