//! The programs of `examples/`, as those meet them who run them.

mod support;

mod examples {
    #[cfg(target_os = "linux")]
    mod demo_page;
    #[cfg(feature = "tonic")]
    mod grpc;
    mod identity_verification;
    mod needs;
    mod quickstart;
    #[cfg(target_os = "linux")]
    mod resilient_client;
}
