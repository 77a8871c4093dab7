//! A connection that is replaced whenever it breaks, is silent for too long, or leads to the wrong
//! server.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::{RedisError, RedisResult};
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::connecting::{Make, in_series};
use super::doubt::doubt;
use super::live::Live;

/// The additional time that the store waits for a reply if other replies are arriving on the
/// connection.
const WHILE_OTHERS_COME: Duration = Duration::from_secs(2);

/// A request that is sent to a server over one connection.
pub(super) trait Question<C>: Sync {
    type Answer: Send;

    fn put_to(&self, connection: &mut C) -> impl Future<Output = RedisResult<Self::Answer>> + Send;
}

/// The reason why a request received no reply.
pub(super) enum Unanswered {
    /// No attempt to open a connection succeeded.
    NoConnection(RedisError),
    /// The server refused the request, or the connection broke or was silent.
    Asked(RedisError),
}

impl From<Unanswered> for RedisError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::NoConnection(error) | Unanswered::Asked(error) => error,
        }
    }
}

/// The current connection. Calls in flight stay on the connection over which they were sent.
pub(super) struct Link<C> {
    now: RwLock<Now<C>>,
    origin: Option<Arc<Origin<C>>>,
}

/// The source of new connections.
struct Origin<C> {
    make: Make<C>,
    /// How long a connection may be silent after a request.
    silence: Duration,
    /// The number of consecutive connections that could not be opened or that soon failed. The
    /// pause between attempts grows with this number.
    failures: AtomicU32,
}

type Coming<C> = watch::Receiver<Option<RedisResult<Live<C>>>>;

enum Started<C> {
    Live(Live<C>),
    Coming(Coming<C>),
}

enum Now<C> {
    Live(Live<C>),
    /// A task is opening the connection. The task continues even if no call is waiting for the
    /// connection.
    Coming(Coming<C>),
    Away,
}

impl<C: Clone + Send + Sync + 'static> Link<C> {
    /// Creates a link whose connection is never replaced.
    pub(super) fn given(connection: C) -> Self {
        Self {
            now: RwLock::new(Now::Live(Live::new(connection))),
            origin: None,
        }
    }

    /// Creates a link whose connection is opened when it is first needed. The connection is
    /// replaced when it appears unusable, for example after `silence` without a reply to a request.
    pub(super) fn made(make: Make<C>, silence: Duration) -> Self {
        Self {
            now: RwLock::new(Now::Away),
            origin: Some(Arc::new(Origin {
                make,
                silence,
                failures: AtomicU32::new(0),
            })),
        }
    }

    pub(super) fn is_replaced_on_doubt(&self) -> bool {
        self.origin.is_some()
    }

    /// Sends a request to the server once.
    pub(super) async fn put<Q: Question<C>>(&self, question: &Q) -> Result<Q::Answer, Unanswered> {
        let mut live = self.get().await.map_err(Unanswered::NoConnection)?;
        self.put_on(&mut live, question).await.map_err(Unanswered::Asked)
    }

    /// Like [`put`](Self::put), but on a connection that [`get`](Self::get) returned.
    pub(super) async fn put_on<Q: Question<C>>(&self, live: &mut Live<C>, question: &Q) -> RedisResult<Q::Answer> {
        let Some(origin) = &self.origin else {
            return question.put_to(&mut live.connection).await;
        };
        let facts = Arc::clone(&live.facts);
        let asked = facts.asks();
        let silent_at = || facts.heard_since(asked) + origin.silence;
        let late_at = asked + origin.silence + WHILE_OTHERS_COME;
        let answer = {
            let mut answer = pin!(question.put_to(&mut live.connection));
            loop {
                let deadline = silent_at().min(late_at);
                match timeout_at(deadline, answer.as_mut()).await {
                    Ok(answer) => break answer,
                    Err(_) if deadline < late_at && deadline < silent_at() => {}
                    Err(_) => break Err(io::Error::from(io::ErrorKind::TimedOut).into()),
                }
            }
        };
        match answer.as_ref().err().and_then(doubt) {
            Some(_) => self.replace(live),
            None => facts.answers(),
        }
        answer
    }

    /// Returns the current connection, or the connection that is being opened.
    pub(super) async fn get(&self) -> RedisResult<Live<C>> {
        if let Now::Live(live) = &*self.now.read().unwrap_or_else(PoisonError::into_inner)
            && !self.is_mute(live)
        {
            return Ok(live.clone());
        }
        // Boxed because this case is rare. Without the box, every call's future would contain this
        // rarely used future.
        Box::pin(self.wait()).await
    }

    /// Returns whether the connection has been silent for too long. Calls may have been dropped
    /// before they could report the silence.
    fn is_mute(&self, live: &Live<C>) -> bool {
        self.origin
            .as_ref()
            .is_some_and(|origin| live.facts.is_mute_for(origin.silence))
    }

    async fn wait(&self) -> RedisResult<Live<C>> {
        let mut coming = match self.start() {
            Started::Live(live) => return Ok(live),
            Started::Coming(coming) => coming,
        };
        let made = match coming.wait_for(Option::is_some).await {
            Ok(made) => made.clone(),
            // The runtime that was opening the connection has shut down.
            Err(_) => None,
        };
        let made = made.unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::NotConnected).into()));
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*now, Now::Coming(other) if other.same_channel(&coming)) {
            *now = match &made {
                Ok(live) => Now::Live(live.clone()),
                Err(_) => Now::Away,
            };
        }
        made
    }

    /// Returns the connection if it is open. Otherwise, starts to open it, unless another call
    /// already has, and returns the connection that is being opened.
    fn start(&self) -> Started<C> {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        match (&*now, &self.origin) {
            (Now::Live(live), _) if !self.is_mute(live) => Started::Live(live.clone()),
            // If an attempt failed while no call was waiting for it, the failure is outdated, so a
            // new attempt starts.
            (Now::Coming(coming), _) if !failed(coming) => Started::Coming(coming.clone()),
            (_, Some(origin)) => Started::Coming(origin.start(&mut now)),
            // A connection that was passed in is never absent, and the store could not replace it.
            (_, None) => Started::Coming(watch::channel(None).1),
        }
    }

    /// Replaces this connection immediately. If many calls fail at the same time, only one call
    /// replaces the connection.
    fn replace(&self, doubtful: &Live<C>) {
        let Some(origin) = &self.origin else { return };
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(&*now, Now::Live(live) if Arc::ptr_eq(&live.facts, &doubtful.facts)) {
            return;
        }
        if doubtful.facts.age() < origin.silence {
            origin.failures.fetch_add(1, Ordering::Relaxed);
        } else {
            origin.failures.store(0, Ordering::Relaxed);
        }
        origin.start(&mut now);
    }
}

fn failed<C>(coming: &Coming<C>) -> bool {
    // If the channel was closed without a value, its runtime has shut down.
    match &*coming.borrow() {
        Some(made) => made.is_err(),
        None => coming.has_changed().is_err(),
    }
}

impl<C: Clone + Send + Sync + 'static> Origin<C> {
    fn start(self: &Arc<Self>, now: &mut Now<C>) -> Coming<C> {
        let (done, coming) = watch::channel(None);
        let origin = Arc::clone(self);
        tokio::spawn(async move {
            let made = in_series(&origin.make, &origin.failures).await;
            // The waiting calls may have been dropped.
            let _ = done.send(Some(made.map(Live::new)));
        });
        *now = Now::Coming(coming.clone());
        coming
    }
}
