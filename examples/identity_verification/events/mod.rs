//! Webhooks that this server sends: an event for each decision, delivered at least once.
//!
//! The event is appended to the outbox in the same write as the decision (`data/outbox/`), so there
//! is never one without the other. A task of each server takes events from there and posts them;
//! only when the subscriber has answered with 2xx is an event removed. A process that dies in
//! between leaves it to be sent again: the subscriber tells a repetition by the event's id, which is
//! what `POST /v1/webhooks/events` of this same server does through the idempotency layer.
//!
//! While the subscriber is down or broken an event is tried forever, with growing pauses of up to an
//! hour (`schedule.rs`). One that it refuses for three days (a redirect, or a 4xx that does not ask
//! for time) is given up: it stays in the outbox, marked as failed, and is logged as an error.
//!
//! Events may arrive in another order than they were decided in: `data.version` tells the order.

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
