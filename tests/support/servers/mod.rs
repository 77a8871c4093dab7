//! The tests' own servers, and a proxy in front of them.

#[allow(dead_code, reason = "only the tests of the stores use it")]
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
