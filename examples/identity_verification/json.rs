//! Reads JSON bodies. A body that is not JSON gets `400`, and JSON that the operation cannot use
//! gets `422`.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::error::ApiError;

/// The request's body, read as a JSON object. `Content-Type` is ignored, because many webhook
/// senders and shell users do not send it.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S, T> FromRequest<S> for JsonBody<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
        parse(&body).map(Self)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let json: &RawValue = serde_json::from_slice(body)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    let invalid = |message: String| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message);
    // Serde would also accept an array for a struct, with its items as the fields in order.
    if !json.get().starts_with('{') {
        return Err(invalid("the body must be a JSON object".to_owned()));
    }
    serde_json::from_str(json.get()).map_err(|error| invalid(error.to_string()))
}

/// A string that is not blank and has no NUL character.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct NonEmpty(String);

impl NonEmpty {
    pub(crate) fn into_inner(self) -> String {
        self.0
    }
}

impl TryFrom<String> for NonEmpty {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.trim().is_empty() {
            Err("a required field is empty")
        } else if text.contains('\0') {
            Err("a field has a NUL character, which some databases cannot store")
        } else {
            Ok(Self(text))
        }
    }
}
