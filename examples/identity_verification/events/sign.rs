//! Signatures as Standard Webhooks defines them: <https://www.standardwebhooks.com>.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The secret that the subscriber and this server share.
#[derive(Clone)]
pub(crate) struct Secret(Hmac<Sha256>);

impl Secret {
    /// From its text form. The error does not show it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "not a Standard Webhooks secret, which is `whsec_` and 24 to 64 bytes as base64";
        let base64 = text.strip_prefix("whsec_").ok_or(EXPECTED)?;
        let key = STANDARD.decode(base64).map_err(|_| EXPECTED)?;
        if !(24..=64).contains(&key.len()) {
            return Err(EXPECTED);
        }
        Hmac::new_from_slice(&key).map(Self).map_err(|_| EXPECTED)
    }

    /// The value of `webhook-signature`. The id must have no `.`, or one message could be taken for
    /// another.
    pub(crate) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut mac = self.0.clone();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
