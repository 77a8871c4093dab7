//! The demonstration page: one file in the binary that makes no requests to any other host.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::response::{Html, IntoResponse};
use uuid::Uuid;

const PAGE: &str = include_str!("index.html");

/// Serves the page with a policy that allows only the page's own scripts, styles and images, and
/// requests to this server. Trusted types make sure that text from responses and users never
/// becomes markup.
pub(crate) async fn show() -> impl IntoResponse {
    let nonce = Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let headers = [
        (CONTENT_SECURITY_POLICY, policy),
        // A cached copy would reuse an old nonce.
        (CACHE_CONTROL, "no-store".to_owned()),
        (REFERRER_POLICY, "no-referrer".to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (headers, Html(PAGE.replace("{nonce}", &nonce)))
}
