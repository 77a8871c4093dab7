use hyper::body::Incoming;
use snippets::{handle, layer, serve};
use tower::{Layer, service_fn};

fn main() {
    serve::<Incoming>(layer().layer(service_fn(handle::<Incoming>)));
}
