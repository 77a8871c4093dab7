//! The stores, each on a server of the tests' own where it needs one, and the conformance suite itself.

mod support;

mod stores {
    #[cfg(target_os = "linux")]
    mod atomic;
    mod conformance;
    mod faults;
    mod memory;
    mod model;
    #[cfg(target_os = "linux")]
    mod postgres;
    #[cfg(unix)]
    mod redis;
    mod sealed;
    #[cfg(target_os = "linux")]
    mod servers_work;
    mod sqlite;
    mod tiered;
    mod uploads;
    mod work;
}
