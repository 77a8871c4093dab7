//! The bodies of the fuzz targets, which `tests/fuzz_targets.rs` also runs as an ordinary test.

#[path = "../../tests/fuzz_targets/body.rs"]
mod body;
#[path = "../../tests/support/claim.rs"]
#[allow(dead_code, reason = "one target uses a part of it")]
mod claim;
#[path = "../../tests/fuzz_targets/input.rs"]
mod input;
#[path = "../../tests/fuzz_targets/key.rs"]
pub mod key;
#[path = "../../tests/fuzz_targets/record.rs"]
pub mod record;
#[path = "../../tests/fuzz_targets/service.rs"]
pub mod service;
#[path = "../../tests/fuzz_targets/stores.rs"]
pub mod stores;
#[path = "../../tests/fuzz_targets/uploads.rs"]
pub mod uploads;
