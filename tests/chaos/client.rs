//! A client that may hang up.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answer(Answer),
    /// The client did not wait any longer.
    HungUp,
    /// No server, or a connection that ended before the answer did.
    Broken,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub replayed: bool,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The slug of a refusal by the layer.
    pub fn code(&self) -> Option<String> {
        self.json()["code"].as_str().map(str::to_owned)
    }
}

/// Sends a request on a connection of its own, and waits so long for the answer.
pub async fn send(address: Option<SocketAddr>, request: &[u8], patience: Duration) -> Outcome {
    let Some(address) = address else {
        return Outcome::Broken;
    };
    match timeout(patience, exchange(address, request)).await {
        Ok(Some(answer)) => Outcome::Answer(answer),
        Ok(None) => Outcome::Broken,
        Err(_) => Outcome::HungUp,
    }
}

async fn exchange(address: SocketAddr, request: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request).await.ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok()?;
    parse(std::str::from_utf8(&bytes).ok()?)
}

/// A whole answer, or none.
fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let mut length = None;
    let mut replayed = false;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok(),
            "idempotency-replayed" => replayed = value.trim() == "true",
            _ => {}
        }
    }
    (length == Some(body.len())).then(|| Answer {
        status,
        replayed,
        body: body.to_owned(),
    })
}

#[test]
fn half_an_answer_is_none() {
    let whole = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\nIdempotency-Replayed: true\r\n\r\nab";
    let answer = parse(whole).unwrap();
    assert_eq!(
        (answer.status, answer.replayed, answer.body.as_str()),
        (201, true, "ab")
    );
    for length in 0..whole.len() {
        assert_eq!(parse(&whole[..length]), None);
    }
}
