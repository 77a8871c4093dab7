//! The control: what the other snippets do wrong, done right.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use snippets::{handle, layer, serve};
use tower::buffer::BufferLayer;
use tower::{Layer, ServiceBuilder, service_fn};
use tower_idempotency::RequestBody;

fn main() {
    serve::<Full<Bytes>>(layer().layer(service_fn(handle::<Full<Bytes>>)));
    serve::<axum::body::Body>(layer().layer(service_fn(handle::<axum::body::Body>)));
    serve::<Full<Bytes>>(
        ServiceBuilder::new()
            .layer(layer())
            .layer(BufferLayer::<Request<Full<Bytes>>>::new(1))
            .service(service_fn(handle::<Full<Bytes>>)),
    );
    serve::<Incoming>(
        ServiceBuilder::new()
            .map_request(|request: Request<_>| request.map(RequestBody::live))
            .layer(layer())
            .service(service_fn(handle::<RequestBody<Incoming>>)),
    );
}
