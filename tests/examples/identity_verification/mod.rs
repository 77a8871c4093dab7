//! The example server `identity_verification`: its application in this process, on paused time, and
//! the built program as a client meets it.

mod black_box;
#[cfg(target_os = "linux")]
mod clients;
#[cfg(target_os = "linux")]
mod contract;
mod deliveries;
#[cfg(target_os = "linux")]
mod documents;
#[cfg(target_os = "linux")]
mod events;
mod in_process;
pub(crate) mod process;
pub(crate) mod request;
#[cfg(target_os = "linux")]
mod stores;
#[cfg(unix)]
mod subscriber;
#[cfg(target_os = "linux")]
mod walk;

/// The example's own modules, all but those of its process.
#[path = "../../../examples/identity_verification"]
#[allow(dead_code, reason = "only the process stops, and awaits its work before that")]
mod server {
    mod accounts;
    pub(crate) mod app;
    mod billing;
    mod data;
    mod documents;
    mod error;
    pub(crate) mod events;
    mod json;
    mod metrics;
    mod operations;
    pub(crate) mod options;
    mod page;
    mod provider;
    mod records;
    mod screenings;
    mod sessions;
    mod storage;
    mod users;
    mod webhooks;
}
