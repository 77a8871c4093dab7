//! Where a request carries its key.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderName;
use http::request::Parts;

use super::text::InvalidKey;
use crate::error::ConfigError;
use crate::request::header_name;
use crate::request::json::Pointer;

/// The header of the draft, and the default.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(super) type HeadFn = dyn Fn(&Parts) -> Result<Option<String>, InvalidKey> + Send + Sync;
pub(super) type BodyFn = dyn Fn(&Parts, &Bytes) -> Result<Option<String>, InvalidKey> + Send + Sync;

/// Where a request carries its key. The default is the header `Idempotency-Key`.
///
/// Every key has 1 to [`max_key_length`](crate::IdempotencyLayerBuilder::max_key_length) bytes of
/// visible ASCII and spaces, wherever it comes from. Values that only a bug in a client can send
/// are refused: `undefined`, `null`, `None`, `nil`, `NaN`, `[object Object]`, an unfilled template
/// (`{{key}}`, `${key}`), the nil UUID and the max UUID. A key that breaks a rule is `400` problem
/// `invalid-key`.
///
/// | the key is in | source | is the body read for it? |
/// |---|---|---|
/// | a header | [`header`](Self::header), or the first of [`headers`](Self::headers) | no |
/// | the head: path, query, several headers | [`from_head`](Self::from_head) | no |
/// | a JSON body | [`json_pointer`](Self::json_pointer), or [`json_pointers`](Self::json_pointers) joined | yes |
/// | anything else in the body | [`from_fn`](Self::from_fn) | yes |
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

/// The result of parsing it. An error is reported when the layer is built.
pub(super) type Named<T> = Result<T, ConfigError>;

impl Default for KeySource {
    fn default() -> Self {
        Self(Source::Headers(Ok(vec![IDEMPOTENCY_KEY])))
    }
}

impl KeySource {
    /// The header of that name.
    ///
    /// A name that is not a header name (RFC 9110, section 5.1) is an error when the layer is
    /// built.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self::headers([name])
    }

    /// The first of these headers that the request has.
    ///
    /// A header that is present and invalid is `400` problem `invalid-key`; the next one is not
    /// tried. No name, or one that is not a header name, is an error when the layer is built.
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

    /// The header `webhook-id` of [Standard Webhooks](https://www.standardwebhooks.com): the
    /// event's id, the same at each delivery. Short for `header("webhook-id")`; see
    /// [`webhooks`](crate::IdempotencyLayerBuilder::webhooks).
    #[must_use]
    pub fn webhook_id() -> Self {
        Self::header("webhook-id")
    }

    /// The key that the closure finds in the request's head. The body is not read. `None` is a missing key.
    ///
    /// The text of the error is the `detail` of the `400` problem `invalid-key`. A panic of the
    /// closure goes on to the outer layers before anything is claimed.
    ///
    /// ```
    /// use tower_idempotency::{InvalidKey, KeySource};
    ///
    /// // GitHub's webhooks: the delivery's id at this path.
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

    /// The string at a JSON pointer (RFC 6901) into the body, or the digits of an integer there.
    ///
    /// Every request of a guarded method is buffered to look for the key, up to
    /// [`max_request_body`](crate::IdempotencyLayerBuilder::max_request_body). An empty body, or
    /// nothing at the pointer, is a missing key. A body that cannot be read is `400` problem
    /// `invalid-key`: it is not JSON, has a `Content-Encoding`, or has a member on the way more
    /// than once. A text that is not a JSON pointer is an error when the layer is built.
    #[must_use]
    pub fn json_pointer(pointer: &str) -> Self {
        Self::json_pointers([pointer])
    }

    /// The values at several JSON pointers, joined. For example an event's code *and* its reference.
    ///
    /// Each value obeys the rules of [`json_pointer`](Self::json_pointer). All must be there,
    /// otherwise the key is missing. The key is what [`join`](Self::join) makes of the values, in
    /// the order of the pointers. No pointer at all is an error when the layer is built.
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

    /// The key that the closure finds in the head and the buffered body. `None` is a missing key.
    ///
    /// Every request of a guarded method is buffered for it, up to
    /// [`max_request_body`](crate::IdempotencyLayerBuilder::max_request_body);
    /// [`from_head`](Self::from_head) buffers nothing. The text of the error is the `detail` of the
    /// `400` problem `invalid-key`. A panic of the closure goes on to the outer layers before
    /// anything is claimed.
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

    /// Joins several values into one key, each with its length before it. A single value stays as it is.
    ///
    /// No two different lists give the same key. [`json_pointers`](Self::json_pointers) joins in
    /// this way; use it in your own closures and with
    /// [`IdempotencyLayer::slot`](crate::IdempotencyLayer::slot).
    ///
    /// ```
    /// use tower_idempotency::KeySource;
    ///
    /// assert_eq!(KeySource::join(["CAPTURE", "ref-1"]), "7:CAPTURE5:ref-1");
    /// assert_eq!(KeySource::join(["evt_1"]), "evt_1");
    /// ```
    #[must_use]
    pub fn join<I>(values: I) -> String
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let values: Vec<_> = values.into_iter().collect();
        if let [value] = &values[..] {
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

    /// Whether a closure over the head finds the key.
    pub(crate) fn is_of_head(&self) -> bool {
        matches!(self.0, Source::Head(_))
    }

    /// Whether the key can be told only from the buffered body.
    pub(crate) fn needs_body(&self) -> bool {
        matches!(self.0, Source::Pointers(_) | Source::Body(_))
    }
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
