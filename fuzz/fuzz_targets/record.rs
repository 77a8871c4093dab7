#![no_main]

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

// Lets the target see how much memory decoding requests.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_idempotency_fuzz::record::run(data));
