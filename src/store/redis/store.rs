//! Claims and records.

use std::time::Duration;

use redis::RedisError;
use redis::aio::ConnectionLike;

use super::failure::{self, Op};
use super::replicas::Acknowledged;
use super::scripts::{decimal, hex, millis};
use super::{RedisStore, answer, scripts};
use crate::store::{ClaimOutcome, ClaimRequest, Held, OnLapse, Record, Slot, Store, Token};
use crate::store::{StoreError, StoreErrorKind};

impl<C> Store for RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        let (lease, memory) = (millis(begin.lease), millis(begin.ttl));
        let refuse: &[u8] = match begin.on_lapse {
            OnLapse::Refuse => b"1",
            OnLapse::RunAgain => b"0",
        };
        let args: &[&[u8]] = &[
            &hex(&begin.token.0.to_be_bytes()),
            &hex(begin.fingerprint.as_bytes()),
            &decimal(lease + memory),
            &decimal(memory),
            refuse,
        ];
        let (answer, acknowledged) = self.ask_all(Op::Begin, &scripts::BEGIN, &begin.slot, args).await?;
        let begun = answer::begun(&answer, begin.fingerprint)?;
        match (&begun, acknowledged) {
            (&ClaimOutcome::Started { attempt }, Acknowledged::TooFew(cause)) => {
                Err(self.give_back(begin, attempt, cause).await)
            }
            _ => Ok(begun),
        }
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let args: &[&[u8]] = &[&hex(&token.0.to_be_bytes()), &decimal(millis(lease))];
        let answer = self.ask(Op::Renew, &scripts::RENEW, slot, args).await?;
        answer::held(Op::Renew, &answer)
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let args: &[&[u8]] = &[&hex(&token.0.to_be_bytes()), &record.to_bytes(), &decimal(millis(ttl))];
        let (answer, acknowledged) = self.ask_all(Op::Complete, &scripts::COMPLETE, slot, args).await?;
        let held = answer::held(Op::Complete, &answer)?;
        if let (Held::Yes, Acknowledged::TooFew(_)) = (held, acknowledged) {
            tracing::warn!(
                target: "tower_idempotency",
                %slot,
                "{} of an outcome; a failover now may lose it, and a retry would then run again",
                self.too_few()
            );
        }
        Ok(held)
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        let args: &[&[u8]] = &[&hex(&token.0.to_be_bytes())];
        let answer = self.ask(Op::Release, &scripts::RELEASE, slot, args).await?;
        answer::held(Op::Release, &answer)
    }
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// Undoes a claim that too few replicas have.
    async fn give_back(&self, begin: &ClaimRequest, attempt: u32, cause: Option<RedisError>) -> StoreError {
        // One that was taken over stays remembered.
        let undone = match attempt {
            1 => self.release(&begin.slot, begin.token).await,
            _ => self.renew(&begin.slot, begin.token, Duration::ZERO).await,
        };
        if let Err(error) = undone {
            tracing::warn!(
                target: "tower_idempotency",
                slot = %begin.slot,
                %error,
                "a claim that too few replicas have could not be given back; it will lapse"
            );
        }
        let error = failure::error(
            Op::Begin,
            StoreErrorKind::Unavailable,
            &format!(
                "{}, so that the claim was given back and nothing ran; are they connected (`INFO replication`)?",
                self.too_few()
            ),
        );
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }

    fn too_few(&self) -> String {
        let (count, within) = self
            .replicas
            .as_ref()
            .map_or((0, Duration::ZERO), |replicas| (replicas.count, replicas.within));
        format!("fewer than {count} replicas acknowledged within {within:?}")
    }
}
