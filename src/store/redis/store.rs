//! The `Store` calls for claims and records.

use std::time::Duration;

use redis::RedisError;
use redis::aio::ConnectionLike;

use super::ask::is_another_connection_next;
use super::begin::is_out_of_memory;
use super::doubt::{Doubt, doubt};
use super::failure::{self, Op, failed};
use super::link::Unanswered;
use super::replicas::Acknowledged;
use super::request::Request;
use super::scripts::{Call, decimal, hex, millis};
use super::{RedisStore, answer, scripts};
use crate::store::{ClaimOutcome, ClaimRequest, Held, Record, Slot, Store, Token};
use crate::store::{StoreError, StoreErrorKind};

/// Records that are larger than this number of bytes use a separate connection.
pub(super) const LARGE: usize = 16 * 1024;

impl<C> Store for RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        match self.claim(begin).await? {
            (ClaimOutcome::Started { attempt }, Acknowledged::TooFew(cause)) => {
                Err(self.give_back(begin, attempt, cause).await)
            }
            (outcome, _) => Ok(outcome),
        }
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let args: &[&[u8]] = &[&hex(&token.0.to_be_bytes()), &decimal(millis(lease))];
        let answer = self.ask(Op::Renew, &scripts::RENEW, slot, args).await?;
        answer::held(Op::Renew, &answer)
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let record = record.to_bytes();
        let mut answer = self.settle_once(slot, token, &record, ttl, b"0").await;
        if let Err(Unanswered::Asked(error)) = &answer
            && doubt(error) == Some(Doubt::Lost)
            && is_another_connection_next(&self.link, error)
        {
            answer = self.settle_once(slot, token, &record, ttl, b"1").await;
        }
        let (answer, acknowledged) = match answer {
            Ok(answer) => answer,
            Err(Unanswered::Asked(error)) if is_out_of_memory(&error) => {
                return self.hold(slot, token, &record, ttl, error).await;
            }
            Err(unanswered) => return Err(failed(Op::Complete, unanswered.into())),
        };
        let held = answer::held(Op::Complete, &answer)?;
        if let (Held::Yes, Acknowledged::TooFew(_)) = (held, acknowledged) {
            tracing::warn!(
                target: "tower_idempotency",
                %slot,
                "a failover now may lose an outcome, and a retry would then run again: {}",
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
    /// Completes the claim with one call. `again` is `1` if the call was already sent and its reply
    /// was lost.
    async fn settle_once(
        &self,
        slot: &Slot,
        token: Token,
        record: &[u8],
        ttl: Duration,
        again: &[u8],
    ) -> Result<(redis::Value, Acknowledged), Unanswered> {
        let is_large = record.len() > LARGE;
        let key = self.key_bytes(slot);
        let (token, ttl) = (hex(&token.0.to_be_bytes()), decimal(millis(ttl)));
        let request = Request::Script(Call {
            script: if is_large {
                &scripts::COMPLETE_LARGE
            } else {
                &scripts::COMPLETE
            },
            keys: &[&key],
            args: &[&token, record, &ttl, again],
        });
        self.write(Op::Complete, is_large, &request).await
    }

    /// Keeps the claim when the server has no memory for the record, so that the operation does not
    /// run again.
    async fn hold(
        &self,
        slot: &Slot,
        token: Token,
        record: &[u8],
        ttl: Duration,
        cause: RedisError,
    ) -> Result<Held, StoreError> {
        const NO_LONGER_THAN_A_CLAIM: usize = 64;
        let short = if record.len() <= NO_LONGER_THAN_A_CLAIM {
            record
        } else {
            b""
        };
        let args: &[&[u8]] = &[&hex(&token.0.to_be_bytes()), short, &decimal(millis(ttl))];
        match self.ask(Op::Complete, &scripts::HOLD, slot, args).await {
            Ok(redis::Value::Int(3)) => Err(failure::error(
                Op::Complete,
                StoreErrorKind::Full,
                "the server has reached its `maxmemory` and has no room for the record; until the `ttl` ends, retries \
                 get `outcome-unknown` and do not run; give the server more memory, or shorten the `ttl`",
            )
            .with_source(cause)),
            Ok(answer) => answer::held(Op::Complete, &answer),
            Err(error) => {
                tracing::warn!(
                    target: "tower_idempotency",
                    %slot,
                    %error,
                    "the server has no room for a record, and the operation's claim could not be kept; it will lapse"
                );
                Err(failed(Op::Complete, cause))
            }
        }
    }

    /// Undoes a claim that too few replicas acknowledged.
    async fn give_back(&self, begin: &ClaimRequest, attempt: u32, cause: Option<RedisError>) -> StoreError {
        // If the claim took over a lapsed claim, the slot must still remember the lapsed claim.
        let undone = match attempt {
            1 => self.release(&begin.slot, begin.token).await,
            _ => self.renew(&begin.slot, begin.token, Duration::ZERO).await,
        };
        let is_undone = undone.is_ok();
        if let Err(error) = undone {
            tracing::warn!(
                target: "tower_idempotency",
                slot = %begin.slot,
                %error,
                "a claim that too few replicas acknowledged could not be given back; it will lapse"
            );
        }
        let error = failure::error(
            Op::Begin,
            StoreErrorKind::Unavailable,
            &format!(
                "{}, so the claim was given back and the handler did not run; are they connected (see `INFO replication`)?",
                self.too_few()
            ),
        );
        let error = if is_undone { error.without_effect() } else { error };
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }

    fn too_few(&self) -> String {
        let (count, within) = self.replicas.as_ref().map_or((0, Duration::ZERO), |replicas| {
            (replicas.wait.count, replicas.wait.within)
        });
        format!("fewer than {count} replicas acknowledged within {within:?}")
    }
}
