//! A model of the protocol: processes that claim one slot, run, and settle their claims, a store that runs
//! the crate's own [`Machine`], and all that can happen between them.
//!
//! A process crashes, or is paused for as long as one likes, as every other step can come in between. A
//! question is answered, or its answer is lost, or its asker gives up and it reaches the store later, or
//! never. Questions of several processes reach the store in one batch. Leases lapse. A commit's outcome is
//! unknown.

use std::collections::BTreeSet;
use std::time::Duration;

use stateright::{Model, Property};
use tower_idempotency::Fingerprint;
use tower_idempotency::store::{ClaimOutcome, ClaimRequest, Held, Machine, Millis, OnLapse, Record, Slot, Token};

const PRINT: Fingerprint = Fingerprint::from_bytes([1; Fingerprint::LEN]);
/// A lease lapses in the second tick after its last renewal.
const LEASE: Duration = Duration::from_millis(2);
/// Longer than any history.
const TTL: Duration = Duration::from_millis(1000);

/// How the effect of an operation relates to its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The handler has its effect somewhere else, before the record is stored.
    Apart,
    /// Effect and record are one transaction.
    Atomic,
}

/// What is checked, and how far.
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) mode: Mode,
    pub(crate) on_lapse: OnLapse,
    pub(crate) processes: usize,
    /// Requests of clients, all for the one operation.
    pub(crate) requests: u8,
    /// Crashes, lost answers and abandoned questions together.
    pub(crate) faults: u8,
    pub(crate) ticks: u64,
    /// Whether the store compares tokens. It does; without this the checks must fail.
    pub(crate) is_fenced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    slot: Machine,
    now: u64,
    /// The row's lock, of a transaction that has written its record and is not over.
    locked: Option<u8>,
    /// Whose record is there.
    recorded: Option<u8>,
    processes: Vec<Process>,
    /// Questions whose asker does not wait for the answer any more, and that the store has not seen yet.
    strays: Vec<Question>,
    /// How many times the operation took effect.
    pub(crate) effects: u8,
    /// How many claims were taken over.
    pub(crate) lapses: u8,
    /// Whose results clients were given.
    pub(crate) told: BTreeSet<u8>,
    pub(crate) replays: u8,
    /// Commits whose unknown outcome was found to be a success.
    pub(crate) found: u8,
    requests: u8,
    faults: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Process {
    Idle,
    /// It waits for the answer to a question.
    Asking(Question),
    Running {
        token: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Question {
    asks: Asks,
    token: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Asks {
    Begin,
    /// The same again, in the background, after the answer was lost.
    TakeBack,
    GiveBack {
        attempt: u32,
    },
    Release,
    Complete {
        /// The client has its response already: the store was too slow.
        in_background: bool,
    },
    /// Writes the record in the transaction, which takes the row's lock.
    Write,
    Commit,
    IsDone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A client's request arrives at a process.
    Request(usize),
    /// The store answers the process.
    Answer(usize),
    /// The store acts, and its answer is lost.
    LoseAnswer(usize),
    /// The process gives up before the store has seen the question.
    GiveUp(usize),
    /// All questions reach the store together, and are answered, or no answer comes.
    Batch {
        lost: bool,
    },
    /// A question reaches the store after its asker gave up.
    Stray(usize),
    /// It never does.
    DropStray(usize),
    Succeed(usize),
    Fail(usize),
    Renew(usize),
    Crash(usize),
    Tick,
}

enum Reply {
    Begun(ClaimOutcome),
    Held(bool),
    Done(bool),
}

impl Protocol {
    fn claim(&self, token: u8) -> ClaimRequest {
        ClaimRequest::new(Slot::from_bytes([0; Slot::LEN]), PRINT)
            .with_token(Token(token.into()))
            .with_lease(LEASE)
            .with_ttl(TTL)
            .with_on_lapse(self.on_lapse)
    }

    /// The store's part of a question. `None`: it waits for the row's lock.
    fn act(&self, state: &mut State, question: Question) -> Option<Reply> {
        let Question { asks, token } = question;
        let now = Millis(state.now);
        let name = Token(token.into());
        let is_locked = state.locked.is_some_and(|holder| holder != token);
        Some(match asks {
            Asks::Begin | Asks::TakeBack => {
                // What another transaction has locked is in flight.
                if state.locked.is_some() {
                    return Some(Reply::Begun(ClaimOutcome::in_flight(LEASE)));
                }
                let before = state.slot.clone();
                let begun = state.slot.begin(&self.claim(token), now);
                if before != state.slot && matches!(begun, ClaimOutcome::Started { attempt: 2.., .. }) {
                    state.lapses += 1;
                }
                Reply::Begun(begun)
            }
            Asks::GiveBack { attempt: 2.. } => Reply::Held(state.slot.renew(name, Duration::ZERO, now) == Held::Yes),
            Asks::GiveBack { .. } | Asks::Release => Reply::Held(state.slot.release(name, now) == Held::Yes),
            Asks::Complete { .. } => Reply::Held(state.record(token, self.is_fenced)),
            Asks::Write if is_locked => return None,
            Asks::Write => {
                // A copy of the slot tells whether the token holds the claim.
                let holds = state.slot.clone().release(name, now) == Held::Yes || !self.is_fenced;
                if holds {
                    state.locked = Some(token);
                }
                Reply::Held(holds)
            }
            Asks::Commit => {
                let committed = state.record(token, self.is_fenced);
                state.locked = None;
                state.effects += u8::from(committed);
                Reply::Held(committed)
            }
            Asks::IsDone if state.locked == Some(token) => return None,
            Asks::IsDone => Reply::Done(state.recorded == Some(token)),
        })
    }

    /// The process's part: what it does with an answer.
    fn go_on(&self, state: &mut State, at: usize, Question { asks, token }: Question, reply: Reply) {
        let ask = |asks| Process::Asking(Question { asks, token });
        state.processes[at] = match (asks, reply) {
            (Asks::Begin, Reply::Begun(ClaimOutcome::Started { .. })) => Process::Running { token },
            (Asks::TakeBack, Reply::Begun(ClaimOutcome::Started { attempt, .. })) => ask(Asks::GiveBack { attempt }),
            (Asks::Begin, Reply::Begun(ClaimOutcome::Done(_))) => {
                state.replays += 1;
                state.told.extend(state.recorded);
                Process::Idle
            }
            (Asks::Complete { in_background: false }, Reply::Held(_)) => {
                // If the claim is lost, the client gets the response all the same: its effect is there.
                state.told.insert(token);
                Process::Idle
            }
            (Asks::Write, Reply::Held(true)) => ask(Asks::Commit),
            (Asks::Commit, Reply::Held(true)) => {
                state.told.insert(token);
                Process::Idle
            }
            (Asks::IsDone, Reply::Done(true)) => {
                state.found += 1;
                state.told.insert(token);
                Process::Idle
            }
            // Refused (409, 422, 503), given back, lost, or settled in the background.
            _ => Process::Idle,
        };
    }

    /// What a process does when no answer came in time.
    fn without_answer(state: &mut State, at: usize, Question { asks, token }: Question) {
        let ask = |asks| Process::Asking(Question { asks, token });
        state.processes[at] = match asks {
            Asks::Begin | Asks::TakeBack => ask(Asks::TakeBack),
            Asks::GiveBack { .. } => Process::Idle,
            Asks::Release => ask(Asks::Release),
            Asks::Complete { .. } => {
                state.told.insert(token);
                ask(Asks::Complete { in_background: true })
            }
            // `COMMIT` was not sent: nothing can be committed.
            Asks::Write => {
                state.unlock(token);
                Process::Idle
            }
            Asks::Commit | Asks::IsDone => ask(Asks::IsDone),
        };
    }
}

impl State {
    /// Ends the claim with a record, if the token holds it.
    fn record(&mut self, token: u8, is_fenced: bool) -> bool {
        let record = Record::outcome_unknown(PRINT);
        let now = Millis(self.now);
        let mut held = self.slot.complete(Token(token.into()), &record, TTL, now);
        if !is_fenced && held == Held::Lost {
            // Whoever holds the claim, or nobody.
            held = Held::Yes;
            for other in 0..=self.requests {
                self.slot.complete(Token(other.into()), &record, TTL, now);
            }
        }
        if held == Held::Yes {
            self.recorded = Some(token);
        }
        held == Held::Yes
    }

    /// The transaction is rolled back, as when its connection is closed.
    fn unlock(&mut self, token: u8) {
        if self.locked == Some(token) {
            self.locked = None;
        }
    }

    fn question(&self, at: usize) -> Option<Question> {
        match self.processes[at] {
            Process::Asking(question) => Some(question),
            Process::Idle | Process::Running { .. } => None,
        }
    }

    fn strays(&mut self, question: Question) {
        self.strays.push(question);
        self.strays.sort_unstable();
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            slot: Machine::default(),
            now: 0,
            locked: None,
            recorded: None,
            processes: vec![Process::Idle; self.processes],
            strays: Vec::new(),
            effects: 0,
            lapses: 0,
            told: BTreeSet::new(),
            replays: 0,
            found: 0,
            requests: 0,
            faults: 0,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let may_fail = state.faults < self.faults;
        for (at, process) in state.processes.iter().enumerate() {
            match process {
                Process::Idle if state.requests < self.requests => steps.push(Step::Request(at)),
                Process::Idle => {}
                Process::Asking(_) => {
                    steps.push(Step::Answer(at));
                    if may_fail {
                        steps.extend([Step::LoseAnswer(at), Step::GiveUp(at), Step::Crash(at)]);
                    }
                }
                Process::Running { .. } => {
                    steps.extend([Step::Succeed(at), Step::Fail(at), Step::Renew(at)]);
                    if may_fail {
                        steps.push(Step::Crash(at));
                    }
                }
            }
        }
        let asking = state
            .processes
            .iter()
            .filter(|process| matches!(process, Process::Asking(_)));
        if asking.count() > 1 {
            steps.push(Step::Batch { lost: false });
            if may_fail {
                steps.push(Step::Batch { lost: true });
            }
        }
        for at in 0..state.strays.len() {
            steps.extend([Step::Stray(at), Step::DropStray(at)]);
        }
        if state.now < self.ticks {
            steps.push(Step::Tick);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Request(at) => {
                state.requests += 1;
                state.processes[at] = Process::Asking(Question {
                    asks: Asks::Begin,
                    token: state.requests,
                });
            }
            Step::Answer(at) => {
                let question = state.question(at)?;
                let reply = self.act(&mut state, question)?;
                self.go_on(&mut state, at, question, reply);
            }
            Step::LoseAnswer(at) => {
                state.faults += 1;
                let question = state.question(at)?;
                self.act(&mut state, question)?;
                Self::without_answer(&mut state, at, question);
            }
            Step::GiveUp(at) => {
                state.faults += 1;
                let question = state.question(at)?;
                // A transaction's statement goes with its connection; `COMMIT` may be on its way.
                if question.asks != Asks::Write {
                    state.strays(question);
                }
                Self::without_answer(&mut state, at, question);
            }
            Step::Batch { lost } => {
                state.faults += u8::from(lost);
                let mut asking: Vec<_> = (0..self.processes)
                    .filter_map(|at| Some((state.question(at)?, at)))
                    // Transactions have connections of their own.
                    .filter(|(question, _)| !matches!(question.asks, Asks::Write | Asks::Commit | Asks::IsDone))
                    .collect();
                if asking.len() < 2 {
                    return None;
                }
                asking.sort_unstable();
                for (question, at) in asking {
                    let reply = self.act(&mut state, question)?;
                    if lost {
                        Self::without_answer(&mut state, at, question);
                    } else {
                        self.go_on(&mut state, at, question, reply);
                    }
                }
            }
            Step::Stray(at) => {
                let question = state.strays.remove(at);
                self.act(&mut state, question)?;
            }
            Step::DropStray(at) => {
                let question = state.strays.remove(at);
                if question.asks == Asks::Commit {
                    state.unlock(question.token);
                }
            }
            Step::Succeed(at) | Step::Fail(at) => {
                let Process::Running { token } = state.processes[at] else {
                    return None;
                };
                let asks = match (step, self.mode) {
                    (Step::Fail(_), _) => Asks::Release,
                    (_, Mode::Atomic) => Asks::Write,
                    (_, Mode::Apart) => {
                        state.effects += 1;
                        Asks::Complete { in_background: false }
                    }
                };
                state.processes[at] = Process::Asking(Question { asks, token });
            }
            Step::Renew(at) => {
                let Process::Running { token } = state.processes[at] else {
                    return None;
                };
                state.slot.renew(Token(token.into()), LEASE, Millis(state.now));
            }
            Step::Crash(at) => {
                state.faults += 1;
                if let Some(question) = state.question(at) {
                    match question.asks {
                        Asks::Write => {}
                        _ => state.strays(question),
                    }
                }
                state.processes[at] = Process::Idle;
            }
            Step::Tick => state.now += 1,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::sometimes("a replay", |_, state: &State| state.replays > 0),
            Property::always("a second effect needs a lapse", |_, state: &State| {
                state.effects <= 1 || state.lapses > 0
            }),
            Property::always("two answers need a lapse", |_, state: &State| {
                state.told.len() <= 1 || state.lapses > 0
            }),
            Property::always("what a client was told has happened", |_, state: &State| {
                state.told.is_empty() || state.effects > 0
            }),
        ];
        if self.mode == Mode::Atomic || self.on_lapse == OnLapse::Refuse {
            properties.extend([
                Property::always("at most one effect", |_, state: &State| state.effects <= 1),
                Property::always("one answer", |_, state: &State| state.told.len() <= 1),
            ]);
        }
        if self.mode == Mode::Atomic {
            properties.extend([
                Property::always("effect and record are there together", |_, state: &State| {
                    (state.effects == 1) == state.recorded.is_some()
                }),
                Property::sometimes("an unknown commit that was made", |_, state: &State| state.found > 0),
            ]);
        }
        if self.on_lapse == OnLapse::RunAgain {
            properties.push(Property::sometimes("a takeover that succeeds", |_, state: &State| {
                state.lapses > 0 && !state.told.is_empty()
            }));
        }
        if self.on_lapse == OnLapse::RunAgain && self.mode == Mode::Apart {
            properties.push(Property::sometimes("at least once: two effects", |_, state: &State| {
                state.effects > 1
            }));
        }
        properties
    }
}
