//! An in-memory store for `cratestack-axum`, which has a trait for stores and an SQL store, but no
//! in-memory store. It is one map behind one lock, and does what the trait requires and no more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;
use std::time::SystemTime;

use async_trait::async_trait;
use cratestack_axum::idempotency::{IdempotencyRecord, IdempotencyStore, ReservationOutcome};
use cratestack_core::CratestackError;
use uuid::Uuid;

#[derive(Default)]
pub struct MemoryStore {
    slots: Mutex<HashMap<(String, String), Slot>>,
}

struct Slot {
    token: Uuid,
    request_hash: [u8; 32],
    created_at: SystemTime,
    expires_at: SystemTime,
    answer: Option<Answer>,
}

struct Answer {
    status: u16,
    headers: Vec<u8>,
    body: Vec<u8>,
}

impl Slot {
    fn reserved(request_hash: [u8; 32], now: SystemTime, expires_at: SystemTime) -> Self {
        Self {
            token: Uuid::new_v4(),
            request_hash,
            created_at: now,
            expires_at,
            answer: None,
        }
    }
}

#[async_trait]
impl IdempotencyStore for MemoryStore {
    async fn reserve_or_fetch(
        &self,
        principal: &str,
        key: &str,
        request_hash: [u8; 32],
        expires_at: SystemTime,
    ) -> Result<ReservationOutcome, CratestackError> {
        let now = SystemTime::now();
        let mut slots = self.slots.lock().unwrap();
        match slots.entry((principal.to_owned(), key.to_owned())) {
            Entry::Vacant(entry) => {
                let slot = entry.insert(Slot::reserved(request_hash, now, expires_at));
                Ok(ReservationOutcome::Reserved { token: slot.token })
            }
            Entry::Occupied(mut entry) if entry.get().expires_at <= now => {
                let slot = Slot::reserved(request_hash, now, expires_at);
                let token = slot.token;
                entry.insert(slot);
                Ok(ReservationOutcome::Reserved { token })
            }
            Entry::Occupied(entry) if entry.get().request_hash != request_hash => Ok(ReservationOutcome::Conflict),
            Entry::Occupied(entry) => Ok(match &entry.get().answer {
                None => ReservationOutcome::InFlight,
                Some(answer) => ReservationOutcome::Replay(IdempotencyRecord {
                    key: key.to_owned(),
                    principal_fingerprint: principal.to_owned(),
                    request_hash,
                    response_status: answer.status,
                    response_headers: answer.headers.clone(),
                    response_body: answer.body.clone(),
                    created_at: entry.get().created_at,
                    expires_at: entry.get().expires_at,
                }),
            }),
        }
    }

    async fn complete(
        &self,
        principal: &str,
        key: &str,
        token: Uuid,
        status: u16,
        headers: &[u8],
        body: &[u8],
    ) -> Result<(), CratestackError> {
        let mut slots = self.slots.lock().unwrap();
        if let Some(slot) = slots.get_mut(&(principal.to_owned(), key.to_owned()))
            && slot.token == token
        {
            slot.answer = Some(Answer {
                status,
                headers: headers.to_owned(),
                body: body.to_owned(),
            });
        }
        Ok(())
    }

    async fn release(&self, principal: &str, key: &str, token: Uuid) -> Result<(), CratestackError> {
        let mut slots = self.slots.lock().unwrap();
        if let Entry::Occupied(entry) = slots.entry((principal.to_owned(), key.to_owned()))
            && entry.get().token == token
        {
            entry.remove();
        }
        Ok(())
    }
}
