//! The options: where events go, and what they are signed with.

use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::Scheme;
use clap::Args;

use super::send::{HttpClient, Sender};
use super::sign::Secret;

/// A server that died keeps what it was sending for twice as long.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);

#[derive(Args)]
pub(crate) struct EventOptions {
    /// Where an event for each decision is posted to: an `http://…` URL. Needs `--events-secret`.
    // Text here, and checked in `sender`: clap would quote a wrong value, and with it a password or
    // the secret.
    #[arg(long, env = "IDV_EVENTS_URL", value_name = "URL", hide_env_values = true)]
    events_url: Option<String>,

    /// What events are signed with, as Standard Webhooks do: `whsec_` and 24 to 64 bytes as base64.
    /// Better in the variable: other users of the machine see a command's options.
    #[arg(long, env = "IDV_EVENTS_SECRET", value_name = "SECRET", hide_env_values = true)]
    events_secret: Option<String>,

    /// How long the subscriber has to answer.
    #[arg(long, env = "IDV_EVENTS_TIMEOUT", value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    events_timeout: Duration,
}

impl EventOptions {
    /// What sends events, if they are to be sent. The error shows neither the URL nor the secret.
    pub(crate) fn sender(&self, client: HttpClient) -> Result<Option<Sender>, String> {
        let (url, secret) = match (&self.events_url, &self.events_secret) {
            (None, None) => return Ok(None),
            (Some(url), Some(secret)) => (url, secret),
            // There is no default: whoever knows the secret can forge events.
            (Some(_), None) => {
                return Err("--events-url: needs `--events-secret` (or IDV_EVENTS_SECRET) to sign events with".into());
            }
            (None, Some(_)) => return Err("--events-secret: is of no use without `--events-url`".into()),
        };
        let url = subscriber(url).map_err(|reason| format!("--events-url: {reason}"))?;
        let secret = Secret::parse(secret).map_err(|reason| format!("--events-secret: {reason}"))?;
        if !(Duration::from_millis(1)..=LONGEST_TIMEOUT).contains(&self.events_timeout) {
            return Err(format!("--events-timeout: must be from 1ms to {LONGEST_TIMEOUT:?}"));
        }
        Ok(Some(Sender::new(url, secret, self.events_timeout, client)))
    }
}

fn subscriber(url: &str) -> Result<Uri, &'static str> {
    const EXPECTED: &str = "the URL is not valid; expected `http://HOST:PORT/PATH`";
    let url: Uri = url.parse().map_err(|_| EXPECTED)?;
    if url.scheme() == Some(&Scheme::HTTPS) {
        return Err("this example has no TLS; use an `http://` URL, of a proxy that adds it if need be");
    }
    let authority = url.authority().ok_or(EXPECTED)?;
    if url.scheme() != Some(&Scheme::HTTP) || authority.host().is_empty() {
        return Err(EXPECTED);
    }
    if authority.as_str().contains('@') {
        return Err("leave user and password out of the URL; the signature tells who sends");
    }
    Ok(url)
}
