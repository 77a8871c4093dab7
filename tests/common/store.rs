//! A store by script: a `MemoryStore` whose answers can be made to fail, to hang, to come late or to
//! get lost.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tower_idempotency::store::{Begin, Begun, Held, MemoryStore, Record, Slot, StoreError, StoreErrorKind, Token};
use tower_idempotency::{Fingerprint, Store};

use super::{Count, Gate, yields};

/// A call of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Begin,
    Renew,
    Complete,
    Release,
}

/// What becomes of a call.
#[derive(Debug, Clone, Default)]
pub(crate) enum Act {
    /// It goes through.
    #[default]
    Pass,
    /// It has its effect after so many polls, and answers after as many more.
    Late(usize),
    /// It stops at the gate, then goes through.
    Stop(Gate),
    /// It fails and has no effect.
    Fail,
    /// It has its effect, and fails.
    FailAfterEffect,
    /// It never answers and has no effect.
    Hang,
    /// It has its effect and never answers.
    HangAfterEffect,
    /// What is held cannot be decoded: as a store answers that reads damaged bytes.
    Corrupt,
    /// The claim is gone. For calls under a token.
    Lost,
}

/// The store; clones share everything.
#[derive(Clone, Default)]
pub(crate) struct Scripted {
    inner: MemoryStore,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    once: HashMap<Op, VecDeque<Act>>,
    always: HashMap<Op, Act>,
    calls: HashMap<Op, Count>,
    begins: Vec<Begin>,
    records: Vec<Record>,
}

impl Scripted {
    /// The next call of that kind acts so; several are taken in turn.
    pub(crate) fn once(&self, op: Op, act: Act) {
        self.script().once.entry(op).or_default().push_back(act);
    }

    /// All calls of that kind that no `once` speaks of act so.
    pub(crate) fn always(&self, op: Op, act: Act) {
        self.script().always.insert(op, act);
    }

    /// How many calls of that kind there were.
    pub(crate) fn calls(&self, op: Op) -> usize {
        self.script().calls.entry(op).or_default().get()
    }

    /// Every claim that was asked for, in order.
    pub(crate) fn begins(&self) -> Vec<Begin> {
        self.script().begins.clone()
    }

    /// Every record that was to be kept, in order.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.script().records.clone()
    }

    /// The store behind the script.
    pub(crate) fn memory(&self) -> &MemoryStore {
        &self.inner
    }

    /// Claims what the last `begin` asked for, as a process does that dies thereafter.
    pub(crate) async fn claim_and_die(&self) {
        let last = *self.script().begins.last().expect("a request was sent before");
        let begin = Begin {
            token: Token(last.token.0 ^ u64::MAX),
            ..last
        };
        let begun = self.inner.begin(&begin).await.expect("memory does not fail");
        assert!(matches!(begun, Begun::Started { .. }), "{begun:?}");
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().expect("no test panics under this lock")
    }

    fn next(&self, op: Op) -> Act {
        let mut script = self.script();
        script.calls.entry(op).or_default().up();
        if let Some(act) = script.once.get_mut(&op).and_then(VecDeque::pop_front) {
            return act;
        }
        script.always.get(&op).cloned().unwrap_or_default()
    }

    async fn act<T>(
        &self,
        op: Op,
        lost: Option<T>,
        effect: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match self.next(op) {
            Act::Pass => effect.await,
            Act::Late(polls) => {
                yields(polls).await;
                let answer = effect.await;
                yields(polls).await;
                answer
            }
            Act::Stop(gate) => {
                gate.pass().await;
                effect.await
            }
            Act::Fail => Err(failed()),
            Act::FailAfterEffect => {
                effect.await?;
                Err(failed())
            }
            Act::Hang => pending().await,
            Act::HangAfterEffect => {
                effect.await?;
                pending().await
            }
            Act::Corrupt => Err(damaged()),
            Act::Lost => Ok(lost.expect("only calls under a token can be lost")),
        }
    }
}

fn failed() -> StoreError {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    StoreError::new(StoreErrorKind::Unavailable, "scripted store: as the test wants").with_source(refused)
}

/// The error of a record with one byte changed.
fn damaged() -> StoreError {
    let mut bytes = Record::outcome_unknown(Fingerprint::from_bytes([3; 16])).to_bytes();
    bytes[7] ^= 1;
    Record::from_bytes(&bytes).expect_err("the checksum finds it")
}

impl Store for Scripted {
    async fn begin(&self, begin: &Begin) -> Result<Begun, StoreError> {
        self.script().begins.push(*begin);
        self.act(Op::Begin, None, self.inner.begin(begin)).await
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.act(Op::Renew, Some(Held::Lost), self.inner.renew(slot, token, lease))
            .await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        self.script().records.push(record.clone());
        let effect = self.inner.complete(slot, token, record, ttl);
        self.act(Op::Complete, Some(Held::Lost), effect).await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        self.act(Op::Release, Some(Held::Lost), self.inner.release(slot, token))
            .await
    }

    async fn changed(&self, slot: &Slot, round: u32) {
        self.inner.changed(slot, round).await;
    }
}
