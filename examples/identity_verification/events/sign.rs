//! Creates signatures as defined by Standard Webhooks: <https://www.standardwebhooks.com>.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The secret that the subscriber and this server share.
#[derive(Clone)]
pub(crate) struct Secret(Hmac<Sha256>);

impl Secret {
    /// Parses a secret from its text form. The error does not show the secret.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "not a Standard Webhooks secret; expected `whsec_` followed by 24 to 64 bytes in base64";
        let base64 = text.strip_prefix("whsec_").ok_or(EXPECTED)?;
        let key = STANDARD.decode(base64).map_err(|_| EXPECTED)?;
        if !(24..=64).contains(&key.len()) {
            return Err(EXPECTED);
        }
        Hmac::new_from_slice(&key).map(Self).map_err(|_| EXPECTED)
    }

    /// Returns the value of `webhook-signature`. The id must not contain a `.`, or one message
    /// could be mistaken for another.
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
