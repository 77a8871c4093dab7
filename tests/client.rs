//! The client layers: against scripted services on paused time, and against real servers.

mod client {
    mod bounds;
    mod keys;
    mod lifetime;
    mod net;
    mod reqwest;
    mod retries;
    mod script;
    mod statuses;
    mod tcp;
}
