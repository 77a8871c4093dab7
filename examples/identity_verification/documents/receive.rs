//! Reading an upload: a form with a file in it, or a raw picture.

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;
use http_body_util::LengthLimitError;
use multer::{Constraints, Multipart, SizeLimit};

use super::super::error::ApiError;
use super::files::{Files, Incoming, Written};
use super::{Kind, unprocessable};

/// What is sent without a form.
const RAW: [&str; 3] = ["image/jpeg", "image/png", "application/pdf"];
/// Longer than any kind.
const MAX_KIND: u64 = 100;
const MAX_FILE_NAME: usize = 255;

/// An upload that has arrived whole.
pub(super) struct Received {
    pub(super) kind: Kind,
    pub(super) file_name: Option<String>,
    pub(super) file: Written,
}

/// Reads the body to its end: only there it is known whether it has arrived whole.
pub(super) async fn receive(
    files: &Files,
    document_id: &str,
    headers: &HeaderMap,
    kind: Option<&str>,
    body: Body,
) -> Result<Received, ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default();
    let mut body = body.into_data_stream();
    if let Ok(boundary) = multer::parse_boundary(content_type) {
        return receive_form(files, document_id, boundary, body).await;
    }
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !RAW.iter().any(|raw| media_type.eq_ignore_ascii_case(raw)) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send multipart/form-data, image/jpeg, image/png or application/pdf",
        ));
    }
    let kind = Kind::parse(kind.ok_or_else(|| unprocessable("the query needs `kind`"))?)?;
    let mut incoming = files.receive(document_id).await?;
    while let Some(data) = body.next().await {
        incoming.write(data.map_err(|error| unreadable(&error))?).await?;
    }
    Ok(Received {
        kind,
        file_name: None,
        file: incoming.finish().await?,
    })
}

async fn receive_form(
    files: &Files,
    document_id: &str,
    boundary: String,
    mut body: BodyDataStream,
) -> Result<Received, ApiError> {
    let limits = SizeLimit::new().for_field("kind", MAX_KIND);
    let constraints = Constraints::new().size_limit(limits);
    let mut form = Multipart::with_constraints(&mut body, boundary, constraints);
    let (mut kind, mut file) = (None, None);
    while let Some(mut field) = form.next_field().await.map_err(malformed)? {
        match field.name() {
            Some("kind") if kind.is_none() => kind = Some(Kind::parse(&field.text().await.map_err(malformed)?)?),
            Some("file") if file.is_none() => {
                let file_name = field.file_name().map(str::to_owned);
                let mut incoming: Incoming = files.receive(document_id).await?;
                while let Some(data) = field.chunk().await.map_err(malformed)? {
                    incoming.write(data).await?;
                }
                file = Some((file_name, incoming));
            }
            Some(name @ ("kind" | "file")) => return Err(unprocessable(format!("`{name}` is there twice"))),
            _ => {}
        }
    }
    drop(form);
    // What follows the form counts for nothing, but for whether the body ends well.
    while let Some(data) = body.next().await {
        let _: Bytes = data.map_err(|error| unreadable(&error))?;
    }
    let (Some(kind), Some((file_name, incoming))) = (kind, file) else {
        return Err(unprocessable("the form needs the parts `kind` and `file`"));
    };
    if file_name
        .as_ref()
        .is_some_and(|name| name.len() > MAX_FILE_NAME || name.contains('\0'))
    {
        return Err(unprocessable("the file's name is too long, or has a NUL character"));
    }
    Ok(Received {
        kind,
        file_name,
        file: incoming.finish().await?,
    })
}

fn malformed(error: multer::Error) -> ApiError {
    match &error {
        multer::Error::StreamReadFailed(cause) => unreadable(&**cause),
        multer::Error::FieldSizeExceeded { .. } => unprocessable("`kind` is too long"),
        _ => ApiError::new(StatusCode::BAD_REQUEST, format!("the form cannot be read: {error}")),
    }
}

/// The body broke off, or is too large.
fn unreadable(error: &(dyn std::error::Error + 'static)) -> ApiError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return super::files::too_large();
        }
        cause = error.source();
    }
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "the upload broke off; send it again with the same key",
    )
}
