//! Two servers, many clients, and what goes wrong meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::check::{Attempt, Books, Charge, Observed, Promise, violations};
use super::client::{Answer, Outcome, send};
use super::documents::Documents;
use super::faketime::Faketime;
use super::operation::{ACCOUNTS, Kind, Operation, get};
use super::plan::{Client, Fault, Plan};
use super::rng::Rng;
use super::savepoints::Savepoints;
use super::server::Server;
use super::store::{Engines, Store};
use crate::support::eventually;

/// Of the simulated provider.
const LATENCY: Duration = Duration::from_millis(60);

/// Of an answer, on a busy machine; more than the servers' own patience with their store.
const PATIENCE: Duration = Duration::from_secs(15);

/// After all is healed: the rest of a lease, and time for the servers to get their connections back on
/// a busy machine. What is stuck is so forever, or for a time to live.
pub const SETTLES: Duration = Duration::from_secs(25);

/// So that what expired is swept amid all the rest.
const SWEEP_EVERY: &str = "250ms";

/// Time enough for a server to notice what befell it.
const AFTERMATH: Duration = Duration::from_millis(500);

/// The two servers with their store.
pub struct World {
    pub servers: [Server; 2],
    pub store: Store,
    /// Where both servers keep documents.
    documents: Documents,
    epoch: Instant,
    attempts: Mutex<Vec<Attempt>>,
    /// Attempts that each server has not answered.
    open: [AtomicU32; 2],
}

impl World {
    pub async fn start(store: Store, lease: Duration, environments: [&[(&str, &str)]; 2]) -> Arc<Self> {
        let documents = Documents::new();
        let latency = format!("{}ms", LATENCY.as_millis());
        let lease = format!("{}ms", lease.as_millis());
        let servers = [0, 1].map(|server: usize| {
            let options = [
                "--store",
                &store.urls[server],
                "--lease",
                &lease,
                "--provider-latency",
                &latency,
                "--sweep-every",
                SWEEP_EVERY,
                "--data-dir",
                documents.directory().to_str().unwrap(),
            ];
            Server::start(&options, environments[server])
        });
        for server in &servers {
            server.listening().await;
        }
        Arc::new(Self {
            servers,
            store,
            documents,
            epoch: Instant::now(),
            attempts: Mutex::default(),
            open: Default::default(),
        })
    }

    pub fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Tries once, and writes it down.
    pub async fn attempt(
        &self,
        operations: &[Operation],
        number: usize,
        server: usize,
        patience: Duration,
        rng: &mut Rng,
    ) -> Outcome {
        self.try_with(&operations[number].request(rng), number, server, patience)
            .await
    }

    async fn try_with(&self, request: &[u8], operation: usize, server: usize, patience: Duration) -> Outcome {
        let began = self.now();
        self.open[server].fetch_add(1, Ordering::Relaxed);
        let outcome = send(self.servers[server].address(), request, patience).await;
        self.open[server].fetch_sub(1, Ordering::Relaxed);
        self.attempts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Attempt {
                operation,
                server,
                began,
                ended: self.now(),
                outcome: outcome.clone(),
            });
        outcome
    }

    /// As a client with a good library does: until it succeeds.
    async fn insist(&self, operations: &[Operation], client: &Client) {
        let mut rng = Rng::new(client.seed);
        sleep_until((self.epoch + client.starts).into()).await;
        let mut pause = 60;
        loop {
            let patience = if rng.chance(15) {
                rng.millis(1, 80)
            } else {
                rng.millis(300, 3000)
            };
            let server = rng.index(2);
            let operation = &operations[client.operation];
            let mut request = operation.request(&mut rng);
            if operation.kind == Kind::Document && rng.chance(25) {
                // The rest never comes.
                request.truncate(rng.index(request.len()));
            }
            let outcome = self.try_with(&request, client.operation, server, patience).await;
            if succeeded(operation, &outcome) {
                return;
            }
            sleep(rng.millis(pause / 3, pause)).await;
            pause = (pause * 3 / 2).min(800);
        }
    }

    /// Makes the session that each account's documents go to, which is one more operation of each.
    async fn with_sessions(&self, mut operations: Vec<Operation>) -> Vec<Operation> {
        for account in ACCOUNTS {
            let number = operations.len();
            let kind = Kind::Session {
                workflow: "wkf_kyc_full",
            };
            let (key, subject) = ("key-of-the-session".to_owned(), format!("subject_{account:?}"));
            operations.push(Operation::new(account, key, kind, subject));
            let answer = eventually("there is a session", async || {
                match self.attempt(&operations, number, 0, PATIENCE, &mut Rng::new(0)).await {
                    Outcome::Answer(answer) if answer.status == 201 => Some(answer),
                    _ => None,
                }
            })
            .await;
            let session = answer.json()["session_id"].as_str().unwrap_or_default().to_owned();
            for operation in operations.iter_mut().filter(|operation| operation.account == account) {
                operation.session.clone_from(&session);
            }
        }
        operations
    }

    /// Waits until a server has something to do, and most likely is not done; but not forever.
    async fn amid_an_operation(&self, server: usize) {
        for _ in 0..100 {
            if self.open[server].load(Ordering::Relaxed) > 0 {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        sleep(LATENCY / 3).await;
    }

    /// Lets something go wrong, and returns when it is over.
    async fn strike(self: &Arc<Self>, fault: Fault) {
        match fault {
            Fault::Nothing => {}
            Fault::KillServer { server } => {
                self.amid_an_operation(server).await;
                self.servers[server].kill();
            }
            Fault::HaltServer { server, time } => {
                self.amid_an_operation(server).await;
                self.servers[server].halt();
                sleep(time).await;
                self.servers[server].resume();
            }
            Fault::HaltStore { time } => self.blocking(move |world| world.store.halt(time)).await,
            Fault::KillStore { time } => self.blocking(move |world| world.store.kill(time)).await,
            Fault::ReadOnly { time } => self.blocking(move |world| world.store.take_no_writes(time)).await,
            Fault::FailOver { time } => self.blocking(move |world| world.store.fail_over(time)).await,
            Fault::Backlog { rows, time } => self.store.grow_a_backlog(rows, time).await,
            Fault::CutAll { server } => self.store.proxy(server).cut_all().await,
            Fault::CutAnswer { server, request } => self.store.proxy(server).cut_after_requests(request),
            Fault::CutRequest { server, request } => self.store.proxy(server).cut_before_request(request),
            Fault::Delay { server, by, time } => {
                self.store.proxy(server).delay(by);
                sleep(time).await;
                self.store.proxy(server).delay(Duration::ZERO);
            }
            Fault::BlackHole { server, time } => {
                self.store.proxy(server).black_hole(true);
                sleep(time).await;
                self.store.proxy(server).black_hole(false);
            }
            Fault::Refuse { server, time } => {
                self.store.proxy(server).refuse(true).await;
                self.store.proxy(server).cut_all().await;
                sleep(time).await;
                self.store.proxy(server).refuse(false).await;
            }
        }
    }

    async fn blocking(self: &Arc<Self>, work: impl FnOnce(&Self) + Send + 'static) {
        let world = self.clone();
        tokio::task::spawn_blocking(move || work(&world)).await.unwrap();
    }

    /// Ends all that goes wrong, and returns when it had ended.
    pub async fn heal(&self) -> Duration {
        self.store.heal().await;
        for server in &self.servers {
            server.listening().await;
        }
        self.now()
    }

    /// After all is healed: what every operation has come to, and the books.
    pub async fn take_stock(
        &self,
        operations: &[Operation],
        harms: Vec<(Duration, Duration)>,
        healed: Duration,
    ) -> Observed {
        let began = self.now();
        let mut rng = Rng::new(0);
        for number in 0..operations.len() {
            for server in [number % 2, 1 - number % 2, number % 2] {
                // A server that crashes on one may be another's.
                while self.now() < began + SETTLES {
                    let outcome = self.attempt(operations, number, server, PATIENCE, &mut rng).await;
                    if succeeded(&operations[number], &outcome) {
                        break;
                    }
                    sleep(Duration::from_millis(25)).await;
                }
            }
        }
        let mut next_versions = BTreeMap::new();
        for (number, operation) in operations.iter().enumerate() {
            if operation.kind == Kind::Status {
                let another = Operation {
                    key: format!("{}-next", operation.key),
                    ..operation.clone()
                };
                let answer = self.ask(0, &another.request(&mut rng)).await;
                next_versions.insert(number, answer["version"].as_u64().unwrap_or_default());
            }
        }
        let mut books = Vec::new();
        for account in ACCOUNTS {
            let mut of_uploads = operations.iter().filter(|operation| operation.account == account);
            let uploads_to = of_uploads.find(|operation| operation.kind == Kind::Document);
            let session = uploads_to.map(|operation| operation.session.as_str());
            let credential = account.credentials()[0];
            books.push([
                self.books(0, credential, session).await,
                self.books(1, credential, session).await,
            ]);
        }
        let names = books.iter().flat_map(|[books, _]| &books.documents);
        let names: BTreeSet<&str> = names.map(|(id, _)| id.as_str()).collect();
        self.files_settle(&names).await;
        let events = self.ask(0, &get("/v1/webhooks/events", "")).await;
        Observed {
            operations: operations.to_vec(),
            attempts: self.attempts.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            harms,
            healed,
            files: self.documents.files(),
            aside: self.documents.aside(),
            books,
            events: strings(&events["events"], "event_id"),
            next_versions,
        }
    }

    /// Waits until these documents have their files and no other file is left, but not forever. A server that
    /// does not know whether its commit took effect asks again a second later.
    async fn files_settle(&self, names: &BTreeSet<&str>) {
        let began = self.now();
        let settled = || {
            let placed = self.documents.placed();
            placed.iter().map(String::as_str).eq(names.iter().copied()) && self.documents.aside().is_empty()
        };
        while !settled() && self.now() - began < SETTLES {
            sleep(Duration::from_millis(25)).await;
        }
    }

    /// What an account is told, and the documents of one of its sessions.
    async fn books(&self, server: usize, credential: &str, session: Option<&str>) -> Books {
        let bill = self.ask(server, &get("/v1/billing", credential)).await;
        let sessions = self.ask(server, &get("/v1/verification/sessions", credential)).await;
        let documents = match session {
            Some(session) => {
                let path = format!("/v1/verification/sessions/{session}/documents");
                self.ask(server, &get(&path, credential)).await
            }
            None => Value::Null,
        };
        let references = strings(&bill["charges"], "reference");
        let amounts = bill["charges"].as_array().into_iter().flatten();
        Books {
            charges: references
                .into_iter()
                .zip(amounts.map(|charge| charge["amount_cents"].as_u64().unwrap()))
                .map(|(reference, cents)| Charge { reference, cents })
                .collect(),
            total_cents: bill["total_cents"].as_u64().unwrap(),
            sessions: strings(&sessions["sessions"], "session_id")
                .into_iter()
                .zip(strings(&sessions["sessions"], "user_id"))
                .collect(),
            documents: strings(&documents["documents"], "document_id")
                .into_iter()
                .zip(strings(&documents["documents"], "file_name"))
                .collect(),
        }
    }

    /// How often a server has called the provider.
    pub async fn provider_calls(&self, server: usize) -> u64 {
        let metrics = self.insist_on(server, &get("/metrics", "")).await.body;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("identity_provider_calls_total "));
        line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
    }

    async fn ask(&self, server: usize, request: &[u8]) -> Value {
        self.insist_on(server, request).await.json()
    }

    /// Asks until there is an answer.
    async fn insist_on(&self, server: usize, request: &[u8]) -> Answer {
        let what = format!("an answer to {}", String::from_utf8_lossy(request));
        eventually(&what, async || {
            match send(self.servers[server].address(), request, PATIENCE).await {
                Outcome::Answer(answer) if answer.status == 200 => Some(answer),
                _ => None,
            }
        })
        .await
    }

    /// Leaves all that may explain what went wrong in a directory.
    pub fn leave(&self, directory: &Path, plan: &str, observed: &Observed) {
        std::fs::create_dir_all(directory).unwrap();
        let mut attempts = observed.attempts.clone();
        attempts.sort_by_key(|attempt| attempt.began);
        let mut text = format!("{plan}\nhealed: {:?}\nharms: {:?}\n\n", observed.healed, observed.harms);
        for attempt in attempts {
            let outcome = match &attempt.outcome {
                Outcome::Answer(Answer { status, replayed, body }) => {
                    format!("{status}{} {body}", if *replayed { " replayed" } else { "" })
                }
                other => format!("{other:?}"),
            };
            let (began, ended) = (attempt.began.as_millis(), attempt.ended.as_millis());
            let operation = &observed.operations[attempt.operation];
            writeln!(
                text,
                "{began:>6}-{ended:>6} {} at {} : {outcome}",
                operation.subject, attempt.server
            )
            .unwrap();
        }
        writeln!(
            text,
            "\n{:#?}\n{:?}\n{:?}",
            observed.books, observed.events, observed.next_versions
        )
        .unwrap();
        std::fs::write(directory.join("history"), text).unwrap();
        for (number, server) in self.servers.iter().enumerate() {
            std::fs::write(directory.join(format!("server-{number}.log")), server.log()).unwrap();
        }
    }
}

fn strings(list: &Value, name: &str) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.map(|item| item[name].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn succeeded(operation: &Operation, outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answer(answer) if answer.status == operation.success())
}

/// What is wrong after a round, and what it was like.
pub async fn run(engines: &Engines, seed: u64, leave_in: &Path) -> (Vec<String>, String) {
    let plan = Plan::draw(seed, engines.engine());
    let clock = plan.shift.and_then(|_| Faketime::installed());
    let shifted = clock.as_ref().zip(plan.shift).map(|(clock, by)| clock.shifted(by));
    let environments: [&[_]; 2] = [&[], shifted.as_ref().map_or(&[], |shifted| shifted)];
    let store = Store::create_with(engines, plan.fails_over()).await;
    let world = World::start(store, engines.engine().lease(), environments).await;
    let operations: Arc<[Operation]> = world.with_sessions(plan.operations.clone()).await.into();
    let (backlog, faults) = (plan.leaves_a_backlog(), plan.names_of_faults());
    let mut clients = JoinSet::new();
    let planned = format!("{plan:#?}");
    for client in plan.clients {
        let (world, operations) = (world.clone(), operations.clone());
        clients.spawn(async move { world.insist(&operations, &client).await });
    }
    let savepoints = Savepoints::start(&world.store, engines.engine().lease()).await;
    let mut in_savepoints = savepoints
        .as_ref()
        .map(|service| service.clients(seed))
        .unwrap_or_default();
    let mut harms = Vec::new();
    for (pause, fault) in plan.faults {
        sleep(pause).await;
        let began = world.now();
        world.strike(fault).await;
        if fault.harms() {
            let lasting = matches!(fault, Fault::CutAnswer { .. } | Fault::CutRequest { .. });
            let ended = if lasting {
                Duration::MAX
            } else {
                world.now() + AFTERMATH
            };
            harms.push((began, ended));
        }
    }
    // All clients have begun, and many are done.
    let all_begun = Duration::from_millis(1600);
    sleep(all_begun.saturating_sub(world.now())).await;
    let healed = world.heal().await;
    // Clients that go on are part of the load; those in trouble are given up.
    let mut answers = Vec::new();
    let _ = tokio::time::timeout(SETTLES, async {
        while clients.join_next().await.is_some() {}
        while let Some(answer) = in_savepoints.join_next().await {
            answers.push(answer.unwrap());
        }
    })
    .await;
    clients.shutdown().await;
    in_savepoints.shutdown().await;
    let deaths = world.servers.iter().map(|server| server.starts() - 1).sum::<u32>();
    if deaths > 0 {
        // When is not known.
        harms.push((Duration::ZERO, Duration::MAX));
    }
    let observed = world.take_stock(&operations, harms, healed).await;
    if backlog {
        world.store.backlog_swept().await;
    }
    let promise = Promise {
        atomic: engines.engine().atomic(),
        settles: SETTLES,
    };
    let mut wrong = violations(&observed, promise);
    if let Some(service) = savepoints {
        wrong.extend(service.violations(&world.store, answers).await);
    }
    if !wrong.is_empty() {
        world.leave(leave_in, &planned, &observed);
    }
    let settled = (0..operations.len())
        .filter_map(|operation| observed.first_success(operation))
        .max();
    let settled = settled.unwrap_or(Duration::MAX).saturating_sub(healed);
    let clock = plan.shift.map(|by| format!(", a clock {by}")).unwrap_or_default();
    let tally = tally(&observed);
    let summary = format!("{faults}: {tally}, {deaths} deaths{clock}, settled in {settled:.1?}");
    (wrong, summary)
}

/// What became of the attempts.
fn tally(observed: &Observed) -> String {
    let mut tally = BTreeMap::<String, u32>::new();
    for attempt in &observed.attempts {
        let what = match &attempt.outcome {
            Outcome::Answer(answer) if answer.json()["attempt"].as_u64() > Some(1) && !answer.replayed => {
                "taken over".to_owned()
            }
            Outcome::Answer(answer) if answer.replayed => "replayed".to_owned(),
            Outcome::Answer(answer) => answer.status.to_string(),
            other => format!("{other:?}"),
        };
        *tally.entry(what).or_default() += 1;
    }
    let parts: Vec<String> = tally.iter().map(|(what, count)| format!("{count} {what}")).collect();
    parts.join(", ")
}
