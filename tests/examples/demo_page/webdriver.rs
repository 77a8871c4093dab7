//! The few commands of the WebDriver protocol (<https://www.w3.org/TR/webdriver2/>) that the tests
//! need: JSON over HTTP, for which all is here already.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::support::servers::process::PATIENCE;

/// The name under which an element's reference is in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub(crate) struct Session {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Session {
    /// A new session of the driver at that origin.
    pub(crate) async fn new(driver: &str, capabilities: Value) -> Self {
        let mut session = Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            url: format!("{driver}/session"),
        };
        let new = session
            .post("", json!({ "capabilities": { "alwaysMatch": capabilities } }))
            .await
            .unwrap();
        session.url = format!("{driver}/session/{}", new["sessionId"].as_str().unwrap());
        session
    }

    /// A command's value, or what the driver has to say against it.
    async fn post(&self, path: &str, body: Value) -> Result<Value, String> {
        let request = Request::post(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .body(Full::from(body.to_string()))
            .unwrap();
        let exchange = async {
            let response = self.client.request(request).await.unwrap();
            let status = response.status();
            (status, response.into_body().collect().await.unwrap().to_bytes())
        };
        let (status, body) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| panic!("the driver does not answer {path}"));
        let mut answer: Value = serde_json::from_slice(&body).unwrap();
        let value = answer["value"].take();
        if status.is_success() {
            Ok(value)
        } else {
            Err(format!("{path}: {}: {}", value["error"], value["message"]))
        }
    }

    pub(crate) async fn navigate(&self, url: &str) {
        self.post("/url", json!({ "url": url })).await.unwrap();
    }

    /// What a script returns that runs in the page, as the body of a function of the arguments.
    pub(crate) async fn execute(&self, script: &str, arguments: &[Value]) -> Value {
        let body = json!({ "script": script, "args": arguments });
        self.post("/execute/sync", body).await.unwrap()
    }

    async fn find(&self, selector: &str) -> Result<String, String> {
        let body = json!({ "using": "css selector", "value": selector });
        let found = self.post("/element", body).await?;
        Ok(found[ELEMENT].as_str().unwrap().to_owned())
    }

    pub(crate) async fn click(&self, selector: &str) -> Result<(), String> {
        let element = self.find(selector).await?;
        self.post(&format!("/element/{element}/click"), json!({})).await?;
        Ok(())
    }

    pub(crate) async fn double_click(&self, selector: &str) {
        let element = self.find(selector).await.unwrap();
        let (down, up) = (
            json!({ "type": "pointerDown", "button": 0 }),
            json!({ "type": "pointerUp", "button": 0 }),
        );
        let to = json!({ "type": "pointerMove", "x": 0, "y": 0, "origin": { ELEMENT: element } });
        let mouse = json!({ "type": "pointer", "id": "mouse", "actions": [to, down, up, down, up] });
        self.post("/actions", json!({ "actions": [mouse] })).await.unwrap();
    }

    pub(crate) async fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector).await.unwrap();
        let path = format!("/element/{element}/value");
        self.post(&path, json!({ "text": text })).await.unwrap();
    }

    /// Presses a key, and lets it go, wherever the focus is.
    pub(crate) async fn press(&self, key: &str) {
        let strokes = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.post("/actions", json!({ "actions": [keyboard] })).await.unwrap();
    }

    /// What the browser's console shows, since this was asked last.
    pub(crate) async fn log(&self) -> Vec<Value> {
        let log = self.post("/se/log", json!({ "type": "browser" })).await.unwrap();
        log.as_array().unwrap().clone()
    }

    /// A command of Chromium's own protocol.
    pub(crate) async fn chromium(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.post("/goog/cdp/execute", body).await.unwrap()
    }
}
