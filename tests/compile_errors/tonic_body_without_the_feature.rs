use snippets::{handle, layer, serve};
use tonic::body::Body;
use tower::{Layer, service_fn};

fn main() {
    serve::<Body>(layer().layer(service_fn(handle::<Body>)));
}
