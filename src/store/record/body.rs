//! A record's data about its request's body, if the body was streamed. The end of a streamed body
//! can arrive long after the key is claimed, so the claim's fingerprint cannot cover the body.

use smallvec::SmallVec;

use super::headers::corrupt;
use super::{HEAD, Record, SEALED, WITH_BODY};
use crate::request::fingerprint::BodyPrint;
use crate::request::integrity::Vouch;
use crate::store::StoreError;

/// The maximum number of declared digests: one for each digest algorithm that this crate supports.
const MAX_VOUCHES: usize = 2;
const VOUCH: usize = size_of::<Vouch>();

impl Record {
    /// Returns a copy of the record that also contains the data about the request's body.
    #[must_use]
    pub(crate) fn with_body(&self, body: &BodyPrint) -> Self {
        let Some((head, rest)) = self.0.front().split_first_chunk::<HEAD>() else {
            return self.clone();
        };
        if self.knows_body() || head[1] == SEALED {
            return self.clone();
        }
        let vouched = &body.vouched[..body.vouched.len().min(MAX_VOUCHES)];
        let mut out = Vec::with_capacity(self.0.front().len() + section(vouched.len()));
        out.extend_from_slice(head);
        out[1] |= WITH_BODY;
        out.push(vouched.len() as u8);
        out.extend_from_slice(&body.digest);
        vouched.iter().for_each(|vouch| out.extend_from_slice(vouch));
        out.extend_from_slice(rest);
        Self(self.0.with_front(out))
    }

    /// Returns the data about the request's body. `None` means that the body was not streamed, that
    /// no part of the body is fingerprinted, or that the body was not read to its end.
    pub(crate) fn body_print(&self) -> Result<Option<BodyPrint>, StoreError> {
        let section = self.body_section()?;
        let Some((digest, vouched)) = self
            .0
            .front()
            .get(HEAD + 1..HEAD + section)
            .and_then(<[u8]>::split_first_chunk)
        else {
            return Ok(None);
        };
        let vouched: SmallVec<_> = vouched.as_chunks().0.iter().copied().collect();
        Ok(Some(BodyPrint {
            digest: *digest,
            vouched,
        }))
    }

    fn knows_body(&self) -> bool {
        self.0.front().get(1).is_some_and(|kind| kind & WITH_BODY != 0)
    }

    /// Returns the length, in bytes, of the data about the body. This data follows the head.
    pub(super) fn body_section(&self) -> Result<usize, StoreError> {
        if !self.knows_body() {
            return Ok(0);
        }
        match self.0.front().get(HEAD).copied().map(usize::from) {
            Some(vouches) if vouches <= MAX_VOUCHES && self.0.front().len() >= HEAD + section(vouches) => {
                Ok(section(vouches))
            }
            _ => Err(corrupt(
                "the stored record is damaged: its data about the request's body is cut short",
            )),
        }
    }
}

fn section(vouches: usize) -> usize {
    1 + BodyPrint::LEN + vouches * VOUCH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Fingerprint;
    use crate::store::record::Opened;
    use bytes::Bytes;
    use http::{Response, StatusCode};

    const PRINT: Fingerprint = Fingerprint::from_bytes([7; 16]);

    fn body(vouched: &[Vouch]) -> BodyPrint {
        BodyPrint {
            digest: [3; 16],
            vouched: vouched.into(),
        }
    }

    fn kinds() -> [Record; 4] {
        let response = Response::builder().status(201).header("location", "/a");
        let headers = response.headers_ref().unwrap().clone();
        [
            Record::of_response(PRINT, &response.body(Bytes::from("the answer")).unwrap()),
            Record::response_not_retained(PRINT, StatusCode::CREATED),
            Record::response_not_retained_at(PRINT, StatusCode::CREATED, &headers),
            Record::outcome_unknown(PRINT),
        ]
    }

    #[test]
    fn contract_8_3_a_record_of_every_kind_keeps_what_is_known_of_the_body() {
        for record in kinds() {
            for vouched in [&[][..], &[[4; 16]], &[[4; 16], [5; 16]]] {
                let with = record.with_body(&body(vouched));
                let read = Record::from_bytes(&with.to_bytes()).unwrap();
                assert_eq!(read.body_print().unwrap(), Some(body(vouched)));
                assert_eq!(read.fingerprint(), PRINT);
                let (plain, read) = (record.open().unwrap(), read.open().unwrap());
                assert_eq!(format!("{read:?}"), format!("{plain:?}"));
                if let Opened::Response(replay) = read {
                    assert_eq!(replay.body, "the answer");
                    assert_eq!(replay.head.headers()["location"], "/a");
                }
            }
            assert_eq!(record.body_print().unwrap(), None);
        }
    }

    #[test]
    fn a_record_whose_data_about_the_body_is_cut_short_is_corrupt() {
        for record in kinds() {
            let whole = record.with_body(&body(&[[4; 16]]));
            for length in HEAD..HEAD + section(1) {
                let cut = Record(whole.0.front()[..length].into());
                assert!(cut.open().is_err(), "{length}");
                assert!(cut.body_print().is_err(), "{length}");
            }
            let mut many = whole.0.front().to_vec();
            many[HEAD] = 3;
            assert!(Record(many.into()).open().is_err());
        }
    }

    /// Stores contain records from earlier releases, which must stay readable.
    #[test]
    fn golden_record_with_a_body() {
        let record = Record::outcome_unknown(PRINT).with_body(&body(&[[4; 16]]));
        let golden = [&[1, 18, 0, 0][..], &[7; 16], &[1], &[3; 16], &[4; 16]].concat();
        assert_eq!(record.0.front(), golden);
    }
}
