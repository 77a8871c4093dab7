//! Bodies: what the layer hands on to the handler, what it sends to the client, and how it reads them.

mod collect;
mod drain;
mod request;
mod response;
mod stream;
mod unread;

pub(crate) use collect::{Collect, Collected};
pub(crate) use drain::drain;
pub use request::RequestBody;
pub use response::ResponseBody;
pub(crate) use stream::StreamEnd;
pub(crate) use unread::{Unread, declares_more_than};
