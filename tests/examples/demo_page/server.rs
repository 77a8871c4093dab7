//! The example server that the page is of, which a test can kill and start again where it was.

use crate::examples::identity_verification::process;
use serde_json::Value;

use crate::examples::identity_verification::request::{BILLING, Call, SESSIONS};

use crate::support::servers::process::free_port;

pub(crate) struct Server {
    pub(crate) origin: String,
    options: Vec<String>,
    running: Option<process::Server>,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let mut server = Self {
            origin: format!("http://{address}"),
            options: ["--listen", &*address]
                .iter()
                .chain(options)
                .map(|option| (*option).to_owned())
                .collect(),
            running: None,
        };
        server.restart();
        server
    }

    pub(crate) fn restart(&mut self) {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.running = Some(process::Server::start(&options));
    }

    pub(crate) fn kill(&mut self) {
        self.running = None;
    }

    /// What an account is charged: each reference in its order, and the sum.
    pub(crate) async fn bill(&self, account: &str) -> (Vec<String>, u64) {
        let call = Call::get(BILLING).from(&format!("sk_test_{account}"));
        let bill = self.running.as_ref().unwrap().send(&call).await.expect(200).json();
        let charges = bill["charges"].as_array().unwrap();
        let references = charges
            .iter()
            .map(|charge| charge["reference"].as_str().unwrap().to_owned());
        (references.collect(), bill["total_cents"].as_u64().unwrap())
    }

    /// The documents of a session of acme.
    pub(crate) async fn documents(&self, session: &str) -> Vec<Value> {
        let path = format!("{SESSIONS}/{session}/documents");
        self.running.as_ref().unwrap().documents(&path).await
    }
}
