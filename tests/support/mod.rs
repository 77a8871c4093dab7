//! The code that the test binaries share. It is the only home of helpers that more than one area
//! needs.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

pub(crate) mod body;
pub(crate) mod capture;
pub(crate) mod claim;
pub(crate) mod conformance;
pub(crate) mod directory;
pub(crate) mod example;
pub(crate) mod requests;
#[cfg(unix)]
pub(crate) mod servers;
pub(crate) mod store;
pub(crate) mod wait;

pub(crate) use body::{BrokenBody, ScriptedBody, Step};
pub(crate) use requests::{Answer, Inner, counted, drain, inner, ok, post, read, request, respond, send, spawn};
pub(crate) use wait::{Count, Gate, eventually, poll_once, poll_times, settle, yields};
