//! The scope, which determines whose key a request carries (contract, section 3).

mod digest;
mod read;
mod rules;
mod source;
mod values;

pub(crate) use digest::TagKey;
pub(crate) use rules::{ScopeRules, Scoped};
pub use source::ScopeSource;
pub use values::ScopeValues;
