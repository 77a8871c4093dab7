//! Determines whether an error means that a connection does not lead, or no longer leads, to the
//! right server.

use redis::{ErrorKind, RedisError};

use super::failure::said;

/// Why a connection must be replaced, and whether the server may have executed the connection's
/// last command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The server refused the command and did not execute it. At least for now, the server accepts
    /// no writes.
    Refused,
    /// The connection broke or was silent. It is unknown whether the server executed the command.
    Lost,
}

/// Error codes from a server that is not, or is no longer, the right server.
const ELSEWHERE: [&str; 5] = ["READONLY", "MASTERDOWN", "LOADING", "CLUSTERDOWN", "NOAUTH"];

pub(super) fn doubt(error: &RedisError) -> Option<Doubt> {
    match error.kind() {
        // The server refused the connection's first commands. It may accept a new connection, for
        // example after a password change.
        ErrorKind::AuthenticationFailed | ErrorKind::RESP3NotSupported => return Some(Doubt::Refused),
        ErrorKind::Io | ErrorKind::Parse => return Some(Doubt::Lost),
        _ if error.is_timeout() || error.is_unrecoverable_error() => return Some(Doubt::Lost),
        _ => {}
    }
    let said = said(error);
    ELSEWHERE
        .iter()
        // Servers before version 7 wrap a script's error in an `ERR`.
        .any(|code| said.starts_with(code) || said.contains(&format!("-{code} ")))
        .then_some(Doubt::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &str) -> RedisError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => error.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_that_takes_no_writes_is_in_doubt_and_one_that_refuses_a_command_is_not() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down",
            "LOADING Redis is loading the dataset in memory",
            "CLUSTERDOWN The cluster is down",
            "NOAUTH Authentication required.",
            "ERR Error running script (call to f_1): @user_script:3: -READONLY You can't write against a read only replica.",
        ] {
            assert_eq!(doubt(&answer(line)), Some(Doubt::Refused), "{line}");
        }
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "BUSY Redis is busy running a script.",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "NOSCRIPT No matching script. Please use EVAL.",
            "NOPERM this user has no permissions",
            "ERR syntax error",
        ] {
            assert_eq!(doubt(&answer(line)), None, "{line}");
        }
    }

    #[test]
    fn a_connection_that_broke_or_was_silent_is_in_doubt() {
        for kind in [
            std::io::ErrorKind::TimedOut,
            std::io::ErrorKind::ConnectionReset,
            std::io::ErrorKind::BrokenPipe,
        ] {
            assert_eq!(doubt(&std::io::Error::from(kind).into()), Some(Doubt::Lost), "{kind}");
        }
    }
}
