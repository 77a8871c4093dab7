//! Webhooks that this server sends: an event for each decision, delivered at least once.
//!
//! The event is appended to the outbox in the same write as the decision (`data/outbox/`), so there is never one
//! without the other. A task of each server takes events from the outbox and posts them. An event is removed only
//! when the subscriber has answered with 2xx. If the process dies before that, the event is sent again. The
//! subscriber recognises it by its id, as `POST /v1/webhooks/events` of this server does through the idempotency
//! layer.
//!
//! While the subscriber is down or broken, an event is retried forever, with growing pauses of up to an hour
//! (`schedule.rs`). An event that the subscriber refuses for three days (with a redirect, or a 4xx that does not
//! ask for time) is given up: it stays in the outbox, marked as failed, and is logged as an error.
//!
//! Events may arrive in another order than the decisions. `data.version` has the order.

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
