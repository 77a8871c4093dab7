//! Converts the scripts' replies to the store's types.

use std::time::Duration;

use redis::Value;

use super::failure::{Op, corrupt, unexpected};
use crate::request::{Fingerprint, ScopeTag};
use crate::store::Record;
use crate::store::StoreError;
use crate::store::{Census, Entry, Phase};
use crate::store::{ClaimOutcome, Held};

/// The reply from the script that claims a slot.
pub(super) enum Begun {
    Outcome(ClaimOutcome),
    /// The slot has a large record, which must be fetched.
    Large,
}

pub(super) fn begun(answer: &Value, fingerprint: Fingerprint) -> Result<Begun, StoreError> {
    let parts = match answer {
        Value::BulkString(held) => return done(without_scope(held), fingerprint).map(Begun::Outcome),
        Value::Array(parts) => parts.as_slice(),
        _ => return Err(unexpected(Op::Begin)),
    };
    Ok(Begun::Outcome(match parts {
        [Value::Int(1), Value::Int(attempt)] => ClaimOutcome::Started {
            attempt: attempt_of(*attempt),
        },
        [Value::Int(2), Value::Int(left)] => ClaimOutcome::InFlight {
            lease_left: time(*left),
        },
        [Value::Int(3)] => ClaimOutcome::Mismatch,
        [Value::Int(4)] => ClaimOutcome::OutcomeUnknown,
        [Value::Int(5)] => return Ok(Begun::Large),
        _ => return Err(unexpected(Op::Begin)),
    }))
}

/// The number of hexadecimal digits in a scope. In a record that is not large, these digits follow
/// the record's bytes.
pub(super) const SCOPE: usize = 2 * ScopeTag::LEN;

/// Returns the record without its scope.
pub(super) fn without_scope(held: &[u8]) -> &[u8] {
    &held[..held.len().saturating_sub(SCOPE)]
}

/// Returns the outcome for a record. The fingerprints are compared here rather than in the script,
/// because a damaged record must not be treated as a mismatch.
pub(super) fn done(held: &[u8], fingerprint: Fingerprint) -> Result<ClaimOutcome, StoreError> {
    let record = match held.first() {
        Some(..32) => Record::from_bytes(held).map_err(|error| corrupt(Op::Begin).with_source(error))?,
        _ => return Err(corrupt(Op::Begin)),
    };
    Ok(if record.fingerprint().conflicts_with(&fingerprint) {
        ClaimOutcome::Mismatch
    } else {
        ClaimOutcome::Done(record)
    })
}

pub(super) fn held(op: Op, answer: &Value) -> Result<Held, StoreError> {
    match answer {
        Value::Int(1) => Ok(Held::Yes),
        Value::Int(0) => Ok(Held::Lost),
        Value::Int(2) => Err(corrupt(op)),
        _ => Err(unexpected(op)),
    }
}

pub(super) fn entry(answer: &Value) -> Result<Option<Entry>, StoreError> {
    let parts = match answer {
        Value::Nil => return Ok(None),
        Value::Array(parts) => parts.as_slice(),
        _ => return Err(unexpected(Op::LookUp)),
    };
    let (fingerprint, phase, left) = match parts {
        [
            Value::Int(1),
            Value::BulkString(print),
            Value::Int(attempt),
            Value::Int(lease),
            Value::Int(left),
        ] => {
            let fingerprint = fingerprint(print).ok_or_else(|| corrupt(Op::LookUp))?;
            let phase = Phase::Running {
                attempt: attempt_of(*attempt),
                lease_left: time(*lease),
            };
            (fingerprint, phase, left)
        }
        [
            Value::Int(2),
            Value::BulkString(head),
            Value::Int(length),
            Value::Int(left),
        ] => {
            let length = usize::try_from(*length).unwrap_or(0);
            let (fingerprint, bytes) =
                Record::peek(head, length).map_err(|error| corrupt(Op::LookUp).with_source(error))?;
            (fingerprint, Phase::Done { bytes }, left)
        }
        [Value::Int(3)] => return Err(corrupt(Op::LookUp)),
        _ => return Err(unexpected(Op::LookUp)),
    };
    // A negative value means that a different client removed the key's expiry.
    let left = u64::try_from(*left).map_or(Duration::MAX, Duration::from_millis);
    Ok(Some(Entry::new(fingerprint, phase, left)))
}

pub(super) fn census(answer: &Value) -> Result<Census, StoreError> {
    let number = |count: &i64| u64::try_from(*count).unwrap_or(0);
    match answer {
        Value::Array(parts) => match parts.as_slice() {
            [Value::Int(running), Value::Int(lapsed), Value::Int(done)] => {
                Ok(Census::new(number(running), number(lapsed), number(done)))
            }
            _ => Err(unexpected(Op::Count)),
        },
        _ => Err(unexpected(Op::Count)),
    }
}

fn attempt_of(attempt: i64) -> u32 {
    u32::try_from(attempt).unwrap_or(u32::MAX)
}

fn time(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Parses a fingerprint from hexadecimal.
pub(super) fn fingerprint(hex: &[u8]) -> Option<Fingerprint> {
    let hex: &[u8; 2 * Fingerprint::LEN] = hex.try_into().ok()?;
    let mut print = [0; Fingerprint::LEN];
    for (byte, digits) in print.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Fingerprint::from_bytes(print))
}
