//! The last responses of a call.

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use super::attempt::AttemptError;

/// What a call last saw of the server.
#[derive(Default)]
pub(super) struct Last {
    /// The last whole response.
    pub(super) response: Option<Response<Full<Bytes>>>,
    /// The head of a later response whose body did not arrive.
    pub(super) head: Option<Response<()>>,
}

impl Last {
    /// Keeps what the result has of a response, and returns its error.
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
