//! A TCP proxy that harms its traffic, as a network does.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::process::free_port;

/// A port of 127.0.0.1 that leads to another port, where a server listens.
///
/// It knows no protocol. A *request* is everything that a client sends on one connection between
/// two answers, in any number of pieces, whether it is one command or a pipeline. The server's
/// first bytes after it are its answer. The start of a connection (a handshake, a password)
/// consists of requests as well, and so does its end.
///
/// Its tasks belong to the runtime it was started on, and end when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    /// Whether the port is open. This follows the requested state.
    open: watch::Receiver<bool>,
    _tasks: Arc<Tasks>,
}

/// The traffic since the proxy started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Requests begun. Because a client waits for the answer before the next request, these are
    /// also the round trips.
    pub requests: u64,
    /// Pieces forwarded to the server.
    pub chunks_up: u64,
    /// Pieces forwarded to clients.
    pub chunks_down: u64,
    /// Bytes forwarded to the server.
    pub bytes_up: u64,
    /// Bytes forwarded to clients.
    pub bytes_down: u64,
    /// Requests that were hit by [`Proxy::cut_after_requests`] or [`Proxy::cut_before_request`].
    pub cuts: u64,
}

impl Proxy {
    /// Opens a port that leads to the given port.
    pub async fn start(upstream: u16) -> Self {
        let (port, listener) = loop {
            let port = free_port();
            if let Ok(listener) = listen(port) {
                break (port, listener);
            }
        };
        let shared = Arc::new(Shared {
            upstream: AtomicU16::new(upstream),
            state: Mutex::default(),
            faults: watch::Sender::default(),
            open: watch::Sender::default(),
        });
        let (opened, open) = watch::channel(true);
        let accepting = tokio::spawn(accept(port, listener, shared.clone(), opened));
        Self {
            shared,
            port,
            open,
            _tasks: Arc::new(Tasks(accepting)),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// Requests so far, on all connections.
    pub fn round_trips(&self) -> u64 {
        self.counts().requests
    }

    /// Lets the `n`th request from now, on any connection, reach the server completely, and cuts
    /// its connection instead of forwarding the answer: the request is heard, but the answer is
    /// lost. This happens once. 1 is the next request.
    ///
    /// The cut comes when the server answers, so by then the server has done its work.
    pub fn cut_after_requests(&self, n: u64) {
        let mut state = self.shared.state();
        state.cut_after = Some(state.counts.requests + n);
    }

    /// Cuts the connection of the `n`th request from now, on any connection, before any of the
    /// request reaches the server: it is never heard. This happens once. 1 is the next request.
    pub fn cut_before_request(&self, n: u64) {
        let mut state = self.shared.state();
        state.cut_before = Some(state.counts.requests + n);
    }

    /// Whether a request was hit by [`Proxy::cut_after_requests`], but its connection is still open
    /// because the server has not answered.
    pub fn cut_is_due(&self) -> bool {
        self.shared.state().doomed > 0
    }

    /// Lets the `n`th request from now reach the server, and becomes a black hole before the
    /// answer. This happens once. 1 is the next request, which must fit into one piece.
    pub fn black_hole_after_requests(&self, n: u64) {
        let mut state = self.shared.state();
        state.black_hole_after = Some(state.counts.requests + n);
    }

    /// From now on, or no longer, accepts connections and data, but lets nothing through. Data that
    /// was held back goes through afterwards.
    pub fn black_hole(&self, on: bool) {
        self.shared.faults.send_modify(|faults| faults.black_hole = on);
    }

    /// Makes connections that are accepted from now on lead to another port, like a name that now
    /// points elsewhere. Existing connections remain.
    pub fn lead_to(&self, upstream: u16) {
        self.shared.upstream.store(upstream, Ordering::SeqCst);
    }

    /// Lets nothing through any more on existing connections, and keeps them open. New connections
    /// work normally.
    pub fn mute_all(&self) {
        self.shared.faults.send_modify(|faults| faults.muted += 1);
    }

    /// Delays each piece by this time, in both directions. A round trip takes twice as long.
    pub fn delay(&self, delay: Duration) {
        self.shared.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Cuts all existing connections, and returns when none is left.
    pub async fn cut_all(&self) {
        let mut now = 0;
        self.shared.faults.send_modify(|faults| {
            faults.cut_all += 1;
            now = faults.cut_all;
        });
        let mut open = self.shared.open.subscribe();
        let cut = open.wait_for(|open| open.range(..now).next().is_none()).await;
        cut.expect("the sender is in this very value");
    }

    /// From now on, or no longer, refuses connections, like a machine on which no server runs.
    /// Existing connections remain.
    pub async fn refuse(&self, on: bool) {
        self.shared.faults.send_modify(|faults| faults.refuse = on);
        self.open.clone().wait_for(|open| *open != on).await.unwrap();
    }

    /// Ends all faults, and forgets the faults that are still to come.
    pub async fn heal(&self) {
        {
            let mut state = self.shared.state();
            state.cut_after = None;
            state.cut_before = None;
            state.black_hole_after = None;
        }
        self.black_hole(false);
        self.delay(Duration::ZERO);
        self.refuse(false).await;
    }
}

#[derive(Debug)]
struct Tasks(JoinHandle<()>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Shared {
    upstream: AtomicU16,
    state: Mutex<State>,
    faults: watch::Sender<Faults>,
    /// How many connections are open, by how many times all connections had been cut when they were
    /// accepted.
    open: watch::Sender<BTreeMap<u64, u32>>,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    /// The number of the request whose answer must not arrive.
    cut_after: Option<u64>,
    /// The number of the request that must not arrive.
    cut_before: Option<u64>,
    /// The number of the request after which nothing goes through.
    black_hole_after: Option<u64>,
    /// Connections that end when the server answers.
    doomed: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    black_hole: bool,
    delay: Duration,
    refuse: bool,
    /// How many times all connections were cut.
    cut_all: u64,
    /// How many times all connections were muted.
    muted: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while nothing can pass on a connection that was accepted after this many mutes.
    async fn gate(&self, muted_before: u64) {
        let mut faults = self.faults.subscribe();
        let delay = faults.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let passes = faults
            .wait_for(|faults| !faults.black_hole && faults.muted <= muted_before)
            .await;
        passes.expect("the sender is in this very value");
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    reserve(port)?.listen(1024)
}

/// Takes the port, so that connections to it are refused.
fn reserve(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}

async fn accept(port: u16, listener: TcpListener, shared: Arc<Shared>, open: watch::Sender<bool>) {
    let mut faults = shared.faults.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = listener;
    loop {
        tokio::select! {
            biased;
            () = async { let _ = faults.wait_for(|faults| faults.refuse).await; } => {
                drop(listener);
                let reserved = reserve(port).unwrap();
                open.send_replace(false);
                let _ = faults.wait_for(|faults| !faults.refuse).await;
                listener = reserved.listen(1024).unwrap();
                open.send_replace(true);
            }
            accepted = listener.accept() => {
                // The client may have given up.
                let Ok((client, _)) = accepted else { continue };
                let Faults { cut_all: cut_before, muted, .. } = *shared.faults.borrow();
                shared.state().counts.connections += 1;
                let open = Open::new(shared.clone(), cut_before);
                connections.spawn(async move { serve(client, &open.shared, cut_before, muted).await });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A connection, which is open as long as this value lives.
struct Open {
    shared: Arc<Shared>,
    cut_before: u64,
}

impl Open {
    fn new(shared: Arc<Shared>, cut_before: u64) -> Self {
        shared
            .open
            .send_modify(|open| *open.entry(cut_before).or_default() += 1);
        Self { shared, cut_before }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.open.send_modify(|open| {
            let count = open.entry(self.cut_before).or_default();
            *count -= 1;
            if *count == 0 {
                open.remove(&self.cut_before);
            }
        });
    }
}

/// Runs one connection to its end.
///
/// The connection is cut once all connections have been cut more often than before it was accepted.
async fn serve(mut client: TcpStream, shared: &Shared, cut_before: u64, muted: u64) {
    let mut faults = shared.faults.subscribe();
    let cut_all = async move {
        let _ = faults.wait_for(|faults| faults.cut_all > cut_before).await;
    };
    tokio::pin!(cut_all);
    let connected = tokio::select! {
        () = &mut cut_all => None,
        server = async {
            shared.gate(muted).await;
            TcpStream::connect((Ipv4Addr::LOCALHOST, shared.upstream.load(Ordering::SeqCst))).await.ok()
        } => server,
    };
    let Some(mut server) = connected else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let turn = Mutex::new(Turn::default());
    let (client_reads, client_writes) = client.split();
    let (server_reads, server_writes) = server.split();
    let ended = tokio::select! {
        () = &mut cut_all => Err(Broken),
        ended = async {
            tokio::try_join!(
                up(client_reads, server_writes, shared, &turn, muted),
                down(server_reads, client_writes, shared, &turn, muted),
            )
        } => ended.map(drop),
    };
    if turn.into_inner().unwrap_or_else(PoisonError::into_inner).doomed {
        // Before the client can notice. The connection may have broken in an unplanned way.
        let mut state = shared.state();
        state.doomed -= 1;
        state.counts.cuts += 1;
    }
    if ended.is_err() {
        // Both sides see a reset, not an orderly end.
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

/// Whose turn it is on a connection.
#[derive(Debug, Default)]
struct Turn {
    /// The client sent last.
    client: bool,
    /// The answer to this request must not arrive.
    doomed: bool,
}

/// The connection was cut, or broke on its own.
struct Broken;

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self
    }
}

const CHUNK: usize = 16 * 1024;

/// Forwards from the client to the server.
async fn up(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
    turn: &Mutex<Turn>,
    muted: u64,
) -> Result<(), Broken> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        shared.gate(muted).await;
        if length == 0 {
            return Ok(to.shutdown().await?);
        }
        {
            let mut turn = turn.lock().unwrap();
            let mut state = shared.state();
            if !turn.client {
                turn.client = true;
                state.counts.requests += 1;
                let request = Some(state.counts.requests);
                if state.cut_before == request {
                    state.cut_before = None;
                    state.counts.cuts += 1;
                    return Err(Broken);
                }
                if state.cut_after == request {
                    state.cut_after = None;
                    state.doomed += 1;
                    turn.doomed = true;
                }
                if state.black_hole_after == request {
                    state.black_hole_after = None;
                    shared.faults.send_modify(|faults| faults.black_hole = true);
                }
            }
            state.counts.chunks_up += 1;
            state.counts.bytes_up += length as u64;
        }
        to.write_all(&chunk[..length]).await?;
    }
}

/// Forwards from the server to the client.
async fn down(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
    turn: &Mutex<Turn>,
    muted: u64,
) -> Result<(), Broken> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        shared.gate(muted).await;
        {
            let mut turn = turn.lock().unwrap();
            turn.client = false;
            let mut state = shared.state();
            if turn.doomed {
                return Err(Broken);
            }
            if length > 0 {
                state.counts.chunks_down += 1;
                state.counts.bytes_down += length as u64;
            }
        }
        if length == 0 {
            return Ok(to.shutdown().await?);
        }
        to.write_all(&chunk[..length]).await?;
    }
}
