//! What becomes of a key when its operation has ended.

/// What to keep of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// Keep it: retries get it again.
    Store,
    /// Keep nothing: the key is free, a retry runs again.
    Release,
    /// Keep only that the operation was done: a retry gets `409` problem `response-not-retained`.
    /// The response goes to its client live, unbuffered.
    Seal,
}

/// What becomes of a key whose operation ended without a response that could be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// The key is free, a retry runs again: at least once.
    Release,
    /// A tombstone, a retry is refused with `409`: at most once.
    Seal,
}
