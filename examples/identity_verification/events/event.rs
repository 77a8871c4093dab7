//! The events that this server sends.

use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use serde_json::Value;
use uuid::Uuid;

use super::super::accounts::Account;
use super::super::users::UserStatus;

/// The event of a decision, without the user's new version. The version is known only when the
/// decision is written.
pub(crate) struct Draft {
    pub(crate) id: String,
    /// The part of the body before the version. The body is split so that a script in the database
    /// can insert the version.
    pub(crate) head: String,
    pub(crate) tail: &'static str,
}

impl Draft {
    pub(crate) fn of_decision(account: Account, user_id: &str, status: UserStatus) -> Self {
        let id = format!("evt_{}", Uuid::new_v4().simple());
        let (account, status) = (account.id(), status.as_str());
        let timestamp = humantime::format_rfc3339_millis(SystemTime::now());
        // This is the only text here that comes from a client.
        let user_id = Value::from(user_id);
        let head = format!(
            r#"{{"event_id":"{id}","type":"user.{status}","timestamp":"{timestamp}","data":{{"account":"{account}","user_id":{user_id},"status":"{status}","version":"#
        );
        Self { id, head, tail: "}}" }
    }

    pub(crate) fn complete(&self, version: u64) -> Outgoing {
        Outgoing {
            id: self.id.clone(),
            body: format!("{}{version}{}", self.head, self.tail).into(),
        }
    }
}

/// An event as it is sent. Each attempt sends the same bytes.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub(crate) id: String,
    pub(crate) body: Bytes,
}

/// An event that this server has claimed and delivers before the claim lapses.
pub(crate) struct Claimed {
    pub(crate) event: Outgoing,
    /// The number of this attempt, starting at 1. It also distinguishes this claim from later
    /// claims.
    pub(crate) attempt: u64,
    /// How long the subscriber has been refusing every attempt.
    pub(crate) refused_for: Option<Duration>,
}
