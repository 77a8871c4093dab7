//! The last responses that a call received.

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use super::attempt::AttemptError;

/// The last responses that a call received from the server.
#[derive(Default)]
pub(super) struct Last {
    /// The last complete response.
    pub(super) response: Option<Response<Full<Bytes>>>,
    /// The head of a later response whose body did not arrive.
    pub(super) head: Option<Response<()>>,
}

impl Last {
    /// Keeps the response or response head that the result contains, and returns the result's
    /// error.
    pub(super) fn keep<E>(
        &mut self,
        result: Result<Response<Full<Bytes>>, AttemptError<E>>,
    ) -> Option<AttemptError<E>> {
        match result {
            Ok(response) => {
                self.response = Some(response);
                self.head = None;
                None
            }
            Err(error) => {
                if let AttemptError::Body(head, _) = &error {
                    self.head = Some(head.clone());
                }
                Some(error)
            }
        }
    }
}
