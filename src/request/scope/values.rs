//! The values of a scope, for an application that looks up a key.

use std::fmt;

use smallvec::{SmallVec, smallvec};

/// The values of a scope: one value for each source that the scope combines, in order. `None`
/// stands for a source that finds no value.
///
/// For a simple scope, pass an `Option<&str>`. For a combined scope, pass an array of values:
///
/// ```
/// use tower_idempotency::{IdempotencyLayer, MemoryStore, ScopeSource};
///
/// let simple = IdempotencyLayer::new(MemoryStore::new());
/// let anonymous = simple.slot(None, "order-17")?;
/// let acme = simple.slot(Some("Bearer sk_acme"), "order-17")?;
/// assert_ne!(anonymous, acme);
///
/// let combined = IdempotencyLayer::builder(MemoryStore::new())
///     .scope(ScopeSource::default().and(ScopeSource::header("stripe-account")))
///     .build()?;
/// let platform = combined.slot([Some("Bearer sk_acme"), None], "order-17")?;
/// let account = combined.slot(["Bearer sk_acme", "acct_1"], "order-17")?;
/// assert_ne!(platform, account);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ScopeValues<'a>(pub(super) SmallVec<[Option<&'a str>; 2]>);

impl<'a> From<Option<&'a str>> for ScopeValues<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self(smallvec![value])
    }
}

impl<'a, const N: usize> From<[Option<&'a str>; N]> for ScopeValues<'a> {
    fn from(values: [Option<&'a str>; N]) -> Self {
        Self(SmallVec::from_slice(&values))
    }
}

impl<'a, const N: usize> From<[&'a str; N]> for ScopeValues<'a> {
    fn from(values: [&'a str; N]) -> Self {
        Self(values.into_iter().map(Some).collect())
    }
}

impl fmt::Debug for ScopeValues<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values are not shown, because they are credentials.
        write!(f, "ScopeValues({})", self.0.len())
    }
}
