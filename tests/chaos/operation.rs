//! What a client wants done once.

use serde_json::{Value, json};

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
    Session { workflow: &'static str },
    Screening,
    Status,
    Event,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub account: Account,
    pub key: String,
    pub kind: Kind,
    /// The user, the name or the event it is about: no two operations have the same.
    pub subject: String,
}

impl Operation {
    pub fn request(&self, credential: &str) -> Vec<u8> {
        let (method, path, body) = match self.kind {
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
        format!(
            "{method} {path} HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\nauthorization: Bearer {credential}\r\n\
             idempotency-key: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        )
        .into_bytes()
    }

    /// The status of a success.
    pub fn success(&self) -> u16 {
        match self.kind {
            Kind::Session { .. } | Kind::Screening => 201,
            Kind::Status | Kind::Event => 200,
        }
    }

    /// Whether an answer is about this operation and no other.
    pub fn is_subject_of(&self, answer: &Value) -> bool {
        let name = match self.kind {
            Kind::Session { .. } | Kind::Status => "user_id",
            Kind::Screening => "full_name",
            Kind::Event => "event_id",
        };
        answer[name] == *self.subject
    }

    /// What an answer's charge refers to, and its price.
    pub fn charged(&self, answer: &Value) -> Option<(String, u64)> {
        let (name, cents) = match self.kind {
            Kind::Session { .. } => ("session_id", 150),
            Kind::Screening => ("screening_id", 35),
            Kind::Status | Kind::Event => return None,
        };
        Some((answer[name].as_str().unwrap_or_default().to_owned(), cents))
    }
}

pub fn get(path: &str, credential: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\nauthorization: Bearer {credential}\r\n\r\n")
        .into_bytes()
}
