//! The target of a request. In a nested Axum router, this is the original target, before the router
//! strips a prefix from the path.

use http::request::Parts;

#[cfg(feature = "axum")]
pub(crate) fn original_uri(parts: &Parts) -> &http::Uri {
    parts
        .extensions
        .get::<axum::extract::OriginalUri>()
        .map_or(&parts.uri, |original| &original.0)
}

#[cfg(not(feature = "axum"))]
pub(crate) fn original_uri(parts: &Parts) -> &http::Uri {
    &parts.uri
}
