//! Serving connections until the signal to stop, and stopping without losing work.
//!
//! `axum::serve` with graceful shutdown would do, but for two things: it waits for clients that are
//! slow to send or to read, and it does not know of operations whose client has left.

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

/// How long running operations are waited for.
const GRACE: Duration = Duration::from_secs(10);
/// How long clients have to send or read the rest when no operation runs any more.
const LINGER: Duration = Duration::from_secs(5);
/// How long to wait for connections to end when there are too many to accept another.
const TOO_MANY: Duration = Duration::from_millis(100);

/// How the server came to its end.
pub(crate) enum Stopped {
    Cleanly,
    WithWorkAbandoned,
}

/// Serves the application until `signal`, then lets what runs come to its end.
pub(crate) async fn serve(listener: TcpListener, mut app: App, signal: impl Future<Output = ()>) -> Stopped {
    let deliveries = app.deliveries.take().map(Deliveries::start);
    let tidying = tokio::spawn(app.files.clone().keep_tidy(app.data.clone()));
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
                    // Answers are small and must not wait for each other.
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
    tidying.abort();
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

    // First the connections: the idle ones end at once, the others after the answer in progress.
    let in_time = timeout_at(deadline, async {
        tokio::select! {
            () = graceful.shutdown() => {}
            () = quiet(&app.operations) => tracing::info!("closing the connections of slow clients"),
        }
    })
    .await
    .is_ok();
    let abandoned = if in_time { 0 } else { app.operations.len() };
    // Operations that still run for a client, if there are any, now go on without it.
    connections.shutdown().await;

    // Then the work that goes on without its client, within the same deadline.
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

    // Then the events that are being sent. They are in the outbox until they are delivered: to stop
    // in the middle abandons nothing.
    if let Some(deliveries) = deliveries {
        deliveries.end(deadline).await;
    }

    // Last the store: nothing uses it any more, but for what is abandoned.
    drop(app.sweeper);
    app.data.close().await;
    if abandoned == 0 {
        tracing::info!("stopped");
        Stopped::Cleanly
    } else {
        tracing::error!(abandoned, "operations outlasted {GRACE:?} and are abandoned");
        Stopped::WithWorkAbandoned
    }
}

/// Ends when no operation runs and what is left are clients that are slow to send or to read.
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
