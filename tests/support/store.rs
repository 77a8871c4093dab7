//! A scripted store: a `MemoryStore` whose answers can be made to fail, to hang, to come late or to
//! get lost, and which remembers its calls.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tower_idempotency::Store;
use tower_idempotency::store::{
    Census, ClaimOutcome, ClaimRequest, Entry, Held, Inspect, MemoryStore, Record, ScopeTag, Slot, StoreError,
    StoreErrorKind, Token, UnitOfWork,
};

use super::claim::{Claim, print};
use super::wait::{Count, Gate, yields};

/// A call of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Begin,
    Renew,
    Complete,
    Release,
    LookUp,
    Forget,
    Count,
}

/// What happens to a call.
#[derive(Debug, Clone, Default)]
pub(crate) enum Act {
    /// It goes through.
    #[default]
    Pass,
    /// It takes effect after this many polls, and answers after as many more.
    Late(usize),
    /// It stops at the gate, then goes through.
    Stop(Gate),
    /// It takes effect, and its answer stops at the gate.
    StopAfterEffect(Gate),
    /// It takes effect and stops at the gate, and then fails.
    StopAfterEffectAndFail(Gate),
    /// It takes effect, and its answer takes this long.
    SlowAnswer(Duration),
    /// It fails and has no effect.
    Fail,
    /// It fails, has no effect, and says so.
    Refuse,
    /// It takes effect, and fails.
    FailAfterEffect,
    /// It never answers and has no effect.
    Hang,
    /// It takes effect, and never answers.
    HangAfterEffect,
    /// The stored data cannot be decoded, as when a store reads damaged bytes.
    Corrupt,
    /// The claim is gone. Only for calls with a token.
    Lost,
}

/// The store. Clones share everything.
#[derive(Clone, Default)]
pub(crate) struct Scripted {
    memory: MemoryStore,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    once: HashMap<Op, VecDeque<Act>>,
    always: HashMap<Op, Act>,
    calls: HashMap<Op, Count>,
    begins: Vec<ClaimRequest>,
    records: Vec<Record>,
    /// All calls fail, whatever the script says about them.
    down: bool,
    planted: HashMap<Slot, Vec<u8>>,
    works: VecDeque<Box<dyn UnitOfWork>>,
}

impl Scripted {
    /// The next call of this kind acts like this. Several acts are used in turn.
    pub(crate) fn once(&self, op: Op, act: Act) {
        self.script().once.entry(op).or_default().push_back(act);
    }

    /// All calls of this kind without a `once` act like this.
    pub(crate) fn always(&self, op: Op, act: Act) {
        self.script().always.insert(op, act);
    }

    /// Makes all calls fail without an effect from now on, or no longer.
    pub(crate) fn down(&self, down: bool) {
        self.script().down = down;
    }

    /// Makes every claim of the slot find a record with these bytes.
    pub(crate) fn plant(&self, slot: Slot, bytes: Vec<u8>) {
        self.script().planted.insert(slot, bytes);
    }

    /// Removes everything that was planted.
    pub(crate) fn unplant(&self) {
        self.script().planted.clear();
    }

    /// Offers this unit of work to the next claim. Several units are offered in turn.
    pub(crate) fn offer(&self, work: impl UnitOfWork) {
        self.script().works.push_back(Box::new(work));
    }

    /// How many calls of this kind there were.
    pub(crate) fn calls(&self, op: Op) -> usize {
        self.script().calls.entry(op).or_default().get()
    }

    /// Every claim that was requested, in order.
    pub(crate) fn begins(&self) -> Vec<ClaimRequest> {
        self.script().begins.clone()
    }

    /// Every record that was to be stored, in order.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.script().records.clone()
    }

    /// The store behind the script.
    pub(crate) fn memory(&self) -> &MemoryStore {
        &self.memory
    }

    /// Makes the claim of the last `begin`, like a process that dies afterwards.
    pub(crate) async fn claim_and_die(&self) {
        let last = *self.script().begins.last().expect("a request was sent before");
        let begin = last.token(last.token.0 ^ u64::MAX);
        let begun = self.memory.begin(&begin).await.expect("memory does not fail");
        assert!(matches!(begun, ClaimOutcome::Started { .. }), "{begun:?}");
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().expect("no test panics under this lock")
    }

    fn next(&self, op: Op) -> Act {
        let mut script = self.script();
        script.calls.entry(op).or_default().up();
        if script.down {
            return Act::Fail;
        }
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
            Act::StopAfterEffect(gate) => {
                let answer = effect.await;
                gate.pass().await;
                answer
            }
            Act::StopAfterEffectAndFail(gate) => {
                effect.await?;
                gate.pass().await;
                Err(failed())
            }
            Act::SlowAnswer(time) => {
                let answer = effect.await;
                tokio::time::sleep(time).await;
                answer
            }
            Act::Fail => Err(failed()),
            Act::Refuse => Err(failed().without_effect()),
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
    let mut bytes = Record::outcome_unknown(print(3)).to_bytes();
    bytes[7] ^= 1;
    Record::from_bytes(&bytes).expect_err("the checksum finds it")
}

impl Store for Scripted {
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        self.script().begins.push(*begin);
        let planted = self.script().planted.get(&begin.slot).cloned();
        let effect = async {
            match planted {
                Some(bytes) => Record::from_bytes(&bytes).map(ClaimOutcome::Done),
                None => self.memory.begin(begin).await,
            }
        };
        self.act(Op::Begin, None, effect).await
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let effect = self.memory.renew(slot, token, lease);
        self.act(Op::Renew, Some(Held::Lost), effect).await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        self.script().records.push(record.clone());
        let effect = self.memory.complete(slot, token, record, ttl);
        self.act(Op::Complete, Some(Held::Lost), effect).await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        let effect = self.memory.release(slot, token);
        self.act(Op::Release, Some(Held::Lost), effect).await
    }

    async fn changed(&self, slot: &Slot, round: u32) {
        self.memory.changed(slot, round).await;
    }

    fn unit_of_work(&self, _: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        self.script().works.pop_front()
    }
}

impl Inspect for Scripted {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        self.act(Op::LookUp, None, self.memory.look_up(slot)).await
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        self.act(Op::Forget, None, self.memory.forget(slot)).await
    }

    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        self.act(Op::Forget, None, self.memory.forget_scope(scope)).await
    }

    async fn count(&self) -> Result<Census, StoreError> {
        self.act(Op::Count, None, self.memory.count()).await
    }
}

/// Another store, under a type that is neither `Clone` nor `Debug` nor `Default`. It says whether
/// it is in this process, and that can be true or not.
pub(crate) struct Through<S, const IN_PROCESS: bool>(pub(crate) S);

impl<S: Store, const IN_PROCESS: bool> Store for Through<S, IN_PROCESS> {
    const IN_PROCESS: bool = IN_PROCESS;

    fn begin(&self, begin: &ClaimRequest) -> impl Future<Output = Result<ClaimOutcome, StoreError>> + Send {
        self.0.begin(begin)
    }

    fn renew(
        &self,
        slot: &Slot,
        token: Token,
        lease: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.0.renew(slot, token, lease)
    }

    fn complete(
        &self,
        slot: &Slot,
        token: Token,
        record: &Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.0.complete(slot, token, record, ttl)
    }

    fn release(&self, slot: &Slot, token: Token) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.0.release(slot, token)
    }
}
