//! Claiming a slot with one command, and interpreting the value that the command finds.
//!
//! `SET key claim NX GET PX time` sets the claim if the key does not exist, and otherwise returns
//! the key's value. Valkey and Redis 7.0 or later support this command. On other servers, which
//! reject the command, the store uses the script.

use redis::Cmd;

use super::answer;
use super::scripts::{decimal, millis};
use crate::digest::push_hex;
use crate::request::Fingerprint;
use crate::store::{ClaimOutcome, ClaimRequest, StoreError};

/// Returns the time to live of the claim's key. Zero means that no key is stored.
pub(super) fn time_to_live(begin: &ClaimRequest) -> u64 {
    millis(begin.lease) + millis(begin.ttl)
}

/// Returns the command that claims the slot. If the claim succeeds, the server replies with nil.
pub(super) fn command(key: &[u8], begin: &ClaimRequest) -> Cmd {
    // Every request builds this command, so the command's text is written into a single buffer.
    let mut claim = Vec::with_capacity(128);
    claim.extend_from_slice(b"claim ");
    push_hex(&mut claim, &begin.token.0.to_be_bytes());
    claim.push(b' ');
    push_hex(&mut claim, begin.fingerprint.as_bytes());
    claim.extend_from_slice(b" 1 ");
    claim.extend_from_slice(&decimal(millis(begin.ttl)));
    claim.push(b' ');
    push_hex(&mut claim, begin.scope.as_bytes());
    let mut command = Cmd::with_capacity(7, 256);
    command.arg("SET").arg(key).arg(claim);
    command.arg("NX").arg("GET").arg("PX").arg(time_to_live(begin));
    command
}

/// Returns the claim's outcome for the value that the command found. `None` means that only the
/// script can determine the outcome: it reads a lease's remaining time, and writes a repeated claim
/// again.
pub(super) fn judge(held: &[u8], begin: &ClaimRequest) -> Option<Result<ClaimOutcome, StoreError>> {
    if held.first().is_some_and(|&byte| byte < 32) {
        return Some(answer::done(answer::without_scope(held), begin.fingerprint));
    }
    let claim = Claim::read(held)?;
    // A claim with this token repeats an earlier claim whose reply was lost. The script writes again,
    // so that the store can wait until replicas have the claim.
    if claim.token != begin.token.0 && claim.fingerprint.conflicts_with(&begin.fingerprint) {
        return Some(Ok(ClaimOutcome::Mismatch));
    }
    None
}

struct Claim {
    token: u64,
    fingerprint: Fingerprint,
}

impl Claim {
    /// Parses a claim. Returns `None` if the value is not a claim, or is a claim that the script
    /// must check.
    fn read(held: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(held).ok()?.split(' ');
        let ("claim", token, fingerprint, attempt) = (words.next()?, words.next()?, words.next()?, words.next()?)
        else {
            return None;
        };
        let (_memory, scope, None) = (words.next()?, words.next()?, words.next()) else {
            return None;
        };
        if scope.len() != answer::SCOPE || attempt.parse::<u32>().is_err() {
            return None;
        }
        Some(Self {
            token: (token.len() == 16).then(|| u64::from_str_radix(token, 16).ok())??,
            fingerprint: answer::fingerprint(fingerprint.as_bytes())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripts::hex;
    use super::*;
    use crate::request::Slot;
    use crate::store::{Record, Token};

    /// The fingerprints are from the same rule, so that they can be compared.
    fn begin(token: u64, print: u8) -> ClaimRequest {
        let mut bytes = [print; Fingerprint::LEN];
        bytes[..2].copy_from_slice(&[0, 1]);
        ClaimRequest::new(Slot::from_bytes([0; 32]), Fingerprint::from_bytes(bytes)).with_token(Token(token))
    }

    #[test]
    fn a_found_value_is_judged_without_the_script_unless_the_lease_matters() {
        let first = begin(7, 1);
        let text = format!("claim {:016x} {} 3 1000 {SCOPE}", 7, hex_of(&first));
        let judged = |held: &[u8], begin: &ClaimRequest| judge(held, begin).map(Result::unwrap);
        assert_eq!(judged(text.as_bytes(), &first), None, "it is claimed again");
        assert_eq!(judged(text.as_bytes(), &begin(8, 2)), Some(ClaimOutcome::Mismatch));
        assert_eq!(judged(text.as_bytes(), &begin(8, 1)), None, "the lease matters");
        let record = Record::outcome_unknown(first.fingerprint);
        assert_eq!(
            judged(&stored(&record), &begin(8, 1)),
            Some(ClaimOutcome::Done(record.clone()))
        );
        assert_eq!(judged(&stored(&record), &begin(8, 2)), Some(ClaimOutcome::Mismatch));
        for other in [
            "",
            "somebody else's",
            "claim 7 8 9",
            &format!("{text} 1"),
            &text[..text.len() - 1],
            &text.replace("claim", "ended"),
        ] {
            assert!(judge(other.as_bytes(), &begin(8, 2)).is_none(), "{other:?}");
        }
        assert!(judge(&stored(&record)[..20], &first).unwrap().is_err(), "damaged");
    }

    const SCOPE: &str = "00000000000000000000000000000000";

    fn stored(record: &Record) -> Vec<u8> {
        [&record.to_bytes(), SCOPE.as_bytes()].concat()
    }

    fn hex_of(begin: &ClaimRequest) -> String {
        String::from_utf8(hex(begin.fingerprint.as_bytes())).unwrap()
    }
}
