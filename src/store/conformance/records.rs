//! Checks that a record is read exactly as it was stored.

use http::StatusCode;

use super::harness::Harness;
use super::probe::Probe;
use crate::request::fingerprint::BodyPrint;
use crate::store::Record;
use crate::store::{ClaimOutcome, Held};

pub(super) async fn a_record_comes_back_byte_for_byte<H: Harness>(slot: Probe<'_, H>) {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let backwards: Vec<u8> = all.iter().rev().copied().collect();
    for body in [
        &b""[..],
        b"\0",
        b"\0\0\0\0",
        b"\n",
        b"'; -- \\x00 \"{}\" %s $1",
        &all,
        &backwards,
    ] {
        let slot = slot.elsewhere();
        keep(&slot, &slot.response(body)).await;
    }
}

pub(super) async fn a_large_record_comes_back_whole<H: Harness>(slot: Probe<'_, H>) {
    // The body cannot be compressed, and no two parts of it are alike.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let body: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(1024 * 1024 / 8)
    .flatten()
    .collect();
    keep(&slot, &slot.response(&body)).await;
}

pub(super) async fn a_tombstone_comes_back<H: Harness>(slot: Probe<'_, H>) {
    keep(&slot, &Record::outcome_unknown(slot.fingerprint)).await;
    let slot = slot.elsewhere();
    keep(
        &slot,
        &Record::response_not_retained(slot.fingerprint, StatusCode::ACCEPTED),
    )
    .await;
}

/// The claim is for a request whose body has not arrived yet. The record contains data about this
/// body.
pub(super) async fn a_record_that_knows_the_body_of_its_request_comes_back<H: Harness>(slot: Probe<'_, H>) {
    for vouched in [&[][..], &[[0; 16]], &[[0xff; 16], [0x0a; 16]]] {
        for is_response in [true, false] {
            let slot = slot.elsewhere();
            let record = match is_response {
                true => slot.response(b"an answer"),
                false => Record::outcome_unknown(slot.fingerprint),
            };
            let body = BodyPrint {
                digest: *slot.fingerprint.as_bytes(),
                vouched: vouched.into(),
            };
            keep(&slot, &record.with_body(&body)).await;
        }
    }
}

async fn keep<H: Harness>(slot: &Probe<'_, H>, record: &Record) {
    let bytes = record.len();
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    slot.complete(
        &format!("with a record of {bytes} bytes"),
        claim.token,
        record,
        slot.long,
        Held::Yes,
    )
    .await;
    for time in ["first", "second"] {
        let step = format!("requesting a record of {bytes} bytes the {time} time");
        slot.begin(&step, &slot.claim(), &ClaimOutcome::Done(record.clone()))
            .await;
    }
    let step = format!("requesting a record of {bytes} bytes with another fingerprint");
    slot.begin(&step, &slot.other_claim(), &ClaimOutcome::Mismatch).await;
}
