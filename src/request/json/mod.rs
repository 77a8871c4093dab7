//! Reads JSON bodies: the value at a pointer (RFC 6901), and a canonical form.
//!
//! Values are read as raw text, never as `f64`, so that two different long numbers do not become
//! equal.

mod canonical;
mod pointer;

pub(crate) use canonical::canonical;
pub(crate) use pointer::Pointer;
