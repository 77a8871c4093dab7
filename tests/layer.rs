//! The layer among others: in routers and under middleware, on sockets, with clients that leave, leases
//! that lapse, hostile clients, and what it logs and counts.

mod support;

mod layer {
    mod composition;
    mod config;
    mod disconnect;
    mod grpc;
    mod hostile;
    mod layers;
    mod leases;
    mod metrics;
    #[cfg(unix)]
    mod operating;
    mod panics;
    mod reconcile;
    mod secrets;
    mod tcp;
    mod uploads;
}
