//! Servers of the tests' own, and a proxy that stands before them.

#[allow(dead_code, reason = "only the tests of the stores use it")]
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
