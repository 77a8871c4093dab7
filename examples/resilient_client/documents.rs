//! Documents to upload. Each attempt builds its form again, as browsers and curl do.

use std::error::Error;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Uri};
use http_body_util::Full;
use serde_json::json;
use uuid::Uuid;

use super::client::Body;
use super::direct::{self, API_KEY};

/// The range of document sizes, in bytes.
const SIZES: std::ops::Range<usize> = 1..64 * 1024;

/// A document that is sent as a form.
#[derive(Clone)]
struct Form {
    content: Bytes,
}

/// Creates a session directly, not through the bad network.
pub(crate) async fn open_session(server: &Uri) -> Result<String, Box<dyn Error + Send + Sync>> {
    let body = json!({ "user_id": "usr_documents", "workflow_id": "wkf_kyc_full" });
    let session = direct::post(server, "v1/verification/sessions", &body).await?;
    let id = session["session_id"].as_str().ok_or("the server created no session")?;
    Ok(id.to_owned())
}

/// Returns the number of documents in the session.
pub(crate) async fn count(server: &Uri, session: &str) -> Result<usize, Box<dyn Error + Send + Sync>> {
    let list = direct::get(server, &format!("v1/verification/sessions/{session}/documents")).await?;
    Ok(list["documents"].as_array().map_or(0, Vec::len))
}

/// Returns a request that uploads a document. The content depends on the seed and the number.
pub(crate) fn upload(origin: &Uri, session: &str, seed: u64, number: usize) -> Result<Request<Body>, http::Error> {
    let mut random = fastrand::Rng::with_seed(seed ^ number as u64);
    let content: Vec<u8> = (0..random.usize(SIZES)).map(|_| random.u8(..)).collect();
    let path = format!("{origin}v1/verification/sessions/{session}/documents");
    if number.is_multiple_of(2) {
        return Request::post(format!("{path}?kind=selfie"))
            .header(AUTHORIZATION, API_KEY)
            .header(CONTENT_TYPE, "image/png")
            .body(Full::from(content));
    }
    Request::post(path)
        .header(AUTHORIZATION, API_KEY)
        .extension(Form {
            content: content.into(),
        })
        .body(Full::default())
}

/// Builds an upload's form with a new boundary. This function runs inside the retries, so each
/// attempt has its own boundary.
pub(crate) fn with_new_boundary(mut request: Request<Body>) -> Request<Body> {
    let Some(Form { content }) = request.extensions().get().cloned() else {
        return request;
    };
    let boundary = Uuid::new_v4().simple().to_string();
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"kind\"\r\n\r\npassport\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"passport.jpg\"\r\n\
         Content-Type: image/jpeg\r\n\r\n"
    );
    let end = format!("\r\n--{boundary}--\r\n");
    let form = [head.as_bytes(), &content, end.as_bytes()].concat();
    if let Ok(value) = HeaderValue::from_str(&format!("multipart/form-data; boundary={boundary}")) {
        request.headers_mut().insert(CONTENT_TYPE, value);
    }
    *request.body_mut() = Full::from(form);
    request
}
