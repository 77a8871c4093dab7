//! The place where a request carries its key.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderName;
use http::request::Parts;

use super::text::InvalidKey;
use crate::error::ConfigError;
use crate::request::header_name;
use crate::request::json::Pointer;

/// The header that the draft defines, which is also the default key source.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(super) type HeadFn = dyn Fn(&Parts) -> Result<Option<String>, InvalidKey> + Send + Sync;
pub(super) type BodyFn = dyn Fn(&Parts, &Bytes) -> Result<Option<String>, InvalidKey> + Send + Sync;

/// The place where a request carries its key. The default is the `Idempotency-Key` header.
///
/// Every key has 1 to [`max_key_length`](crate::IdempotencyLayerBuilder::max_key_length) bytes of
/// visible ASCII and spaces, whatever its source. Values that can only come from a bug in a client
/// are refused: `undefined`, `null`, `None`, `nil`, `NaN`, `[object Object]`, an unfilled template
/// (`{{key}}`, `${key}`), the nil UUID and the max UUID. A key that breaks a rule is refused with
/// the `400` problem `invalid-key`.
///
/// | the key is in | source | is the body read for it? |
/// |---|---|---|
/// | a header | [`header`](Self::header), or [`headers`](Self::headers) for the first of several headers that is present | no |
/// | the head: path, query, several headers | [`from_head`](Self::from_head) | no |
/// | a JSON body | [`json_pointer`](Self::json_pointer), or [`json_pointers`](Self::json_pointers) joined | yes |
/// | any other part of the body | [`from_fn`](Self::from_fn) | yes |
///
/// ```
/// use tower_idempotency::KeySource;
///
/// let paypal = KeySource::header("PayPal-Request-Id");
/// let square = KeySource::json_pointer("/idempotency_key");
/// let by_query = KeySource::from_head(|parts| Ok(parts.uri.query().map(str::to_owned)));
/// let by_first_line = KeySource::from_fn(|_parts, body| {
///     let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
///     Ok(std::str::from_utf8(line).ok().map(str::to_owned))
/// });
/// # let _ = (paypal, square, by_query, by_first_line);
/// ```
#[derive(Clone)]
pub struct KeySource(pub(super) Source);

#[derive(Clone)]
pub(super) enum Source {
    Headers(Named<Vec<HeaderName>>),
    Head(Arc<HeadFn>),
    Pointers(Named<Vec<Pointer>>),
    Body(Arc<BodyFn>),
}

/// The result of parsing a name or a pointer. An error is reported when the layer is built.
pub(super) type Named<T> = Result<T, ConfigError>;

impl Default for KeySource {
    fn default() -> Self {
        Self(Source::Headers(Ok(vec![IDEMPOTENCY_KEY])))
    }
}

impl KeySource {
    /// Reads the key from the header with this name.
    ///
    /// A name that is not a valid header name (RFC 9110, section 5.1) is an error when the layer is
    /// built.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self::headers([name])
    }

    /// Reads the key from the first of these headers that is present in the request.
    ///
    /// If the key in that header is invalid, the request is refused with the `400` problem
    /// `invalid-key`. The next header is not tried. An empty list, or a name that is not a valid
    /// header name, is an error when the layer is built.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, KeySource, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .key(KeySource::headers(["Idempotency-Key", "X-Idempotency-Key"]))
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    #[must_use]
    pub fn headers<I>(names: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let parse = |name: I::Item| header_name::parse("key", name.as_ref());
        let names = names.into_iter().map(parse).collect();
        Self(Source::Headers(at_least_one(
            names,
            "`headers` needs at least one header name",
        )))
    }

    /// Reads the key from the `webhook-id` header, which is defined by [Standard
    /// Webhooks](https://www.standardwebhooks.com). The key is the event's id, which is the same
    /// for each delivery of that event.
    ///
    /// This method is short for `header("webhook-id")`. See
    /// [`webhooks`](crate::IdempotencyLayerBuilder::webhooks).
    #[must_use]
    pub fn webhook_id() -> Self {
        Self::header("webhook-id")
    }

    /// Uses the key that the closure finds in the request's head. The body is not read. If the
    /// closure returns `None`, the key is missing.
    ///
    /// If the closure returns an error, its text becomes the `detail` of the `400` problem
    /// `invalid-key`. A panic in the closure propagates to the outer layers before anything is
    /// claimed.
    ///
    /// ```
    /// use tower_idempotency::{InvalidKey, KeySource};
    ///
    /// // A GitHub webhook carries the id of its delivery in this header.
    /// let delivery = KeySource::from_head(|parts| {
    ///     let Some(id) = parts.headers.get("x-github-delivery") else {
    ///         return Ok(None);
    ///     };
    ///     let id = id.to_str().map_err(|_| InvalidKey::new("`X-GitHub-Delivery` must be visible ASCII"))?;
    ///     Ok(Some(id.to_owned()))
    /// });
    /// # let _ = delivery;
    /// ```
    #[must_use]
    pub fn from_head<F>(find: F) -> Self
    where
        F: Fn(&Parts) -> Result<Option<String>, InvalidKey> + Send + Sync + 'static,
    {
        Self(Source::Head(Arc::new(find)))
    }

    /// Reads the key from the value at a JSON pointer (RFC 6901) into the body: the text of a
    /// string, or the digits of an integer.
    ///
    /// To look for the key, the layer buffers the body of every request with a guarded method, up
    /// to [`max_request_body`](crate::IdempotencyLayerBuilder::max_request_body). If the body is
    /// empty, or if it contains no value at the pointer, the key is missing. The request is refused
    /// with the `400` problem `invalid-key` if the body is not JSON, has a `Content-Encoding`, or
    /// contains a member on the path to the key more than once. A string that is not a JSON pointer
    /// is an error when the layer is built.
    #[must_use]
    pub fn json_pointer(pointer: &str) -> Self {
        Self::json_pointers([pointer])
    }

    /// Joins the values at several JSON pointers, for example an event's code *and* its reference.
    ///
    /// Each value must obey the rules of [`json_pointer`](Self::json_pointer). If any value is
    /// missing, the key is missing. [`join`](Self::join) combines the values into the key, in the
    /// order of the pointers. An empty list is an error when the layer is built.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, KeySource, MemoryStore};
    ///
    /// // Adyen sends one event code for many payments, and many event codes for one payment.
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .key(KeySource::json_pointers(["/eventCode", "/pspReference"]))
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    #[must_use]
    pub fn json_pointers<I>(pointers: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let parse = |pointer: I::Item| Pointer::parse("key", pointer.as_ref());
        let pointers = pointers.into_iter().map(parse).collect();
        Self(Source::Pointers(at_least_one(
            pointers,
            "`json_pointers` needs at least one JSON pointer",
        )))
    }

    /// Uses the key that the closure finds in the head and the buffered body. If the closure
    /// returns `None`, the key is missing.
    ///
    /// To call the closure, the layer buffers the body of every request with a guarded method, up
    /// to [`max_request_body`](crate::IdempotencyLayerBuilder::max_request_body).
    /// [`from_head`](Self::from_head) does not buffer the body. If the closure returns an error,
    /// its text becomes the `detail` of the `400` problem `invalid-key`. A panic in the closure
    /// propagates to the outer layers before anything is claimed.
    ///
    /// ```
    /// use tower_idempotency::{InvalidKey, KeySource};
    ///
    /// let by_number = KeySource::from_fn(|_parts, body| {
    ///     let text = std::str::from_utf8(body).map_err(|_| InvalidKey::new("the body must be UTF-8"))?;
    ///     Ok(text.lines().find_map(|line| line.strip_prefix("number=")).map(str::to_owned))
    /// });
    /// # let _ = by_number;
    /// ```
    #[must_use]
    pub fn from_fn<F>(find: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> Result<Option<String>, InvalidKey> + Send + Sync + 'static,
    {
        Self(Source::Body(Arc::new(find)))
    }

    /// Joins several values into one key, each prefixed with its length. A single value stays
    /// unchanged, unless it begins like a joined key, with digits and a colon.
    ///
    /// Two different lists never produce the same key, except that an empty list and a single empty
    /// value both produce the empty key, which the layer refuses.
    /// [`json_pointers`](Self::json_pointers) joins values with this function. You can also use
    /// this function in your own closures and with
    /// [`IdempotencyLayer::slot`](crate::IdempotencyLayer::slot).
    ///
    /// ```
    /// use tower_idempotency::KeySource;
    ///
    /// assert_eq!(KeySource::join(["CAPTURE", "ref-1"]), "7:CAPTURE5:ref-1");
    /// assert_eq!(KeySource::join(["evt_1"]), "evt_1");
    /// assert_eq!(KeySource::join(["12:30"]), "5:12:30");
    /// ```
    #[must_use]
    pub fn join<I>(values: I) -> String
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let values: Vec<_> = values.into_iter().collect();
        if let [value] = &values[..]
            && !begins_with_a_length(value.as_ref())
        {
            return value.as_ref().to_owned();
        }
        let mut key = String::new();
        for value in &values {
            let value = value.as_ref();
            // Writing to a `String` does not fail.
            let _ = write!(key, "{}:{value}", value.len());
        }
        key
    }

    /// Returns whether a closure over the head finds the key.
    pub(crate) fn is_of_head(&self) -> bool {
        matches!(self.0, Source::Head(_))
    }

    /// Returns whether the key can be found only in the buffered body.
    pub(crate) fn needs_body(&self) -> bool {
        matches!(self.0, Source::Pointers(_) | Source::Body(_))
    }
}

fn begins_with_a_length(value: &str) -> bool {
    value
        .split_once(':')
        .is_some_and(|(length, _)| !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()))
}

fn at_least_one<T>(values: Named<Vec<T>>, otherwise: &'static str) -> Named<Vec<T>> {
    match values {
        Ok(values) if values.is_empty() => Err(ConfigError::new("key", otherwise)),
        values => values,
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Headers(Ok(names)) => write!(f, "KeySource::headers({names:?})"),
            Source::Pointers(Ok(pointers)) => write!(f, "KeySource::json_pointers({pointers:?})"),
            Source::Headers(Err(error)) | Source::Pointers(Err(error)) => write!(f, "KeySource({error})"),
            Source::Head(_) => f.write_str("KeySource::from_head(..)"),
            Source::Body(_) => f.write_str("KeySource::from_fn(..)"),
        }
    }
}
