//! Webhooks that this server sends. Each decision has an event, which is delivered at least once.
//!
//! The event is appended to the outbox in the same write as the decision (`data/outbox/`), so the
//! event and the decision always exist together. On each server, a task takes events from the
//! outbox and posts them. An event is removed only when the subscriber has responded with 2xx. If
//! the process dies before that, the event is sent again. The subscriber recognizes a repeated
//! event by its id. `POST /v1/webhooks/events` on this server does so through the idempotency
//! layer.
//!
//! While the subscriber is down or broken, an event is retried forever, with growing pauses of up
//! to an hour (`schedule.rs`). An event that the subscriber refuses for three days (with a
//! redirect, or a 4xx that does not mean "try again later") is given up. It stays in the outbox,
//! marked as failed, and is logged as an error.
//!
//! Events can arrive in a different order from the decisions. `data.version` gives the order of the
//! decisions.

mod counts;
mod delivery;
mod event;
mod options;
pub(crate) mod schedule;
pub(crate) mod send;
pub(crate) mod sign;
mod wake;

pub(crate) use self::delivery::{Deliveries, Running};
pub(crate) use self::event::{Claimed, Draft, Outgoing};
pub(crate) use self::options::EventOptions;
pub(crate) use self::wake::wake_after;
