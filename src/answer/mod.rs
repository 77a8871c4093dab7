//! Decisions and reports about an operation: which response is stored, which request is refused,
//! and how the outcome is counted.

mod judge;
mod outcome;
mod policy;
pub mod problem;
mod reconcile;
mod render;
mod tally;
mod verdict;

pub use judge::WholeResponse;
pub(crate) use judge::is_failure;
pub use outcome::Outcome;
pub use policy::Policy;
pub(crate) use problem::Problem;
pub(crate) use reconcile::Reconciler;
pub use reconcile::{Lapsed, Reconciled};
pub(crate) use render::Rendering;
pub(crate) use tally::Tally;
pub use verdict::{Fate, Verdict};
