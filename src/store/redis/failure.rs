//! Server failures, with messages that explain what to do.

use std::fmt;

use redis::{ErrorKind, RedisError};

use crate::store::{StoreError, StoreErrorKind};

/// The store operation that was sent to the server.
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

/// Returns the error for a value under one of the store's keys that is neither a claim nor a
/// record. The store never overwrites such a value.
pub(super) fn corrupt(op: Op) -> StoreError {
    error(
        op,
        StoreErrorKind::Corrupt,
        "the value under this slot's key cannot be read; did a newer release write it, or does another application \
         use the same prefix? Use a separate prefix, or `forget` the slot",
    )
}

pub(super) fn unexpected(op: Op) -> StoreError {
    error(
        op,
        StoreErrorKind::Unavailable,
        "the server's reply does not have the form that the store's scripts return; is it Redis 5 or later, or Valkey?",
    )
}

/// Converts a client or server failure to a store error. No message contains the URL. The source is
/// omitted if it may quote data that the server received.
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

/// Returns the code and the message from a server's error.
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
            "the server did not answer in time; is it overloaded, paused, or unreachable?",
        );
    }
    if cause.is_connection_refusal() {
        return (
            Unavailable,
            "nothing listens at the server's address; is the server running, and are the host and port correct?",
        );
    }
    match cause.kind() {
        ErrorKind::Io => {
            return (
                Unavailable,
                "the connection failed or broke; is the server reachable from this host?",
            );
        }
        ErrorKind::InvalidClientConfig => {
            return (
                Unavailable,
                "the URL or the client's configuration is not valid; expected redis://[user:password@]host[:port][/database]. \
                 For rediss://, enable a TLS feature of the `redis` crate, such as `tokio-rustls-comp`",
            );
        }
        ErrorKind::MasterNameNotFoundBySentinel => {
            return (
                Unavailable,
                "no Sentinel that responded knows a primary with this name; are the name and the Sentinels' addresses correct?",
            );
        }
        _ => {}
    }
    // The text is checked too, because servers before version 7 wrap a script's error in an `ERR`.
    let said = said(cause);
    let has = |code: &str| said.contains(code);
    if has("WRONGTYPE") {
        (
            Corrupt,
            "the value under this slot's key has another type, so another application uses the same prefix; use a separate prefix",
        )
    } else if has("OOM ") {
        (
            Full,
            "the server has reached its `maxmemory`; give it more memory, or shorten the `ttl`",
        )
    } else if has("READONLY") {
        (
            Unavailable,
            "the server is a read-only replica, perhaps after a failover; connect to a name that resolves to the primary, or \
             through Sentinel or the cluster",
        )
    } else if has("NOREPLICAS") {
        (
            Unavailable,
            "the server has fewer replicas than its `min-replicas-to-write` requires; are they connected?",
        )
    } else if has("WRONGPASS") || cause.kind() == ErrorKind::AuthenticationFailed {
        (
            Unavailable,
            "the server rejected the user name or the password; check both",
        )
    } else if has("NOAUTH") {
        (
            Unavailable,
            "the server requires a password; put the user name and password in the URL",
        )
    } else if has("NOPERM") || has("The user executing the script can't") {
        (
            Unavailable,
            "the server's ACL forbids the command; the user needs +evalsha +eval +get +getrange +strlen +exists +set +del +pttl +pexpire \
             +hset +hget +hstrlen on the prefix, and +unlink +scan +info +wait for the features that use them",
        )
    } else if has("LOADING") {
        (
            Unavailable,
            "the server is still loading its data; it will respond when it has finished",
        )
    } else if has("MASTERDOWN") {
        (
            Unavailable,
            "the server is a replica that has lost its primary; check the primary, and the network between the two",
        )
    } else if has("MISCONF") {
        (
            Unavailable,
            "the server cannot save its data and rejects writes; check its log, and whether its disk is full",
        )
    } else if has("BUSY ") {
        (
            Unavailable,
            "the server is busy running another script; see `SCRIPT KILL` and the slow log",
        )
    } else if has("CLUSTERDOWN") {
        (
            Unavailable,
            "the cluster is down because no node serves some of its slots; see `CLUSTER INFO`",
        )
    } else if has("MOVED") || has("ASK ") || has("TRYAGAIN") || has("CROSSSLOT") {
        (
            Unavailable,
            "the server is a cluster node; pass a cluster connection to `RedisStore::new` (feature `cluster-async` of the `redis` crate)",
        )
    } else if has("DB index") {
        (
            Unavailable,
            "the server has no database with this number; use a lower number, or raise the server's `databases` setting",
        )
    } else if has("unknown command") {
        (
            Unavailable,
            "the server, or a proxy in front of it, does not know or allow a command that the store needs: EVALSHA and EVAL, \
             and UNLINK, SCAN, INFO and WAIT for the features that use them",
        )
    } else {
        (
            Unavailable,
            "the server rejected the command; its reply is the error's source",
        )
    }
}
