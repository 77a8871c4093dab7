//! What the layer reads of JSON bodies: the value at a pointer (RFC 6901), and a canonical form.
//!
//! Values are taken as raw text, never as `f64`, so that two long numbers do not become one.

mod canonical;
mod pointer;

pub(crate) use canonical::canonical;
pub(crate) use pointer::Pointer;
