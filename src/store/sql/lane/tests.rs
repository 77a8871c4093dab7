//! The lane with a scripted driver and paused time.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep};

use super::{Blame, Driver, Failure, Lanes, Limits};

/// The behavior of a scripted database.
struct Script {
    /// The next errors from `connect`. After these errors, `connect` succeeds.
    connects: Mutex<VecDeque<sqlx::Error>>,
    connect_takes: Mutex<Duration>,
    /// The results of the next runs. After these results, runs succeed.
    runs: Mutex<VecDeque<Option<sqlx::Error>>>,
    /// A job that the database refuses, alone or with others.
    bad: u32,
    /// A job that makes the task that sends it panic.
    panics: u32,
    is_open: watch::Sender<bool>,
    is_ready: watch::Sender<bool>,
    rests: Arc<AtomicUsize>,
    attempts: AtomicUsize,
    made: AtomicUsize,
    closed: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    /// The jobs that were sent together, in order.
    log: Mutex<Vec<Vec<u32>>>,
}

struct Wire {
    number: usize,
    rests: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
struct Job {
    number: u32,
    repeated: u32,
}

#[derive(Debug, PartialEq)]
struct Answer {
    number: u32,
    repeated: u32,
    connection: usize,
}

struct Scripted(Arc<Script>);

impl Driver for Scripted {
    type Connection = Wire;
    type Job = Job;
    type Answer = Answer;

    const NAME: &'static str = "scripted";

    async fn connect(&self) -> Result<Wire, sqlx::Error> {
        self.0.attempts.fetch_add(1, Ordering::Relaxed);
        let takes = *self.0.connect_takes.lock().unwrap();
        sleep(takes).await;
        if let Some(error) = self.0.connects.lock().unwrap().pop_front() {
            return Err(error);
        }
        Ok(Wire {
            number: self.0.made.fetch_add(1, Ordering::Relaxed),
            rests: Arc::clone(&self.0.rests),
            closed: Arc::clone(&self.0.closed),
            dropped: Arc::clone(&self.0.dropped),
        })
    }

    /// Even and odd numbers are different kinds of jobs.
    fn joins(job: &Job, batch: &[Job]) -> bool {
        batch[0].number % 2 == job.number % 2
    }

    fn is_refused_when_full(job: &Job) -> bool {
        job.number < 100
    }

    async fn ready(&self, _: &mut Wire) {
        let mut is_ready = self.0.is_ready.subscribe();
        is_ready.wait_for(|ready| *ready).await.unwrap();
    }

    fn is_ready(&self, _: &mut Wire) -> bool {
        *self.0.is_ready.borrow()
    }

    fn rest(connection: &mut Wire) {
        connection.rests.fetch_add(1, Ordering::Relaxed);
    }

    async fn run(&self, connection: &mut Wire, jobs: &[Job]) -> Result<Vec<Answer>, sqlx::Error> {
        let numbers: Vec<_> = jobs.iter().map(|job| job.number).collect();
        self.0.log.lock().unwrap().push(numbers.clone());
        assert!(!numbers.contains(&self.0.panics), "scripted");
        let mut is_open = self.0.is_open.subscribe();
        is_open.wait_for(|open| *open).await.unwrap();
        if let Some(Some(error)) = self.0.runs.lock().unwrap().pop_front() {
            return Err(error);
        }
        if numbers.contains(&self.0.bad) {
            return Err(refused());
        }
        let answer = |job: &Job| Answer {
            number: job.number,
            repeated: job.repeated,
            connection: connection.number,
        };
        Ok(jobs.iter().map(answer).collect())
    }

    fn blame(&self, error: &sqlx::Error) -> Blame {
        match error {
            sqlx::Error::Io(_) => Blame::Connection,
            sqlx::Error::RowNotFound => Blame::Timing,
            _ => Blame::Job,
        }
    }

    fn repeat(job: &mut Job) {
        job.repeated += 1;
    }

    async fn close(connection: Wire) {
        connection.closed.fetch_add(1, Ordering::Relaxed);
    }
}

fn broken() -> sqlx::Error {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}

fn refused() -> sqlx::Error {
    sqlx::Error::Configuration("refused".into())
}

struct Bench {
    script: Arc<Script>,
    lanes: Arc<Lanes<Scripted>>,
}

const ONE: Limits = Limits {
    connections: 1,
    batch: 4,
    queue: 8,
    answer: Duration::from_secs(30),
    idle: Duration::from_secs(60),
    age: Duration::from_secs(600),
};

impl Bench {
    fn new(limits: Limits) -> Self {
        let script = Arc::new(Script {
            connects: Mutex::default(),
            connect_takes: Mutex::default(),
            runs: Mutex::default(),
            bad: 666,
            panics: 777,
            is_open: watch::Sender::new(true),
            is_ready: watch::Sender::new(true),
            rests: Arc::default(),
            attempts: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
            closed: Arc::default(),
            dropped: Arc::default(),
            log: Mutex::default(),
        });
        let lanes = Arc::new(Lanes::new(Scripted(Arc::clone(&script)), limits));
        Self { script, lanes }
    }

    async fn ask(&self, number: u32) -> Result<Answer, Failure> {
        self.lanes.ask(Job { number, repeated: 0 }).await
    }

    fn spawn(&self, number: u32) -> JoinHandle<Result<Answer, Failure>> {
        let lanes = Arc::clone(&self.lanes);
        tokio::spawn(async move { lanes.ask(Job { number, repeated: 0 }).await })
    }

    /// Sends jobs, one after the other, while the database holds back its answers.
    async fn spawn_all(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<JoinHandle<Result<Answer, Failure>>> {
        self.script.is_open.send_replace(false);
        let mut asked = Vec::new();
        for number in numbers {
            asked.push(self.spawn(number));
            settle().await;
        }
        asked
    }

    fn answer(&self) {
        self.script.is_open.send_replace(true);
    }

    fn log(&self) -> Vec<Vec<u32>> {
        std::mem::take(&mut *self.script.log.lock().unwrap())
    }

    fn made(&self) -> usize {
        self.script.made.load(Ordering::Relaxed)
    }

    fn attempts(&self) -> usize {
        self.script.attempts.load(Ordering::Relaxed)
    }

    fn gone(&self) -> usize {
        self.script.dropped.load(Ordering::Relaxed)
    }

    fn fail_connects(&self, errors: impl IntoIterator<Item = sqlx::Error>) {
        self.script.connects.lock().unwrap().extend(errors);
    }

    fn let_one_run(&self) {
        self.script.runs.lock().unwrap().push_back(None);
    }

    fn fail_runs(&self, errors: impl IntoIterator<Item = sqlx::Error>) {
        self.script.runs.lock().unwrap().extend(errors.into_iter().map(Some));
    }
}

/// Lets every task that can run make progress.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_caller_uses_the_connection_directly() {
    let bench = Bench::new(ONE);
    bench.ask(0).await.unwrap();
    // No task is woken: the answer is available at the first poll.
    let mut asked = pin!(bench.ask(1));
    let polled = asked.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(answer) = polled else {
        panic!("the call must not wait")
    };
    assert_eq!(answer.unwrap().connection, 0);
    assert_eq!((bench.made(), bench.log()), (1, vec![vec![0], vec![1]]));
}

#[tokio::test(start_paused = true)]
async fn waiting_jobs_are_sent_together_in_order() {
    let bench = Bench::new(ONE);
    let asked = bench.spawn_all([0, 2, 4, 6, 8, 10, 1, 3, 12]).await;
    bench.answer();
    for (asked, number) in asked.into_iter().zip([0, 2, 4, 6, 8, 10, 1, 3, 12]) {
        assert_eq!(asked.await.unwrap().unwrap().number, number);
    }
    // At most four jobs of one kind. The first waiting job decides the kind.
    let expected = vec![vec![0], vec![2, 4, 6, 8], vec![10, 12], vec![1, 3]];
    assert_eq!(bench.log(), expected);
}

#[tokio::test(start_paused = true)]
async fn jobs_stay_in_the_queue_until_the_connection_is_ready() {
    let bench = Bench::new(ONE);
    bench.ask(0).await.unwrap();
    bench.script.is_ready.send_replace(false);
    let asked: Vec<_> = [2, 4, 6].into_iter().map(|number| bench.spawn(number)).collect();
    settle().await;
    assert_eq!(bench.log(), [[0]]);
    // A caller can leave without closing the connection.
    asked[1].abort();
    settle().await;
    let more = bench.spawn(8);
    settle().await;
    bench.script.is_ready.send_replace(true);
    for asked in [&asked[0], &asked[2], &more] {
        eventually_finished(asked).await;
    }
    assert_eq!((bench.log(), bench.made(), bench.gone()), (vec![vec![2, 6, 8]], 1, 0));
    // All callers leave, so the connection rests.
    let rests = bench.script.rests.load(Ordering::Relaxed);
    bench.script.is_ready.send_replace(false);
    let asked = bench.spawn(10);
    settle().await;
    asked.abort();
    bench.script.is_ready.send_replace(true);
    settle().await;
    assert!(bench.script.rests.load(Ordering::Relaxed) > rests);
    assert_eq!(
        (bench.ask(12).await.unwrap().connection, bench.log()),
        (0, vec![vec![12]])
    );
}

async fn eventually_finished<T>(task: &JoinHandle<T>) {
    while !task.is_finished() {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn connections_are_opened_up_to_the_limit_and_kept() {
    let bench = Bench::new(Limits { connections: 2, ..ONE });
    let asked = bench.spawn_all([0, 2, 4]).await;
    assert_eq!((bench.made(), bench.log()), (2, vec![vec![0], vec![2]]));
    bench.answer();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    settle().await;
    for number in 0..4 {
        bench.ask(number).await.unwrap();
    }
    assert_eq!((bench.made(), bench.gone()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_reported_at_once() {
    let bench = Bench::new(ONE);
    let asked = bench.spawn_all(0..9).await;
    let mut more = pin!(bench.ask(9));
    let polled = more.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(
        matches!(polled, Poll::Ready(Err(Failure::QueueFull { waiting: 8 }))),
        "{polled:?}"
    );
    // The calls of running operations are accepted even so.
    let renewals = bench.spawn_all(100..102).await;
    // Three callers that leave make room in the queue.
    asked[6].abort();
    asked[7].abort();
    asked[5].abort();
    settle().await;
    let last = bench.spawn(9);
    settle().await;
    bench.answer();
    assert_eq!(last.await.unwrap().unwrap().number, 9);
    for asked in asked {
        let _ = asked.await;
    }
    for renewal in renewals {
        assert!(renewal.await.unwrap().is_ok());
    }
    let asked: Vec<_> = bench.log().concat();
    assert!(!asked.contains(&5) && asked.len() == 9, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bad_job_fails_alone() {
    let bench = Bench::new(ONE);
    let asked = bench.spawn_all([0, 2, 666, 4]).await;
    bench.answer();
    for (number, asked) in [0, 2, 666, 4].into_iter().zip(asked) {
        let answer = asked.await.unwrap();
        assert_eq!(answer.is_err(), number == 666, "{answer:?}");
    }
    let expected = vec![vec![0], vec![2, 666, 4], vec![2], vec![666], vec![4]];
    assert_eq!((bench.log(), bench.made()), (expected, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_before_its_answer_closes_its_connection() {
    let bench = Bench::new(ONE);
    bench.ask(0).await.unwrap();
    let asked = bench.spawn_all([2]).await;
    let waiting = bench.spawn(4);
    settle().await;
    asked[0].abort();
    bench.answer();
    // The waiting job is not forgotten.
    assert_eq!(waiting.await.unwrap().unwrap().connection, 1);
    settle().await;
    assert_eq!((bench.made(), bench.gone()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_batch_continues_until_its_last_caller_leaves() {
    let bench = Bench::new(ONE);
    bench.ask(0).await.unwrap();
    let first = bench.spawn_all([2, 4, 6, 8]).await;
    let second = {
        first[0].abort();
        settle().await;
        // The first caller's connection was closed. The other jobs are sent together on the next
        // connection.
        assert_eq!((bench.log(), bench.gone()), (vec![vec![0], vec![2], vec![4, 6, 8]], 1));
        bench.spawn_all([10]).await
    };
    first[1].abort();
    first[2].abort();
    settle().await;
    assert_eq!(bench.gone(), 1, "one caller still waits");
    first[3].abort();
    settle().await;
    assert_eq!(
        (bench.gone(), bench.made()),
        (2, 3),
        "the connection's state is unknown"
    );
    bench.answer();
    for asked in second {
        assert_eq!(asked.await.unwrap().unwrap().connection, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_on_a_broken_connection_is_sent_again() {
    let bench = Bench::new(ONE);
    bench.ask(0).await.unwrap();
    bench.fail_runs([broken()]);
    let again = Answer {
        number: 2,
        repeated: 1,
        connection: 1,
    };
    assert_eq!(bench.ask(2).await.unwrap(), again);
}

#[tokio::test(start_paused = true)]
async fn a_batch_on_a_broken_connection_is_sent_again_one_by_one() {
    let bench = Bench::new(ONE);
    let asked = bench.spawn_all([0, 2, 4]).await;
    bench.let_one_run();
    bench.fail_runs([broken()]);
    bench.answer();
    let mut answers = Vec::new();
    for asked in asked {
        let answer = asked.await.unwrap().unwrap();
        answers.push((answer.number, answer.repeated, answer.connection));
    }
    assert_eq!(answers, [(0, 0, 0), (2, 1, 1), (4, 1, 1)]);
    assert_eq!(bench.log(), [vec![0], vec![2, 4], vec![2], vec![4]]);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_connections_all_break_fails() {
    let bench = Bench::new(ONE);
    bench.ask(0).await.unwrap();
    bench.fail_runs((0..3).map(|_| broken()));
    let failure = bench.ask(2).await.unwrap_err();
    assert!(matches!(failure, Failure::Database(_)), "{failure:?}");
    assert_eq!(bench.log().len(), 1 + 3);
    assert_eq!(bench.ask(4).await.unwrap().connection, 3, "the lane still works");
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_closes_the_idle_ones() {
    let bench = Bench::new(Limits { connections: 3, ..ONE });
    let asked = bench.spawn_all([0, 2, 4]).await;
    bench.answer();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    settle().await;
    bench.fail_runs([broken()]);
    assert_eq!(bench.ask(6).await.unwrap().connection, 3);
    settle().await;
    assert_eq!(bench.gone(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_other_transactions_disturb_is_sent_again_on_the_same_connection() {
    let bench = Bench::new(ONE);
    bench.fail_runs((0..4).map(|_| sqlx::Error::RowNotFound));
    assert_eq!(bench.ask(0).await.unwrap().connection, 0);
    bench.fail_runs((0..5).map(|_| sqlx::Error::RowNotFound));
    bench.ask(2).await.unwrap_err();
    assert_eq!((bench.log().len(), bench.made()), (10, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_to_a_silent_database_times_out() {
    let bench = Bench::new(ONE);
    bench.ask(0).await.unwrap();
    bench.script.is_open.send_replace(false);
    let began = Instant::now();
    let failure = bench.ask(2).await.unwrap_err();
    assert!(matches!(failure, Failure::Silent { .. }), "{failure:?}");
    assert_eq!(began.elapsed(), ONE.answer);
    let asked = bench.spawn_all([4, 6, 8]).await;
    for asked in asked {
        let failure = asked.await.unwrap().unwrap_err();
        assert!(matches!(failure, Failure::Silent { .. }), "{failure:?}");
    }
    bench.answer();
    assert_eq!(bench.ask(10).await.unwrap().repeated, 0);
}

#[tokio::test(start_paused = true)]
async fn callers_wait_for_a_database_that_comes_back_within_a_second() {
    let bench = Bench::new(ONE);
    bench.fail_connects((0..5).map(|_| broken()));
    let asked: Vec<_> = (0..3).map(|number| bench.spawn(number)).collect();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    assert_eq!(bench.attempts(), 6);
}

#[tokio::test(start_paused = true)]
async fn while_the_database_is_down_a_call_fails_after_one_attempt() {
    let bench = Bench::new(Limits { connections: 2, ..ONE });
    bench.fail_connects((0..100).map(|_| broken()));
    let began = Instant::now();
    let asked: Vec<_> = (0..4).map(|number| bench.spawn(number)).collect();
    for asked in asked {
        asked.await.unwrap().unwrap_err();
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(bench.attempts(), 12, "6 for each of the two connections");
    for attempts in 13..20 {
        let began = Instant::now();
        bench.ask(0).await.unwrap_err();
        assert_eq!((bench.attempts(), began.elapsed()), (attempts, Duration::ZERO));
    }
    bench.script.connects.lock().unwrap().clear();
    bench.ask(0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_is_reported_at_once() {
    let bench = Bench::new(ONE);
    bench.fail_connects([refused()]);
    let began = Instant::now();
    bench.ask(0).await.unwrap_err();
    assert_eq!((bench.attempts(), began.elapsed()), (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn one_connection_serves_all_callers_if_no_second_one_opens() {
    let bench = Bench::new(Limits { connections: 2, ..ONE });
    bench.ask(0).await.unwrap();
    bench.fail_connects((0..100).map(|_| broken()));
    let asked = bench.spawn_all([2, 4, 6, 8]).await;
    assert_eq!(bench.attempts(), 2, "not every call makes its own attempt");
    bench.answer();
    for asked in asked {
        assert_eq!(asked.await.unwrap().unwrap().connection, 0);
    }
    sleep(Duration::from_secs(2)).await;
    let asked = bench.spawn_all([2, 4]).await;
    assert_eq!(bench.attempts(), 3, "the lane makes another attempt later");
    bench.answer();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_opened_although_its_caller_left() {
    let bench = Bench::new(ONE);
    *bench.script.connect_takes.lock().unwrap() = Duration::from_secs(1);
    let patience = Duration::from_millis(700);
    assert!(tokio::time::timeout(patience, bench.ask(0)).await.is_err());
    assert!(tokio::time::timeout(patience, bench.ask(0)).await.is_ok());
    assert_eq!(bench.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_that_are_old_or_unused_are_replaced() {
    let bench = Bench::new(ONE);
    bench.ask(0).await.unwrap();
    sleep(ONE.idle).await;
    assert_eq!(bench.ask(0).await.unwrap().connection, 0);
    sleep(ONE.idle + Duration::from_secs(1)).await;
    assert_eq!(bench.ask(0).await.unwrap().connection, 1);
    for _ in 0..10 {
        sleep(ONE.idle).await;
        assert_eq!(bench.ask(0).await.unwrap().connection, 1);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.ask(0).await.unwrap().connection, 2);
    settle().await;
    assert_eq!(bench.gone(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_dropped_closes_its_connections() {
    let bench = Bench::new(Limits { connections: 2, ..ONE });
    bench.ask(0).await.unwrap();
    let asked = bench.spawn_all([2, 4]).await;
    let script = Arc::clone(&bench.script);
    drop(bench);
    settle().await;
    assert_eq!(script.dropped.load(Ordering::Relaxed), 0, "both are in use");
    script.is_open.send_replace(true);
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    settle().await;
    assert_eq!(script.dropped.load(Ordering::Relaxed), 2);
    assert_eq!(script.closed.load(Ordering::Relaxed), 2, "closed cleanly");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_one_task_does_not_break_the_lane() {
    let bench = Bench::new(ONE);
    let asked = bench.spawn_all([0, 777, 2]).await;
    bench.answer();
    let mut ends = Vec::new();
    for asked in asked {
        ends.push(
            asked
                .await
                .unwrap()
                .map_err(|failure| matches!(failure, Failure::Interrupted)),
        );
    }
    assert!(matches!(ends[..], [Ok(_), Err(true), Ok(_)]), "{ends:?}");
}

#[test]
fn each_runtime_has_its_own_connections() {
    let bench = Bench::new(ONE);
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let first = runtime();
    assert_eq!(first.block_on(bench.ask(0)).unwrap().connection, 0);
    let second = runtime();
    // The first runtime still exists, but no thread drives it.
    assert_eq!(second.block_on(bench.ask(0)).unwrap().connection, 1);
    // A job is in progress when the runtime ends.
    first.block_on(bench.spawn_all([0, 2]));
    assert_eq!(bench.gone(), 0);
    drop(first);
    assert_eq!(bench.gone(), 1);
    bench.answer();
    for _ in 0..3 {
        assert_eq!(second.block_on(bench.ask(0)).unwrap().connection, 1);
    }
    drop(second);
    assert_eq!(bench.gone(), 2, "an idle connection is closed as well");
    let third = runtime();
    assert_eq!(third.block_on(bench.ask(0)).unwrap().connection, 2);
    let mut asked = pin!(bench.ask(0));
    let polled = asked.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(Err(Failure::NoRuntime))), "{polled:?}");
}
