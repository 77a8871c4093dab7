use std::rc::Rc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use snippets::{handle, layer, serve};
use tower::{Layer, service_fn};

fn main() {
    let payments = service_fn(|request: Request<Full<Bytes>>| {
        let held = Rc::new(());
        async move {
            let response = handle(request).await;
            drop(held);
            response
        }
    });
    serve::<Full<Bytes>>(layer().layer(payments));
}
