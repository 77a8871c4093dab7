//! Bodies: the request body for the handler, the response body for the client, and the code that
//! reads them.

mod collect;
mod drain;
mod length_limit;
mod request;
mod response;
mod stream;
mod streamed;
mod tee;
mod unread;

pub(crate) use collect::{Collect, Collected};
pub(crate) use drain::{drain, expects_continue, let_go};
pub(crate) use length_limit::is_length_limit;
pub use request::RequestBody;
pub use response::ResponseBody;
pub(crate) use stream::StreamEnd;
pub use streamed::StreamedBody;
pub(crate) use tee::{BodyEnd, Ended, Tee, Witness};
pub(crate) use unread::{Unread, declares_more_than};
