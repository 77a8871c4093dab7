//! Looking into the server.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, Value, from_redis_value};

use super::begin::Lapsed;
use super::failure::{Op, error, failed, unexpected};
use super::link::Question;
use super::{RedisStore, answer, scripts};
use crate::request::Slot;
use crate::store::{Census, ClaimOutcome, ClaimRequest, Entry, Held, Inspect, Phase, Record, Store};
use crate::store::{StoreError, StoreErrorKind};

/// How many keys the server looks at in one step, during which it serves nobody else.
const BATCH: usize = 500;

/// `redis-cli` can do the same: `GET` and `PTTL` of [`RedisStore::key`] look it up (a claim is text,
/// a record is not), `UNLINK` forgets it, and `--scan --pattern 'idempotency:*'` lists all.
///
/// `count` looks at every key of the database in small steps; other clients are served between
/// them. What changes meanwhile is counted or not, and twice if the server resizes its table.
/// **Of a cluster nothing is counted: it is an error.** Count each node with `redis-cli`.
impl<C> Inspect for RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        let found = self.ask(Op::LookUp, &scripts::LOOK_UP, slot, &[]).await?;
        answer::entry(&found)
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        let mut command = redis::cmd("UNLINK");
        command.arg(self.key(slot));
        let removed: u64 = self.inquire(Op::Forget, &command).await?;
        Ok(removed > 0)
    }

    /// Also settles an operation that is done and for whose record the server had no room.
    async fn settle(&self, slot: &Slot, answer: &Response<Bytes>, ttl: Duration) -> Result<bool, StoreError> {
        let lapsed = match self.look_up(slot).await? {
            Some(entry) if matches!(entry.phase, Phase::Running { lease_left, .. } if lease_left.is_zero()) => entry,
            _ => return Ok(false),
        };
        let claim = ClaimRequest::new(*slot, lapsed.fingerprint)
            .with_lease(Duration::from_secs(60))
            .with_ttl(ttl);
        let (ClaimOutcome::Started { .. }, _) = self.claim(&claim, Lapsed::TakeOverEnded).await? else {
            return Ok(false);
        };
        let record = Record::of_response(lapsed.fingerprint, answer);
        Ok(self.complete(slot, claim.token, &record, ttl).await? == Held::Yes)
    }

    async fn forget_scope(&self, _: &crate::store::ScopeTag) -> Result<u64, StoreError> {
        Err(unexpected(Op::Forget))
    }

    async fn count(&self) -> Result<Census, StoreError> {
        self.refuse_cluster().await?;
        let pattern = [glob_escaped(self.prefix.as_bytes()), b"*".to_vec()].concat();
        let length = self.prefix.len() + 2 * Slot::LEN;
        let mut total = Census::default();
        let mut cursor = b"0".to_vec();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
            let (next, keys): (Vec<u8>, Vec<Vec<u8>>) = self.inquire(Op::Count, &scan).await?;
            // A longer prefix may begin with this one.
            let keys: Vec<&[u8]> = keys
                .iter()
                .map(Vec::as_slice)
                .filter(|key| key.len() == length)
                .collect();
            if !keys.is_empty() {
                let call = scripts::Call {
                    script: &scripts::COUNT,
                    keys: &keys,
                    args: &[],
                };
                let counted = answer::census(&self.inquire(Op::Count, &call).await?)?;
                total.running += counted.running;
                total.lapsed += counted.lapsed;
                total.done += counted.done;
            }
            if next == b"0" {
                return Ok(total);
            }
            cursor = next;
        }
    }
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    async fn inquire<T: FromRedisValue>(
        &self,
        op: Op,
        question: &impl Question<C, Answer = Value>,
    ) -> Result<T, StoreError> {
        let answer = self
            .link
            .put(question)
            .await
            .map_err(|error| failed(op, error.into()))?;
        from_redis_value(answer).map_err(|_| unexpected(op))
    }

    async fn refuse_cluster(&self) -> Result<(), StoreError> {
        let mut command: Cmd = redis::cmd("INFO");
        command.arg("cluster");
        // A cluster connection asks every node, and answers with a map.
        let alone = match self.inquire(Op::Count, &command).await? {
            Value::Map(_) | Value::Array(_) => false,
            info => {
                let info: String = from_redis_value(info).map_err(|_| unexpected(Op::Count))?;
                !info.contains("cluster_enabled:1")
            }
        };
        if alone {
            return Ok(());
        }
        Err(error(
            Op::Count,
            StoreErrorKind::Unavailable,
            "a cluster is not counted through one connection; count on each primary, as with `redis-cli --scan --pattern`",
        ))
    }
}

fn glob_escaped(prefix: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(prefix.len());
    for &byte in prefix {
        if b"*?[]\\^".contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}
