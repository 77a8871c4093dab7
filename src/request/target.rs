//! The target of a request: in a nested Axum router the original one, not the stripped one.

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
