//! What is decided and reported about an operation: what is stored, what is refused, how it is counted.

mod judge;
mod outcome;
mod policy;
pub mod problem;
mod reconcile;
mod render;
mod tally;
mod verdict;

pub use judge::WholeResponse;
pub use outcome::Outcome;
pub use policy::Policy;
pub(crate) use problem::Problem;
pub(crate) use reconcile::Reconciler;
pub use reconcile::{Lapsed, Reconciled};
pub(crate) use render::Rendering;
pub(crate) use tally::Tally;
pub use verdict::{Fate, Verdict};
