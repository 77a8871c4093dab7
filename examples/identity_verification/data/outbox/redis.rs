//! The outbox in Redis. Events are sorted by the time when they are due, and the data of each event
//! is stored by its id. Each step is one script that uses the server's clock.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{AsyncCommands, Script, ScriptInvocation};

use super::super::super::accounts::Account;
use super::super::super::events::{Claimed, Draft};
use super::super::super::users::UserStatus;
use super::super::DataError;
use super::super::redis::{RedisData, key};
use super::{claimed, millis, rows};

/// A sorted set: ids by the time when they are due, in milliseconds since 1970.
const DUE: &str = "idv:outbox:due";
/// Hashes, by event id.
const BODIES: &str = "idv:outbox:bodies";
const ATTEMPTS: &str = "idv:outbox:attempts";
const REFUSED_SINCE: &str = "idv:outbox:refused_since";
/// A sorted set: ids by the time when they were given up. To send an event again:
/// `ZREM idv:outbox:failed evt_…`, `HDEL idv:outbox:refused_since evt_…`,
/// `ZADD idv:outbox:due 0 evt_…`.
const FAILED: &str = "idv:outbox:failed";

macro_rules! script {
    ($lua:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "local time = redis.call('TIME') \
                 local now = time[1] * 1000 + math.floor(time[2] / 1000) ",
                $lua
            ))
        })
    };
}

/// This is a script because the event contains the version that the decision creates.
static DECIDE: LazyLock<Script> = script!(
    "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
     local version = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
     redis.call('HSET', KEYS[3], ARGV[3], ARGV[4] .. version .. ARGV[5])
     redis.call('ZADD', KEYS[4], now, ARGV[3])
     return version"
);

static CLAIM: LazyLock<Script> = script!(
    "local claimed = {}
     for i, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
         redis.call('ZADD', KEYS[1], now + ARGV[2], id)
         local since = redis.call('HGET', KEYS[4], id)
         local refused_for = since and now - since
         claimed[i] = {id, redis.call('HGET', KEYS[2], id), redis.call('HINCRBY', KEYS[3], id, 1), refused_for}
     end
     return claimed"
);

static POSTPONE: LazyLock<Script> = script!(
    "if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] or not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
         return 0
     end
     redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
     if ARGV[4] == '1' then
         redis.call('HSETNX', KEYS[3], ARGV[1], now)
     else
         redis.call('HDEL', KEYS[3], ARGV[1])
     end
     return 1"
);

static GIVE_UP: LazyLock<Script> = script!(
    "if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] or redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
         return 0
     end
     redis.call('ZADD', KEYS[3], now, ARGV[1])
     return 1"
);

impl RedisData {
    async fn run<T: redis::FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, DataError> {
        Ok(script.invoke_async(&mut self.connection.clone()).await?)
    }

    /// Writes the decision and its event.
    pub(in super::super) async fn decide(
        &self,
        account: Account,
        user_id: &str,
        status: UserStatus,
        event: &Draft,
    ) -> Result<u64, DataError> {
        let mut decide = DECIDE.prepare_invoke();
        decide
            .key(key(account, "user_status"))
            .key(key(account, "user_version"))
            .key(BODIES)
            .key(DUE)
            .arg(user_id)
            .arg(status.as_str())
            .arg(&event.id)
            .arg(&event.head)
            .arg(event.tail);
        self.run(&decide).await
    }

    pub(super) async fn claim_events(&self, limit: usize, lease: Duration) -> Result<Vec<Claimed>, DataError> {
        let mut claim = CLAIM.prepare_invoke();
        claim.key(DUE).key(BODIES).key(ATTEMPTS).key(REFUSED_SINCE);
        claim.arg(rows(limit)).arg(millis(lease));
        let claims: Vec<super::Row> = self.run(&claim).await?;
        Ok(claims.into_iter().map(claimed).collect())
    }

    pub(super) async fn event_delivered(&self, id: &str) -> Result<(), DataError> {
        let mut removal = redis::pipe();
        removal.atomic().zrem(DUE, id).zrem(FAILED, id);
        for by_id in [BODIES, ATTEMPTS, REFUSED_SINCE] {
            removal.hdel(by_id, id);
        }
        Ok(removal.exec_async(&mut self.connection.clone()).await?)
    }

    pub(super) async fn postpone_event(
        &self,
        claimed: &Claimed,
        delay: Duration,
        refused: bool,
    ) -> Result<(), DataError> {
        let mut postpone = POSTPONE.prepare_invoke();
        postpone.key(DUE).key(ATTEMPTS).key(REFUSED_SINCE);
        postpone.arg(&claimed.event.id).arg(claimed.attempt);
        postpone.arg(millis(delay)).arg(u8::from(refused));
        self.run::<u8>(&postpone).await?;
        Ok(())
    }

    pub(super) async fn give_up_event(&self, claimed: &Claimed) -> Result<(), DataError> {
        let mut give_up = GIVE_UP.prepare_invoke();
        give_up.key(DUE).key(ATTEMPTS).key(FAILED);
        give_up.arg(&claimed.event.id).arg(claimed.attempt);
        self.run::<u8>(&give_up).await?;
        Ok(())
    }

    pub(super) async fn pending_events(&self) -> Result<u64, DataError> {
        Ok(self.connection.clone().zcard(DUE).await?)
    }
}
