//! A subscriber of events that does as it is told, over real connections.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) line: String,
    headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    pub(crate) fn id(&self) -> &str {
        self.header("webhook-id")
    }
}

/// What becomes of a request.
pub(crate) enum Reply {
    Status(u16),
    /// `307` to that URL.
    Redirect(String),
    /// The connection is closed without an answer.
    Cut,
    /// Nothing, for as long as the client waits.
    Never,
    /// `500`, with a body that does not end.
    Endless,
}

/// Ends when it is dropped.
pub(crate) struct Subscriber {
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    accepting: JoinHandle<()>,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Subscriber {
    /// On a free port.
    pub(crate) async fn start(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_on(0, reply).await
    }

    pub(crate) async fn start_on(port: u16, reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let seen = requests.clone();
        let reply = Arc::new(reply);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, reply) = (seen.clone(), reply.clone());
                connections.spawn(async move {
                    let record = |request: &Request| seen.lock().unwrap().push(request.clone());
                    // A client that leaves is no matter here.
                    let _ = serve(stream, record, &*reply).await;
                });
            }
        });
        Self {
            port,
            requests,
            accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        url(self.port)
    }

    /// All so far, in their order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) fn url(port: u16) -> String {
    format!("http://{}:{port}/hook", Ipv4Addr::LOCALHOST)
}

async fn serve(
    mut stream: TcpStream,
    record: impl Fn(&Request),
    reply: &(dyn Fn(&Request) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    while let Some(request) = read(&mut stream, &mut bytes).await? {
        record(&request);
        let answer = match reply(&request) {
            Reply::Status(status) => format!("HTTP/1.1 {status} Said\r\ncontent-length: 2\r\n\r\n{{}}"),
            Reply::Redirect(url) => {
                format!("HTTP/1.1 307 Said\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n")
            }
            Reply::Cut => return Ok(()),
            Reply::Never => return std::future::pending().await,
            Reply::Endless => {
                stream
                    .write_all(b"HTTP/1.1 500 Said\r\ntransfer-encoding: chunked\r\n\r\n")
                    .await?;
                loop {
                    stream.write_all(b"5\r\nmore \r\n").await?;
                }
            }
        };
        stream.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

/// The next request, of which a part may have been read already.
async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<Option<Request>> {
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut lines = head.split("\r\n");
            let line = lines.next().unwrap().to_owned();
            let headers: HashMap<String, String> = lines
                .map(|line| {
                    let (name, value) = line.split_once(": ").unwrap();
                    (name.to_ascii_lowercase(), value.to_owned())
                })
                .collect();
            let length: usize = headers["content-length"].parse().unwrap();
            let whole = end + 4 + length;
            if bytes.len() >= whole {
                let body = String::from_utf8(bytes[end + 4..whole].to_vec()).unwrap();
                bytes.drain(..whole);
                return Ok(Some(Request { line, headers, body }));
            }
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}
