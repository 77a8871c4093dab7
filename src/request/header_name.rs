//! Header names that an application configures.

use http::HeaderName;

use crate::error::ConfigError;

/// Parses a header name that was passed to `option`.
pub(crate) fn parse(option: &'static str, name: &str) -> Result<HeaderName, ConfigError> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        ConfigError::new(
            option,
            format!("{name:?} is not a valid header name (RFC 9110, section 5.1)"),
        )
    })
}
