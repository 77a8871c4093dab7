//! The stores, each on a server of the tests' own where it needs one, and the conformance suite itself.

mod support;

mod stores {
    #[cfg(target_os = "linux")]
    mod atomic;
    #[cfg(feature = "conformance")]
    mod conformance;
    #[cfg(feature = "conformance")]
    mod faults;
    mod memory;
    mod model;
    #[cfg(target_os = "linux")]
    mod postgres;
    #[cfg(unix)]
    mod redis;
    #[cfg(all(feature = "sealed", feature = "tiered"))]
    mod sealed;
    #[cfg(target_os = "linux")]
    mod servers_work;
    mod sqlite;
    #[cfg(all(feature = "sealed", feature = "tiered"))]
    mod tiered;
    mod uploads;
    #[cfg(all(feature = "sealed", feature = "tiered"))]
    mod work;
}
