//! A gRPC server that runs each charge once, and a client that retries a charge.
//!
//! `cargo run --example grpc --features tonic`
//!
//! The service and its client are written by hand, so that the example does not need `protoc`. In a
//! real project, `tonic-prost-build` generates this code.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{BoxError, Service, service_fn};
use tower_idempotency::{IdempotencyKey, IdempotencyLayer, MemoryStore};

#[derive(Clone, PartialEq, prost::Message)]
struct ChargeRequest {
    #[prost(uint32, tag = "1")]
    cents: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Charge {
    #[prost(uint32, tag = "1")]
    number: u32,
}

#[derive(Clone, Default)]
struct Payments {
    charges: Arc<AtomicU32>,
}

impl Payments {
    async fn charge(&self, request: Request<ChargeRequest>) -> Result<Response<Charge>, Status> {
        // The layer adds the key, so that this service can derive keys for the services that it
        // calls.
        if let Some(key) = request.extensions().get::<IdempotencyKey>() {
            let provider_key = key.derive("charge");
            println!("charging {} cents under {provider_key}", request.get_ref().cents);
        }
        let number = self.charges.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Response::new(Charge { number }))
    }
}

impl tonic::server::NamedService for Payments {
    const NAME: &'static str = "payments.Payments";
}

impl Service<http::Request<Body>> for Payments {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let payments = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Charge, ChargeRequest>::default());
            let charge = service_fn(|request| payments.charge(request));
            Ok(grpc.unary(charge, request).await)
        })
    }
}

async fn charge(channel: &Channel, key: &'static str, cents: u32) -> Result<Response<Charge>, Status> {
    let mut request = Request::new(ChargeRequest { cents });
    request
        .metadata_mut()
        .insert("idempotency-key", key.parse().expect("ASCII"));
    let mut client = tonic::client::Grpc::new(channel.clone());
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let method = PathAndQuery::from_static("/payments.Payments/Charge");
    client.unary(request, method, ProstCodec::default()).await
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let idempotency = IdempotencyLayer::builder(MemoryStore::new()).grpc().build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut server = Server::builder().layer(idempotency);
    tokio::spawn(
        server
            .add_service(Payments::default())
            .serve_with_incoming(TcpIncoming::from(listener)),
    );

    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
    let key = "8e03978e-40d5-43dd-bc93-6894a57f9324";
    for attempt in ["first", "retry"] {
        let response = charge(&channel, key, 1000).await?;
        let replayed = response.metadata().contains_key("idempotency-replayed");
        println!("{attempt}: charge {}, replayed: {replayed}", response.get_ref().number);
    }
    // A new operation needs a new key.
    match charge(&channel, key, 2000).await {
        Ok(_) => Err("a reused key was accepted".into()),
        Err(refused) => {
            println!("other amount: {:?}, {}", refused.code(), refused.message());
            Ok(())
        }
    }
}
