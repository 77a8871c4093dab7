//! The built example as a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::request::{Answer, BILLING, Call};
use crate::support::eventually;
use crate::support::example::{self, without_options};

/// The program, with no options yet.
pub(crate) fn program() -> Command {
    let mut command = Command::new(example::program("identity_verification"));
    without_options(&mut command)
        .env("RUST_LOG", "info,tower_idempotency=debug")
        .env("RUST_BACKTRACE", "0");
    command
}

/// A running server; it is killed when the test ends, in whatever way.
pub(crate) struct Server {
    child: Child,
    log: Option<JoinHandle<String>>,
    pub(crate) origin: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking()
            && let Some(Ok(log)) = self.log.take().map(JoinHandle::join)
        {
            eprintln!("the server at {} said:\n{log}", self.origin);
        }
    }
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut command = program();
        command.args(options);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .env("IDV_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first_line = String::new();
        let stdout = child.stdout.take().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        // Read as it comes, so that the server never blocks on a full pipe.
        let log = std::thread::spawn(move || {
            let mut log = Vec::new();
            stderr.read_to_end(&mut log).unwrap();
            String::from_utf8_lossy(&log).into_owned()
        });
        let mut server = Self {
            child,
            log: Some(log),
            origin: String::new(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        };
        BufReader::new(stdout).read_line(&mut first_line).unwrap();
        let origin = first_line
            .strip_prefix("listening on ")
            .and_then(|rest| rest.strip_suffix('\n'));
        server.origin = origin
            .unwrap_or_else(|| panic!("first line: {first_line:?}"))
            .to_owned();
        server
    }

    pub(crate) async fn try_send(&self, call: &Call) -> Result<Answer, Error> {
        Ok(Answer::of(self.client.request(call.at(&self.origin)).await?).await)
    }

    pub(crate) async fn send(&self, call: &Call) -> Answer {
        self.try_send(call).await.unwrap()
    }

    pub(crate) async fn charges(&self) -> usize {
        let bill = self.send(&Call::get(BILLING).from("sk_test_acme")).await.expect(200);
        bill.json()["charges"].as_array().unwrap().len()
    }

    /// The documents at that path, of a session of acme.
    pub(crate) async fn documents(&self, path: &str) -> Vec<Value> {
        let list = self.send(&Call::get(path).from("sk_test_acme")).await.expect(200);
        list.json()["documents"].as_array().unwrap().clone()
    }

    /// A connection of its own, on which `bytes` have been sent.
    pub(crate) async fn connect(&self, bytes: &str) -> TcpStream {
        let address = self.origin.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the process to end; returns how it did, and its log.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let status = eventually("the server has ended", async || self.child.try_wait().unwrap()).await;
        (status, self.log.take().unwrap().join().unwrap())
    }
}
