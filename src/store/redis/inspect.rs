//! Looking into the server.

use redis::aio::ConnectionLike;
use redis::{Value, from_redis_value};

use super::failure::{Op, error, failed, unexpected};
use super::{RedisStore, answer, scripts};
use crate::request::Slot;
use crate::store::{Census, Entry, Inspect};
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
        let (_, mut connection) = self.link.get();
        let removed: u64 = redis::cmd("UNLINK")
            .arg(self.key(slot))
            .query_async(&mut connection)
            .await
            .map_err(|error| failed(Op::Forget, error))?;
        Ok(removed > 0)
    }

    async fn count(&self) -> Result<Census, StoreError> {
        let (_, mut connection) = self.link.get();
        refuse_cluster(&mut connection).await?;
        let pattern = [glob_escaped(self.prefix.as_bytes()), b"*".to_vec()].concat();
        let length = self.prefix.len() + 2 * Slot::LEN;
        let mut total = Census::default();
        let mut cursor = b"0".to_vec();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
            let (next, keys): (Vec<u8>, Vec<Vec<u8>>) = scan
                .query_async(&mut connection)
                .await
                .map_err(|error| failed(Op::Count, error))?;
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
                let counted = call
                    .send(&mut connection)
                    .await
                    .map_err(|error| failed(Op::Count, error))?;
                let counted = answer::census(&counted)?;
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

async fn refuse_cluster<C: ConnectionLike>(connection: &mut C) -> Result<(), StoreError> {
    let info: Value = redis::cmd("INFO")
        .arg("cluster")
        .query_async(connection)
        .await
        .map_err(|error| failed(Op::Count, error))?;
    // A cluster connection asks every node, and answers with a map.
    let alone = match info {
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
