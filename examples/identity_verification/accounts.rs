//! Authentication: determines which account sent a request.

use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// A customer of this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Account(&'static str);

/// The sandbox's API keys. A real service looks up a hash of the key in its database.
const API_KEYS: [(&str, Account); 4] = [
    ("sk_test_acme", Account("acme")),
    ("sk_test_acme_rotated", Account("acme")),
    ("sk_test_acm", Account("acm")),
    ("sk_test_globex", Account("globex")),
];

impl Account {
    pub(crate) fn id(self) -> &'static str {
        self.0
    }
}

/// Refuses requests without a known API key, and adds the [`Account`] to all other requests.
pub(crate) async fn authenticate(mut request: Request, next: Next) -> Response {
    let Some(account) = account_of(request.headers()) else {
        let error = ApiError::new(
            StatusCode::UNAUTHORIZED,
            "send a known API key, for example `Authorization: Bearer sk_test_acme`",
        );
        return ([(WWW_AUTHENTICATE, "Bearer")], error).into_response();
    };
    request.extensions_mut().insert(account);
    next.run(request).await
}

fn account_of(headers: &HeaderMap) -> Option<Account> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let key = key.trim();
    API_KEYS
        .iter()
        .find(|(known, _)| *known == key)
        .map(|(_, account)| *account)
}
