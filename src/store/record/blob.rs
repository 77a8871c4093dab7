//! A record's bytes in memory: either one piece, or a front and a separate large body, which is not
//! copied.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;

/// The size of a record's head, in bytes. No record is shorter.
const HEAD: usize = 20;
/// The minimum size, in bytes, of a body that is stored separately, as it was received.
pub(super) const APART: usize = 16 * 1024;

/// A record's bytes. Cloning is cheap because the bytes are shared.
#[derive(Clone)]
pub(super) struct Blob(Held);

#[derive(Clone)]
enum Held {
    Whole(Arc<[u8]>),
    Apart(Arc<Apart>),
}

struct Apart {
    front: Bytes,
    body: Bytes,
}

impl Blob {
    /// Joins `front` and `body`, which stay separate in memory.
    pub(super) fn apart(front: Bytes, body: Bytes) -> Self {
        Self(Held::Apart(Arc::new(Apart { front, body })))
    }

    /// Returns all bytes except a separate body.
    pub(super) fn front(&self) -> &[u8] {
        match &self.0 {
            Held::Whole(all) => all,
            Held::Apart(apart) => &apart.front,
        }
    }

    /// Returns the separate body, or an empty slice.
    pub(super) fn body(&self) -> &[u8] {
        match &self.0 {
            Held::Whole(_) => &[],
            Held::Apart(apart) => &apart.body,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.front().len() + self.body().len()
    }

    /// Returns a blob with the same body and a different front.
    pub(super) fn with_front(&self, front: Vec<u8>) -> Self {
        match &self.0 {
            Held::Whole(_) => front.into(),
            Held::Apart(apart) => Self::apart(front.into(), apart.body.clone()),
        }
    }

    /// Returns the front and the body, which share the record's memory. Without a separate body,
    /// the front contains all bytes.
    pub(super) fn share(&self) -> (Bytes, Option<Bytes>) {
        /// Lets `Bytes` share the record without copying it.
        struct Shared(Arc<[u8]>);
        impl AsRef<[u8]> for Shared {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        match &self.0 {
            Held::Whole(all) => (Bytes::from_owner(Shared(Arc::clone(all))), None),
            Held::Apart(apart) => (
                apart.front.clone(),
                Some(apart.body.clone()).filter(|body| !body.is_empty()),
            ),
        }
    }
}

impl From<&[u8]> for Blob {
    fn from(all: &[u8]) -> Self {
        Self(Held::Whole(all.into()))
    }
}

impl From<Vec<u8>> for Blob {
    fn from(all: Vec<u8>) -> Self {
        Self(Held::Whole(all.into()))
    }
}

/// Compares only the bytes. It does not matter whether a body is separate.
impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        fn bytes(blob: &Blob) -> impl Iterator<Item = &u8> {
            blob.front().iter().chain(blob.body())
        }
        match (&self.0, &other.0) {
            (Held::Whole(one), Held::Whole(other)) => one == other,
            _ => self.len() == other.len() && bytes(self).eq(bytes(other)),
        }
    }
}

impl Eq for Blob {}

/// The head is enough to distinguish records, so the body is not hashed.
impl Hash for Blob {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len().hash(state);
        let head = self.front().iter().chain(self.body()).take(HEAD);
        head.for_each(|byte| byte.hash(state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_as_large_as_a_pointer_and_a_length() {
        assert_eq!(size_of::<Blob>(), size_of::<Arc<[u8]>>());
    }

    #[test]
    fn blobs_are_equal_by_their_bytes() {
        let whole = Blob::from(&b"front and body"[..]);
        let apart = Blob::apart(Bytes::from("front and "), Bytes::from("body"));
        let elsewhere = Blob::apart(Bytes::from("front"), Bytes::from(" and body"));
        assert!(whole == apart && apart == elsewhere && whole == whole.clone());
        assert!(whole != Blob::from(&b"front and bodY"[..]) && apart != Blob::from(&b"front and"[..]));
        assert_eq!([whole.len(), apart.len()], [14, 14]);
    }
}
