//! The programs of `examples/` and the documents, as a newcomer meets them.

mod support;

mod examples {
    #[cfg(target_os = "linux")]
    mod demo_page;
    mod documents;
    #[cfg(unix)]
    mod grpc;
    mod identity_verification;
    mod needs;
    mod quickstart;
    #[cfg(target_os = "linux")]
    mod resilient_client;
}
