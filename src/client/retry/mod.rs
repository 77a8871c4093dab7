//! The retry policy: which results are retried, and when.

mod backoff;
mod builder;
mod decision;
mod policy;
mod retry_after;
mod rules;
mod transient;

pub use builder::RetryPolicyBuilder;
pub(super) use decision::{Call, Next, Repeatable, Seen};
pub use policy::RetryPolicy;
pub use transient::{EveryError, Transient};
