use std::convert::Infallible;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use snippets::{layer, serve};
use tower::{Layer, service_fn};

fn main() {
    let payments = service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>("paid") });
    serve::<Full<Bytes>>(layer().layer(payments));
}
