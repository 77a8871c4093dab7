//! The Lua scripts, each of which is one atomic operation on one key, and how to call them.

use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use super::link::Question;
use crate::digest::push_hex;
use crate::store::Millis;

/// The hash field that contains a large record.
pub(super) const FIELD: &str = "record";

/// A script, and the hash by which the server identifies it.
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self {
            code,
            hash: redis::Script::new(code).get_hash().to_owned(),
        }
    }
}

macro_rules! scripts {
    ($($name:ident = $($file:literal),+;)+) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!($(include_str!($file)),+)));)+
    };
}

scripts! {
    BEGIN = "claim.lua", "begin.lua";
    RENEW = "claim.lua", "renew.lua";
    COMPLETE = "complete_held.lua", "claim.lua", "complete.lua";
    COMPLETE_LARGE = "claim.lua", "complete_large.lua";
    HOLD = "claim.lua", "hold.lua";
    RELEASE = "claim.lua", "release.lua";
    LOOK_UP = "claim.lua", "look_up.lua";
    COUNT = "count.lua";
    FORGET_SCOPE = "forget_scope.lua";
}

/// A script with its arguments and its keys. Each script except `COUNT` and `FORGET_SCOPE` has one
/// key, so that a cluster can route the call.
pub(super) struct Call<'a> {
    pub(super) script: &'a Script,
    pub(super) keys: &'a [&'a [u8]],
    pub(super) args: &'a [&'a [u8]],
}

/// How a call identifies its script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// By its hash, which is 40 bytes. The server must already have the script.
    Hash,
    /// By its full code, which the server then stores. `SCRIPT LOAD` would cost one more round
    /// trip, and yet another if the scripts were flushed between the two commands.
    Code,
}

impl Call<'_> {
    pub(super) fn command(&self, by: By) -> Cmd {
        let mut command = match by {
            By::Hash => redis::cmd("EVALSHA"),
            By::Code => redis::cmd("EVAL"),
        };
        command
            .arg(match by {
                By::Hash => self.script.hash.as_bytes(),
                By::Code => self.script.code.as_bytes(),
            })
            .arg(self.keys.len());
        for part in self.keys.iter().chain(self.args) {
            command.arg(*part);
        }
        command
    }
}

/// Calls the script. Takes one round trip, or two if the server does not have the script, for
/// example after a restart.
impl<C: ConnectionLike + Send> Question<C> for Call<'_> {
    type Answer = Value;

    async fn put_to(&self, connection: &mut C) -> RedisResult<Value> {
        match self.command(By::Hash).query_async(connection).await {
            Err(error) if is_no_script(&error) => self.command(By::Code).query_async(connection).await,
            answer => answer,
        }
    }
}

impl<C: ConnectionLike + Send> Question<C> for Cmd {
    type Answer = Value;

    async fn put_to(&self, connection: &mut C) -> RedisResult<Value> {
        self.query_async(connection).await
    }
}

pub(super) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Three thousand years. Much longer times would overflow when added to the current date.
const LONGEST: u64 = 100_000_000_000_000;

/// Converts a duration to milliseconds, rounded up and limited to what the server accepts.
pub(super) fn millis(duration: Duration) -> u64 {
    Millis(0).after(duration).0.min(LONGEST)
}

pub(super) fn hex(bytes: &[u8]) -> Vec<u8> {
    let mut hex = Vec::with_capacity(2 * bytes.len());
    push_hex(&mut hex, bytes);
    hex
}

pub(super) fn decimal(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_up_and_are_bounded() {
        assert_eq!(millis(Duration::ZERO), 0);
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_millis(7)), 7);
        assert_eq!(millis(Duration::MAX), LONGEST);
    }
}
