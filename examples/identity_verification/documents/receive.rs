//! Reads a document from a request, part by part, into a file.

use axum::extract::multipart::{Field, MultipartError};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::RequestExt;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{FromRequest, Multipart, Query, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use http_body_util::LengthLimitError;
use serde::Deserialize;
use tokio_stream::{Stream, StreamExt};

use super::super::error::ApiError;
use super::Kind;
use super::files::{Files, Incoming};

/// The media types of bodies that are the document itself.
const RAW: [&str; 3] = ["image/jpeg", "image/png", "application/pdf"];
/// The maximum size of the part `kind` and of a file's name, in bytes.
const MAX_TEXT: usize = 255;

/// A document whose bytes are in a file that clients cannot see yet.
pub(super) struct Received {
    pub(super) kind: Kind,
    pub(super) file_name: Option<String>,
    pub(super) file: Incoming,
}

/// A body that a second reader can continue to read when the first reader has finished.
#[derive(Clone)]
struct Unended(Arc<Mutex<BodyDataStream>>);

impl Unended {
    fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body.into_data_stream())))
    }
}

impl Stream for Unended {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_next(cx)
    }
}

#[derive(Deserialize)]
struct Named {
    kind: Option<String>,
}

/// Receives `multipart/form-data` with the parts `kind` and `file`, or the document itself with
/// `?kind=`.
pub(super) async fn receive(request: Request, files: &Files) -> Result<Received, ApiError> {
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    if essence == "multipart/form-data" {
        let (head, body) = request.with_limited_body().into_parts();
        let mut body = Unended::new(body);
        let form = Request::from_parts(head, Body::from_stream(body.clone()));
        let form = Multipart::from_request(form, &())
            .await
            .map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
        let received = of_form(form, files).await?;
        // The form ends before the body does, so the body can still break off.
        while let Some(data) = body.next().await {
            data.map_err(|error| unreadable(&error))?;
        }
        return Ok(received);
    }
    if RAW.contains(&essence.as_str()) {
        return of_body(request, files).await;
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "send `multipart/form-data` with the parts `kind` and `file`, or the document itself as `image/jpeg`, \
         `image/png` or `application/pdf` with `?kind=`",
    ))
}

async fn of_body(request: Request, files: &Files) -> Result<Received, ApiError> {
    let Query(Named { kind }) =
        Query::try_from_uri(request.uri()).map_err(|rejection| invalid(rejection.body_text()))?;
    let kind = kind_of(kind.as_deref())?;
    let mut file = files.receive().await?;
    let mut body = request.into_limited_body().into_data_stream();
    while let Some(data) = body.next().await {
        file.write(&data.map_err(|error| unreadable(&error))?).await?;
    }
    Ok(Received {
        kind,
        file_name: None,
        file: not_empty(file)?,
    })
}

async fn of_form(mut form: Multipart, files: &Files) -> Result<Received, ApiError> {
    let (mut kind, mut received) = (None, None);
    while let Some(mut part) = form.next_field().await.map_err(of_multipart)? {
        match part.name() {
            Some("kind") if kind.is_none() => kind = Some(text_of(&mut part).await?),
            Some("file") if received.is_none() => {
                let file_name = part.file_name().unwrap_or_default().to_owned();
                if file_name.len() > MAX_TEXT || file_name.contains('\0') {
                    return Err(invalid(format!(
                        "the file name must have at most {MAX_TEXT} bytes and no NUL character"
                    )));
                }
                let mut file = files.receive().await?;
                while let Some(data) = part.chunk().await.map_err(of_multipart)? {
                    file.write(&data).await?;
                }
                received = Some((file_name, file));
            }
            Some(name @ ("kind" | "file")) => {
                return Err(invalid(format!("the part `{name}` appears more than once")));
            }
            // Ignore parts that this version does not know.
            _ => {}
        }
    }
    let kind = kind_of(kind.as_deref())?;
    let Some((file_name, file)) = received else {
        return Err(invalid("the part `file` is missing"));
    };
    Ok(Received {
        kind,
        file_name: Some(file_name).filter(|name| !name.is_empty()),
        file: not_empty(file)?,
    })
}

/// Returns the text of a short part.
async fn text_of(part: &mut Field<'_>) -> Result<String, ApiError> {
    let mut text = Vec::new();
    while let Some(data) = part.chunk().await.map_err(of_multipart)? {
        text.extend_from_slice(&data);
        if text.len() > MAX_TEXT {
            return Err(unknown_kind());
        }
    }
    String::from_utf8(text).map_err(|_| unknown_kind())
}

fn kind_of(name: Option<&str>) -> Result<Kind, ApiError> {
    let name = name.ok_or_else(|| invalid("`kind` is missing; send `passport`, `id_card` or `selfie`"))?;
    Kind::parse(name).ok_or_else(unknown_kind)
}

fn not_empty(file: Incoming) -> Result<Incoming, ApiError> {
    match file.bytes() {
        0 => Err(invalid("the document is empty")),
        _ => Ok(file),
    }
}

fn unknown_kind() -> ApiError {
    invalid("unknown `kind`; it must be `passport`, `id_card` or `selfie`")
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message)
}

fn of_multipart(error: MultipartError) -> ApiError {
    // Reading the body failed. Its content is not the cause.
    if error.status().is_server_error() {
        return unreadable(&error);
    }
    ApiError::new(error.status(), error.body_text())
}

/// Returns the error for a body that broke off, or that is longer than the limit.
fn unreadable(error: &(dyn std::error::Error + 'static)) -> ApiError {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the document is too large");
        }
        next = error.source();
    }
    ApiError::new(StatusCode::BAD_REQUEST, "the body could not be read to its end")
}
