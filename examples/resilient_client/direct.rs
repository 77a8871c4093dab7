//! Sends requests directly to the server, not through the bad network.

use std::error::Error;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::client::Body;

pub(crate) const API_KEY: &str = "Bearer sk_test_acme";

pub(crate) async fn get(server: &Uri, path: &str) -> Result<Value, Box<dyn Error + Send + Sync>> {
    let request = Request::get(format!("{server}{path}")).header(AUTHORIZATION, API_KEY);
    ask(request.body(Full::default())?).await
}

pub(crate) async fn post(server: &Uri, path: &str, body: &Value) -> Result<Value, Box<dyn Error + Send + Sync>> {
    let request = Request::post(format!("{server}{path}"))
        .header(AUTHORIZATION, API_KEY)
        .header(CONTENT_TYPE, "application/json");
    ask(request.body(Full::from(body.to_string()))?).await
}

async fn ask(request: Request<Body>) -> Result<Value, Box<dyn Error + Send + Sync>> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let body = client.request(request).await?.into_body().collect().await?;
    Ok(serde_json::from_slice(&body.to_bytes())?)
}
