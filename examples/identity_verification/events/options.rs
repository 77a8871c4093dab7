//! The options for sending events: the subscriber's URL, and the secret for signatures.

use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::Scheme;
use clap::Args;

use super::send::{HttpClient, Sender};
use super::sign::Secret;

/// The longest timeout that is allowed. If a server dies, the events that it was sending stay
/// claimed for twice the timeout.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);

#[derive(Args)]
pub(crate) struct EventOptions {
    /// The `http://…` URL to which an event for each decision is posted. Needs `--events-secret`.
    // This is a string that `sender` checks later. If clap checked it, an error would quote the
    // value, including a password or the secret.
    #[arg(long, env = "IDV_EVENTS_URL", value_name = "URL", hide_env_values = true)]
    events_url: Option<String>,

    /// The secret for signing events, as defined by Standard Webhooks: `whsec_` followed by 24 to
    /// 64 bytes in base64. Set the environment variable instead if you can, because other users of
    /// the machine can see a command's options.
    #[arg(long, env = "IDV_EVENTS_SECRET", value_name = "SECRET", hide_env_values = true)]
    events_secret: Option<String>,

    /// How long the subscriber may take to respond.
    #[arg(long, env = "IDV_EVENTS_TIMEOUT", value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    events_timeout: Duration,
}

impl EventOptions {
    /// Returns the sender of events, or `None` if no events are to be sent. The error shows neither
    /// the URL nor the secret.
    pub(crate) fn sender(&self, client: HttpClient) -> Result<Option<Sender>, String> {
        let (url, secret) = match (&self.events_url, &self.events_secret) {
            (None, None) => return Ok(None),
            (Some(url), Some(secret)) => (url, secret),
            // There is no default, because anyone who knows the secret can forge events.
            (Some(_), None) => {
                return Err("--events-url: needs `--events-secret` (or IDV_EVENTS_SECRET) to sign events".into());
            }
            (None, Some(_)) => return Err("--events-secret: has no effect without `--events-url`".into()),
        };
        let url = subscriber(url).map_err(|reason| format!("--events-url: {reason}"))?;
        let secret = Secret::parse(secret).map_err(|reason| format!("--events-secret: {reason}"))?;
        if !(Duration::from_millis(1)..=LONGEST_TIMEOUT).contains(&self.events_timeout) {
            return Err(format!("--events-timeout: must be between 1ms and {LONGEST_TIMEOUT:?}"));
        }
        Ok(Some(Sender::new(url, secret, self.events_timeout, client)))
    }
}

fn subscriber(url: &str) -> Result<Uri, &'static str> {
    const EXPECTED: &str = "the URL is not valid; expected `http://HOST:PORT/PATH`";
    let url: Uri = url.parse().map_err(|_| EXPECTED)?;
    if url.scheme() == Some(&Scheme::HTTPS) {
        return Err("this example does not support TLS; use an `http://` URL, such as that of a proxy that adds TLS");
    }
    let authority = url.authority().ok_or(EXPECTED)?;
    if url.scheme() != Some(&Scheme::HTTP) || authority.host().is_empty() {
        return Err(EXPECTED);
    }
    if authority.as_str().contains('@') {
        return Err("remove the user and password from the URL; the signature identifies the sender");
    }
    Ok(url)
}
