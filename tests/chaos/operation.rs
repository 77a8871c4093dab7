//! What a client wants done once.

use serde_json::{Value, json};

use super::rng::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    Acme,
    Globex,
}

pub const ACCOUNTS: [Account; 2] = [Account::Acme, Account::Globex];

impl Account {
    /// Any of an account's credentials replays what another of them began.
    pub fn credentials(self) -> &'static [&'static str] {
        match self {
            Self::Acme => &["sk_test_acme", "sk_test_acme_rotated"],
            Self::Globex => &["sk_test_globex"],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Session {
        workflow: &'static str,
    },
    Screening,
    Status,
    Event,
    /// An upload to the account's session. Each try has a boundary of its own.
    Document,
}

/// The length of an uploaded file: more than a connection takes at once.
pub const FILE: usize = 200_000;

#[derive(Clone, Debug)]
pub struct Operation {
    pub account: Account,
    pub key: String,
    pub kind: Kind,
    /// The user, the name or the event it is about: no two operations have the same.
    pub subject: String,
    /// The session that a document belongs to. Empty until it is made.
    pub session: String,
}

impl Operation {
    /// One that needs no session.
    pub fn new(account: Account, key: String, kind: Kind, subject: String) -> Self {
        Self {
            account,
            key,
            kind,
            subject,
            session: String::new(),
        }
    }

    pub fn request(&self, rng: &mut Rng) -> Vec<u8> {
        let credential = rng.pick(self.account.credentials());
        let (method, path, body) = match self.kind {
            Kind::Document => return self.upload(credential, &format!("b{:016x}", rng.next())),
            Kind::Session { workflow } => (
                "POST",
                "/v1/verification/sessions".to_owned(),
                json!({"user_id": self.subject, "workflow_id": workflow}),
            ),
            Kind::Screening => (
                "POST",
                "/v1/aml/screenings".to_owned(),
                json!({"full_name": self.subject}),
            ),
            Kind::Status => (
                "PATCH",
                format!("/v1/users/{}/status", self.subject),
                json!({"status": "approved"}),
            ),
            Kind::Event => (
                "POST",
                "/v1/webhooks/events".to_owned(),
                json!({"event_id": self.subject, "type": "user.verified", "data": {}}),
            ),
        };
        let body = body.to_string();
        let head = self.head(method, &path, credential, "application/json", body.len());
        (head + &body).into_bytes()
    }

    fn upload(&self, credential: &str, boundary: &str) -> Vec<u8> {
        let mut body = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"kind\"\r\n\r\npassport\r\n--{boundary}\r\n\
             content-disposition: form-data; name=\"file\"; filename=\"{}\"\r\ncontent-type: image/jpeg\r\n\r\n",
            self.subject
        )
        .into_bytes();
        body.extend(self.file());
        body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
        let path = format!("/v1/verification/sessions/{}/documents", self.session);
        let form = format!("multipart/form-data; boundary={boundary}");
        let mut request = self.head("POST", &path, credential, &form, body.len()).into_bytes();
        request.extend(body);
        request
    }

    /// What is uploaded: another file for each subject.
    pub fn file(&self) -> Vec<u8> {
        self.subject.bytes().cycle().take(FILE).collect()
    }

    fn head(&self, method: &str, path: &str, credential: &str, content_type: &str, length: usize) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\nauthorization: Bearer {credential}\r\n\
             idempotency-key: {}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n",
            self.key
        )
    }

    /// The status of a success.
    pub fn success(&self) -> u16 {
        match self.kind {
            Kind::Session { .. } | Kind::Screening | Kind::Document => 201,
            Kind::Status | Kind::Event => 200,
        }
    }

    /// Whether an answer is about this operation and no other.
    pub fn is_subject_of(&self, answer: &Value) -> bool {
        let name = match self.kind {
            Kind::Session { .. } | Kind::Status => "user_id",
            Kind::Screening => "full_name",
            Kind::Event => "event_id",
            Kind::Document => "file_name",
        };
        answer[name] == *self.subject
    }

    /// What an answer's charge refers to, and its price.
    pub fn charged(&self, answer: &Value) -> Option<(String, u64)> {
        let (name, cents) = match self.kind {
            Kind::Session { .. } => ("session_id", 150),
            Kind::Screening => ("screening_id", 35),
            Kind::Document => ("document_id", 20),
            Kind::Status | Kind::Event => return None,
        };
        Some((answer[name].as_str().unwrap_or_default().to_owned(), cents))
    }
}

pub fn get(path: &str, credential: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\nauthorization: Bearer {credential}\r\n\r\n")
        .into_bytes()
}
