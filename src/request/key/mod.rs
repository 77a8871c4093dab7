//! The idempotency key: its place in a request, and the rules for valid keys (contract, section 2).

mod rules;
mod source;
mod text;

pub(crate) use rules::KeyRules;
#[cfg(feature = "client")]
pub(crate) use source::IDEMPOTENCY_KEY;
pub use source::KeySource;
pub(crate) use text::KeyText;
pub use text::{InvalidKey, KeyFormat};
#[cfg(feature = "client")]
pub(crate) use text::{check_text, text_of_line};
