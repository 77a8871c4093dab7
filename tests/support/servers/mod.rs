//! Servers of the tests' own, and a proxy that stands before them.

pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
