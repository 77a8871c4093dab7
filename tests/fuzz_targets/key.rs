//! The header's key, through one request: valid if and only if the contract's section 2 says so (for
//! quoted keys: the `sfv` crate and a parser by hand), and every spelling of a key names one slot.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::{ClaimOutcome, ClaimRequest, Held, Record, Slot, Store, StoreError, Token};
use tower_idempotency::{IdempotencyKey, IdempotencyLayer, KeyFormat, Outcome, ProblemKind};

use super::input::{Input, at_once};

/// Grants every claim, so that every valid key reaches the handler.
struct Grants;

impl Store for Grants {
    const IN_PROCESS: bool = true;

    async fn begin(&self, _: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        Ok(ClaimOutcome::started(1))
    }

    async fn renew(&self, _: &Slot, _: Token, _: Duration) -> Result<Held, StoreError> {
        Ok(Held::Yes)
    }

    async fn complete(&self, _: &Slot, _: Token, _: &Record, _: Duration) -> Result<Held, StoreError> {
        Ok(Held::Yes)
    }

    async fn release(&self, _: &Slot, _: Token) -> Result<Held, StoreError> {
        Ok(Held::Yes)
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let format = input.one_of(&[KeyFormat::Any, KeyFormat::Structured, KeyFormat::Uuid]);
    let longest = input.one_of(&[255, 36, 1, 8]);
    let twice = input.byte() == 1;
    // What is none never comes in from the network.
    let Ok(line) = HeaderValue::from_bytes(input.rest()) else {
        return;
    };
    let layer = IdempotencyLayer::builder(Grants)
        .key_format(format)
        .max_key_length(longest)
        .build()
        .expect("valid options");
    let expected = match twice {
        true => None,
        false => key_of(format, longest, line.as_bytes()),
    };
    let lines = vec![line.clone(); usize::from(twice) + 1];
    let found = send(&layer, &lines);
    assert_eq!(found.as_ref().map(IdempotencyKey::as_str), expected.as_deref());
    let Some(found) = found else { return };
    let sent = line.to_str().expect("a valid key is visible");
    assert_eq!(layer.slot(None, sent).as_ref(), Ok(found.slot()));
    if !found.as_str().starts_with('"') {
        assert_eq!(layer.slot(None, found.as_str()).as_ref(), Ok(found.slot()));
    }
    for spelling in spellings(format, found.as_str()) {
        let same = send(&layer, &[spelling]).expect("another spelling of a valid key is valid");
        assert_eq!(same, found);
    }
}

/// The key that the handler was told; `None` if the request was refused for its key.
fn send(layer: &IdempotencyLayer<Grants>, lines: &[HeaderValue]) -> Option<IdempotencyKey> {
    let service = layer.layer(service_fn(|request: Request<Full<Bytes>>| {
        let mut response = Response::new(Full::<Bytes>::default());
        let key = request.extensions().get::<IdempotencyKey>().expect("a guarded request");
        response.extensions_mut().insert(key.clone());
        ready(Ok::<_, Infallible>(response))
    }));
    let mut request = Request::post("/").body(Full::default()).expect("a valid request");
    for line in lines {
        request.headers_mut().append("idempotency-key", line.clone());
    }
    let (head, body) = at_once(service.oneshot(request)).expect("it never fails").into_parts();
    let outcome = head.extensions.get::<Outcome>().expect("a guarded request");
    let key = head.extensions.get::<IdempotencyKey>().cloned();
    match key {
        Some(_) => assert_eq!((*outcome, head.status.as_u16()), (Outcome::Executed, 200)),
        None => {
            assert_eq!(*outcome, Outcome::Refused(ProblemKind::InvalidKey));
            assert_eq!(head.status, 400);
            let body = at_once(body.collect()).expect("a whole body").to_bytes();
            let problem: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(problem["code"], "invalid-key");
            assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        }
    }
    key
}

/// The key by the contract.
fn key_of(format: KeyFormat, longest: usize, line: &[u8]) -> Option<String> {
    let key = if line.first() == Some(&b'"') {
        quoted(line)?
    } else if format == KeyFormat::Structured {
        return None;
    } else {
        let allowed = |byte: &u8| (0x21..=0x7e).contains(byte) && *byte != b'"' && *byte != b',';
        String::from_utf8(line.iter().all(allowed).then(|| line.to_vec())?).ok()?
    };
    if key.is_empty() || key.len() > longest || is_placeholder(&key) {
        return None;
    }
    match format {
        KeyFormat::Uuid => is_uuid(&key).then(|| key.to_ascii_lowercase()),
        _ => Some(key),
    }
}

fn quoted(line: &[u8]) -> Option<String> {
    let parsed = sfv::Parser::new(line).parse::<sfv::Item>();
    let parsed = parsed.ok().and_then(|item| match item.bare_item {
        sfv::BareItem::String(text) => Some(String::from(text)),
        _ => None,
    });
    match (&parsed, unquoted(line)) {
        (Some(parsed), by_hand) => {
            let (by_hand, _) = by_hand.expect("a String to the one is one to the other");
            assert_eq!(*parsed, by_hand);
        }
        // Then the parameters are at fault.
        (None, by_hand) => assert!(by_hand.is_none_or(|(_, rest)| rest.iter().any(|byte| *byte != b' '))),
    }
    parsed
}

/// The string at the front (RFC 9651, section 4.2.5), and what follows it.
fn unquoted(line: &[u8]) -> Option<(String, &[u8])> {
    let mut text = String::new();
    let mut bytes = line.strip_prefix(b"\"")?.iter();
    loop {
        match bytes.next()? {
            b'"' => return Some((text, bytes.as_slice())),
            b'\\' => match bytes.next()? {
                escaped @ (b'"' | b'\\') => text.push(char::from(*escaped)),
                _ => return None,
            },
            plain @ 0x20..=0x7e => text.push(char::from(*plain)),
            _ => return None,
        }
    }
}

/// What only a bug in a client can send.
fn is_placeholder(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let uuid = key.strip_prefix("urn:uuid:").unwrap_or(&key);
    let bare = uuid
        .strip_prefix('{')
        .and_then(|uuid| uuid.strip_suffix('}'))
        .unwrap_or(uuid);
    let nil_or_max = uuid::Uuid::try_parse(bare).is_ok_and(|uuid| uuid.is_nil() || uuid.is_max());
    let template = key.starts_with("{{") && key.ends_with("}}") && key.len() > 3;
    let shell = key.starts_with("${") && key.ends_with('}');
    nil_or_max || template || shell || ["undefined", "null", "none", "nil", "nan", "[object object]"].contains(&&*key)
}

/// RFC 9562, section 4, of whatever version.
fn is_uuid(key: &str) -> bool {
    key.len() == 36
        && key.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// How else the key can be written.
fn spellings(format: KeyFormat, key: &str) -> Vec<HeaderValue> {
    let escaped = key.replace('\\', "\\\\").replace('"', "\\\"");
    let mut lines = vec![
        format!("\"{escaped}\""),
        format!("\"{escaped}\";v=1;a"),
        format!("\"{escaped}\"  "),
    ];
    if format == KeyFormat::Uuid {
        lines.push(key.to_ascii_uppercase());
    }
    if format != KeyFormat::Structured && !key.contains([' ', '"', ',']) {
        lines.push(key.to_owned());
    }
    let value = |line: String| HeaderValue::try_from(line).expect("visible ASCII");
    lines.into_iter().map(value).collect()
}
