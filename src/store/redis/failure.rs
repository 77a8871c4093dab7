//! What can go wrong with the server, said so that the reader knows what to do.

use std::fmt;

use redis::{ErrorKind, RedisError};

use crate::store::{StoreError, StoreErrorKind};

/// What was asked of the server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    Connect,
    Begin,
    Renew,
    Complete,
    Release,
    LookUp,
    Forget,
    Count,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Begin => "begin",
            Self::Renew => "renew",
            Self::Complete => "complete",
            Self::Release => "release",
            Self::LookUp => "look_up",
            Self::Forget => "forget",
            Self::Count => "count",
        })
    }
}

pub(super) fn error(op: Op, kind: StoreErrorKind, what: &str) -> StoreError {
    StoreError::new(kind, format!("redis: {op}: {what}"))
}

/// The value under our key is neither a claim nor a record. It is never overwritten.
pub(super) fn corrupt(op: Op) -> StoreError {
    error(
        op,
        StoreErrorKind::Corrupt,
        "what the server holds under this slot's key cannot be read. Did a newer release write it, or does \
         another application use the same prefix? Take a prefix of your own, or `forget` the slot",
    )
}

pub(super) fn unexpected(op: Op) -> StoreError {
    error(
        op,
        StoreErrorKind::Unavailable,
        "the server's answer has a form that no script of this store gives; is it Redis 5 or later, or Valkey?",
    )
}

/// A failure of the client or the server. The URL is in none of the messages, and the source is
/// left out where the server may have repeated what it was sent.
pub(super) fn failed(op: Op, cause: RedisError) -> StoreError {
    let (kind, what) = explain(&cause);
    let error = error(op, kind, what);
    if repeats_input(&cause) {
        error
    } else {
        error.with_source(cause)
    }
}

fn repeats_input(cause: &RedisError) -> bool {
    cause.kind() == ErrorKind::InvalidClientConfig || said(cause).contains("unknown command")
}

/// Code and message of a server's error.
pub(super) fn said(cause: &RedisError) -> String {
    format!(
        "{} {}",
        cause.code().unwrap_or_default(),
        cause.detail().unwrap_or_default()
    )
}

fn explain(cause: &RedisError) -> (StoreErrorKind, &'static str) {
    use StoreErrorKind::{Corrupt, Full, Timeout, Unavailable};
    if cause.is_timeout() {
        return (
            Timeout,
            "the server did not answer in time; is it overloaded, paused, or out of reach?",
        );
    }
    if cause.is_connection_refusal() {
        return (
            Unavailable,
            "nothing listens at the server's address; is it running, and are host and port right?",
        );
    }
    match cause.kind() {
        ErrorKind::Io => {
            return (
                Unavailable,
                "the connection failed or broke; can the server be reached from here?",
            );
        }
        ErrorKind::InvalidClientConfig => {
            return (
                Unavailable,
                "the URL or the client's configuration is not valid; expected redis://[user:password@]host[:port][/database]. \
                 For rediss:// switch a TLS feature of the `redis` crate on, as `tokio-rustls-comp`",
            );
        }
        ErrorKind::MasterNameNotFoundBySentinel => {
            return (
                Unavailable,
                "no Sentinel that answers knows a primary of that name; is the name right, and are the Sentinels' addresses?",
            );
        }
        _ => {}
    }
    // By its text too: servers before version 7 wrap what happens in a script into an `ERR`.
    let said = said(cause);
    let has = |code: &str| said.contains(code);
    if has("WRONGTYPE") {
        (
            Corrupt,
            "the key of this slot holds another type of value: another application uses the same prefix; take one of your own",
        )
    } else if has("OOM ") {
        (
            Full,
            "the server has reached its `maxmemory`; give it more, or shorten the `ttl`",
        )
    } else if has("READONLY") {
        (
            Unavailable,
            "the server is a read-only replica, as after a failover; connect by a name that leads to the primary, or through \
             Sentinel or the cluster",
        )
    } else if has("NOREPLICAS") {
        (
            Unavailable,
            "the server has fewer replicas than its `min-replicas-to-write` asks for; are they connected?",
        )
    } else if has("WRONGPASS") || cause.kind() == ErrorKind::AuthenticationFailed {
        (
            Unavailable,
            "the server refuses the user name or the password; check them",
        )
    } else if has("NOAUTH") {
        (
            Unavailable,
            "the server asks for a password; give user and password in the URL",
        )
    } else if has("NOPERM") || has("The user executing the script can't") {
        (
            Unavailable,
            "the server's ACL forbids it; the user needs +evalsha +eval +get +getrange +strlen +exists +set +del +pttl +pexpire \
             +hset +hget +hstrlen on the prefix, and +unlink +scan +info +wait for what uses them",
        )
    } else if has("LOADING") {
        (
            Unavailable,
            "the server is loading its data; it will answer when it has",
        )
    } else if has("MASTERDOWN") {
        (Unavailable, "the server is a replica that has lost its primary")
    } else if has("MISCONF") {
        (
            Unavailable,
            "the server cannot save its data and refuses to write; see its log, and whether its disk is full",
        )
    } else if has("BUSY ") {
        (
            Unavailable,
            "another script keeps the server busy; see `SCRIPT KILL` and the slow log",
        )
    } else if has("CLUSTERDOWN") {
        (
            Unavailable,
            "the cluster is down: some of its slots are served by no node; see `CLUSTER INFO`",
        )
    } else if has("MOVED") || has("ASK ") || has("TRYAGAIN") || has("CROSSSLOT") {
        (
            Unavailable,
            "the server is a node of a cluster; give `RedisStore::new` a cluster connection (feature `cluster-async` of the `redis` crate)",
        )
    } else if has("DB index") {
        (Unavailable, "the server has no database of that number")
    } else if has("unknown command") {
        (
            Unavailable,
            "the server, or a proxy before it, does not know or allow a command that the store needs: EVALSHA and EVAL, \
             and UNLINK, SCAN, INFO, WAIT for what uses them",
        )
    } else {
        (Unavailable, "the server refused; its answer is the error's source")
    }
}
