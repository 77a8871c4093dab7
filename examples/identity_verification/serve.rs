//! Serves connections until the signal to stop, and then stops without losing work.
//!
//! `axum::serve` with graceful shutdown is nearly enough. However, it waits for clients that are
//! slow to send or read, and it does not wait for operations whose client has disconnected.

use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::app::App;
use super::drain::Drained;
use super::events::{Deliveries, Running};

/// How long to wait for running operations.
const GRACE: Duration = Duration::from_secs(10);
/// How long clients may take to send or read the rest once no operation is running.
const LINGER: Duration = Duration::from_secs(5);
/// How long to wait for connections to end when there are too many to accept another.
const TOO_MANY: Duration = Duration::from_millis(100);

/// How the server ended.
pub(crate) enum Stopped {
    Cleanly,
    WithWorkAbandoned,
}

/// Serves the application until `signal`, then lets running operations finish.
pub(crate) async fn serve(listener: TcpListener, mut app: App, signal: impl Future<Output = ()>) -> Stopped {
    let deliveries = app.deliveries.take().map(Deliveries::start);
    let http = Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut signal = std::pin::pin!(signal);
    loop {
        tokio::select! {
            () = &mut signal => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Responses are small and must not wait for each other.
                    let _ = stream.set_nodelay(true);
                    let service = TowerToHyperService::new(app.router.clone().map_request(Drained::wrap));
                    let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
                    let connection = graceful.watch(connection);
                    connections.spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(error, "a connection failed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(TOO_MANY).await;
                }
            },
        }
    }
    drop(listener);
    tracing::info!("stopping");
    stop(app, graceful, connections, deliveries).await
}

async fn stop(
    app: App,
    graceful: GracefulShutdown,
    mut connections: JoinSet<()>,
    deliveries: Option<Running>,
) -> Stopped {
    let deadline = Instant::now() + GRACE;
    if let Some(deliveries) = &deliveries {
        deliveries.take_no_more();
    }

    // First, end the connections. Idle connections end at once, and the others after the response
    // in progress.
    let in_time = timeout_at(deadline, async {
        tokio::select! {
            () = graceful.shutdown() => {}
            () = quiet(&app.operations) => tracing::info!("closing the connections of slow clients"),
        }
    })
    .await
    .is_ok();
    let abandoned = if in_time { 0 } else { app.operations.len() };
    // Operations that are still running for a client now continue without it.
    connections.shutdown().await;

    // Then wait for the operations without a client, until the same deadline.
    let ended = timeout_at(deadline, async {
        for layer in &app.background {
            layer.wait().await;
        }
    })
    .await;

    let abandoned = match ended {
        Ok(()) => abandoned,
        Err(_) => abandoned.max(app.background.iter().map(|layer| layer.len()).sum()),
    };

    // Then wait for the events that are being sent. Events stay in the outbox until they are
    // delivered, so stopping in the middle loses nothing.
    if let Some(deliveries) = deliveries {
        deliveries.end(deadline).await;
    }

    // Finally, close the store. Only abandoned operations can still be using it.
    drop(app.sweeper);
    app.data.close().await;
    if abandoned == 0 {
        tracing::info!("stopped");
        Stopped::Cleanly
    } else {
        tracing::error!(abandoned, "operations ran longer than {GRACE:?} and were abandoned");
        Stopped::WithWorkAbandoned
    }
}

/// Completes when no operation is running, and the only clients left are slow to send or read.
async fn quiet(operations: &TaskTracker) {
    operations.close();
    loop {
        operations.wait().await;
        sleep(LINGER).await;
        if operations.is_empty() {
            return;
        }
    }
}
