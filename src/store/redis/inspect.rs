//! Inspects the store's keys on the server.

use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, Value, from_redis_value};

use super::failure::{Op, error, failed, unexpected};
use super::link::Question;
use super::{RedisStore, answer, scripts};
use crate::request::Slot;
use crate::store::{Census, Entry, Inspect, ScopeTag};
use crate::store::{StoreError, StoreErrorKind};

/// The number of keys that the server scans in a step. During a step, the server does not serve
/// other clients.
const BATCH: usize = 500;

/// You can also inspect the store with `redis-cli`. `GET` and `PTTL` look up the key that
/// [`RedisStore::key`] returns. Claims are text, but records are not. A record above 16 KiB is in
/// the field `record` of a hash, so look it up with `HGET`. `--scan --pattern 'idempotency:*'`
/// lists all keys, and `UNLINK` forgets a key.
///
/// `count` scans every key in the database in small steps, and the server handles other clients
/// between these steps. A key that changes during the scan may or may not be counted, and may be
/// counted twice if the server resizes its table. **On a cluster, `count` returns an error.**
/// Instead, count the keys on each node with `redis-cli`. `forget_scope` scans the keys in the same
/// way, and also returns an error on a cluster.
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
        command.arg(self.key_bytes(slot));
        let removed: u64 = self.inquire(Op::Forget, &command).await?;
        Ok(removed > 0)
    }

    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        self.refuse_cluster(Op::Forget).await?;
        let scope = scripts::hex(scope.as_bytes());
        let mut forgotten = 0;
        let mut cursor = Some(Cursor::default());
        while let Some(from) = cursor {
            let (next, answer) = self.step(Op::Forget, from, &scripts::FORGET_SCOPE, &[&scope]).await?;
            if let Some(answer) = answer {
                forgotten += from_redis_value::<u64>(answer).map_err(|_| unexpected(Op::Forget))?;
            }
            cursor = next;
        }
        Ok(forgotten)
    }

    async fn count(&self) -> Result<Census, StoreError> {
        self.refuse_cluster(Op::Count).await?;
        let mut total = Census::default();
        let mut cursor = Some(Cursor::default());
        while let Some(from) = cursor {
            let (next, answer) = self.step(Op::Count, from, &scripts::COUNT, &[]).await?;
            if let Some(answer) = answer {
                let counted = answer::census(&answer)?;
                total.running += counted.running;
                total.lapsed += counted.lapsed;
                total.done += counted.done;
            }
            cursor = next;
        }
        Ok(total)
    }
}

/// The position of a scan over all keys in the database.
struct Cursor(Vec<u8>);

impl Default for Cursor {
    fn default() -> Self {
        Self(b"0".to_vec())
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

    /// Scans the next keys in the database, and calls the script with those that belong to the
    /// store. Returns the position at which to continue, unless the scan is complete.
    async fn step(
        &self,
        op: Op,
        from: Cursor,
        script: &'static scripts::Script,
        args: &[&[u8]],
    ) -> Result<(Option<Cursor>, Option<Value>), StoreError> {
        let pattern = [glob_escaped(self.prefix.as_bytes()), b"*".to_vec()].concat();
        let length = self.prefix.len() + 2 * Slot::LEN;
        let mut scan = redis::cmd("SCAN");
        scan.arg(from.0).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
        let (next, keys): (Vec<u8>, Vec<Vec<u8>>) = self.inquire(op, &scan).await?;
        let next = (next != b"0").then_some(Cursor(next));
        // A different store can have a longer prefix that begins with this prefix.
        let keys: Vec<&[u8]> = keys
            .iter()
            .map(Vec::as_slice)
            .filter(|key| key.len() == length)
            .collect();
        if keys.is_empty() {
            return Ok((next, None));
        }
        let call = scripts::Call {
            script,
            keys: &keys,
            args,
        };
        Ok((next, Some(self.inquire(op, &call).await?)))
    }

    async fn refuse_cluster(&self, op: Op) -> Result<(), StoreError> {
        let mut command: Cmd = redis::cmd("INFO");
        command.arg("cluster");
        // A cluster connection queries every node and returns a map.
        let alone = match self.inquire(op, &command).await? {
            Value::Map(_) | Value::Array(_) => false,
            info => {
                let info: String = from_redis_value(info).map_err(|_| unexpected(op))?;
                !info.contains("cluster_enabled:1")
            }
        };
        if alone {
            return Ok(());
        }
        Err(error(
            op,
            StoreErrorKind::Unavailable,
            "a cluster cannot be scanned through one connection; connect to each primary, or run `redis-cli --scan \
             --pattern` on each of them",
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
