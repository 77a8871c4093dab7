//! The UUIDs that identify refusals.

use std::hash::Hasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use siphasher::sip128::{Hasher128, SipHasher13};
use uuid::{Builder, Uuid};

/// Returns the next version 4 UUID (RFC 9562, section 5.4). The UUID is a keyed hash of a counter,
/// because random bytes from the system would cost one system call for each duplicate in a burst.
pub(super) fn next() -> Uuid {
    static KEY: LazyLock<[u8; 16]> = LazyLock::new(|| Uuid::new_v4().into_bytes());
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut hasher = SipHasher13::new_with_key(&KEY);
    hasher.write_u64(COUNTER.fetch_add(1, Ordering::Relaxed));
    Builder::from_random_bytes(hasher.finish128().as_bytes()).into_uuid()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_refusals_have_the_same_instance() {
        let names: HashSet<Uuid> = (0..10_000).map(|_| next()).collect();
        assert_eq!(names.len(), 10_000);
        assert!(names.iter().all(|name| name.get_version_num() == 4));
    }
}
