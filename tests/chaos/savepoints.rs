//! A guarded service in this process, on the database of the servers, whose handler works in a savepoint that
//! is kept, rolled back, dropped or cut off by a timeout.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer, service_fn};
use tower_idempotency::store::sql::{PostgresStore, SqliteStore, Transaction, Work};
use tower_idempotency::{IdempotencyKey, IdempotencyLayer, Store as KeyStore};

use super::rng::Rng;
use super::round::SETTLES;
use super::store::Store;
use crate::support::{Answer, post, send};

const OPERATIONS: usize = 4;

/// What the savepoint comes to, unless it is cut off.
const ENDS: [&str; 3] = ["kept", "rolled-back", "dropped"];

/// Longer than the layer waits for its store.
const PATIENCE: Duration = Duration::from_secs(15);

type Service = BoxCloneSyncService<
    Request<Body>,
    Response<tower_idempotency::ResponseBody<http_body_util::Full<bytes::Bytes>>>,
    BoxError,
>;

pub struct Savepoints {
    service: Service,
}

/// An operation's number, whether its answer is a replay, and the text of it.
type Success = (usize, bool, String);

/// What was seen of an operation.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Of its successes: whether it is a replay, and its text.
    answers: Vec<(bool, String)>,
    rows: Vec<String>,
}

impl Savepoints {
    /// None on a store without transactions.
    pub async fn start(store: &Store, lease: Duration) -> Option<Self> {
        let url = store.urls[0].as_str();
        let service = if let Some(path) = url.strip_prefix("sqlite:") {
            guarded(SqliteStore::open(path).await.unwrap(), lease, in_sqlite)
        } else if url.starts_with("postgres:") {
            let pool = PgPoolOptions::new().max_connections(4).acquire_timeout(lease);
            guarded(PostgresStore::new(pool.connect_lazy(url).unwrap()), lease, in_postgres)
        } else {
            return None;
        };
        store
            .execute("CREATE TABLE marks (key TEXT NOT NULL, mark TEXT NOT NULL)")
            .await;
        Some(Self { service })
    }

    /// Two clients for each operation, which try until it succeeds, some without patience.
    pub fn clients(&self, seed: u64) -> JoinSet<Success> {
        let mut clients = JoinSet::new();
        for client in 0..2 * OPERATIONS {
            let service = self.service.clone();
            let mut rng = Rng::new(seed ^ (client as u64 + 1));
            clients.spawn(async move {
                sleep(rng.millis(0, 1500)).await;
                loop {
                    let operation = client / 2;
                    let cut_after = rng.chance(40).then(|| rng.below(4000));
                    let patience = if rng.chance(25) { rng.millis(1, 60) } else { PATIENCE };
                    let tried = timeout(patience, attempt(&service, operation, cut_after)).await;
                    if let Ok(answer) = tried
                        && answer.status == StatusCode::OK
                    {
                        return (operation, answer.is_replay(), answer.text().to_owned());
                    }
                    sleep(rng.millis(30, 200)).await;
                }
            });
        }
        clients
    }

    /// After all is healed: what is wrong. `answers` are those that clients got.
    pub async fn violations(&self, store: &Store, answers: Vec<Success>) -> Vec<String> {
        let mut seen = vec![Seen::default(); OPERATIONS];
        for (operation, replayed, text) in answers {
            seen[operation].answers.push((replayed, text));
        }
        for (operation, seen) in seen.iter_mut().enumerate() {
            for _ in 0..2 {
                let settled = timeout(SETTLES, async {
                    loop {
                        let answer = attempt(&self.service, operation, None).await;
                        if answer.status == StatusCode::OK {
                            return answer;
                        }
                        sleep(Duration::from_millis(25)).await;
                    }
                });
                if let Ok(answer) = settled.await {
                    seen.answers.push((answer.is_replay(), answer.text().to_owned()));
                }
            }
            let marks = format!("SELECT mark FROM marks WHERE key = '{}' ORDER BY mark", key(operation));
            seen.rows = store.strings(&marks).await;
        }
        let wrong = seen.iter().enumerate().map(|(operation, seen)| {
            let wrong = seen.violations(ENDS[operation % ENDS.len()]);
            wrong
                .into_iter()
                .map(move |what| format!("savepoint {operation}: {what}"))
        });
        wrong.flatten().collect()
    }
}

impl Seen {
    fn violations(&self, end: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let texts: BTreeSet<&str> = self.answers.iter().map(|(_, text)| text.as_str()).collect();
        if texts.len() != 1 {
            wrong.push(format!("{} different answers: {texts:?}", texts.len()));
        }
        let runs = self.answers.iter().filter(|(replayed, _)| !replayed).count();
        if runs > 1 {
            wrong.push(format!("{runs} successes are no replays"));
        }
        if !self.answers.last().is_some_and(|(replayed, _)| *replayed) {
            wrong.push("it is not replayed in the end".to_owned());
        }
        let rows: Vec<&str> = self.rows.iter().map(String::as_str).collect();
        let whole: &[&str] = &["after", "before", "within"];
        let without: &[&str] = &["after", "before"];
        let is_right = match texts.first() {
            Some(&"done") => rows == if end == "kept" { whole } else { without },
            // It was cut off as it began, worked or ended.
            Some(&"cut off") => rows == without || end == "kept" && rows == whole,
            _ => true,
        };
        if !is_right {
            wrong.push(format!("the answer is {texts:?} of {end}, the rows are {rows:?}"));
        }
        wrong
    }
}

fn key(operation: usize) -> String {
    format!("savepoint-{operation}")
}

/// Tries once. The handler cuts the savepoint off after so many microseconds.
async fn attempt(service: &Service, operation: usize, cut_after: Option<u64>) -> Answer {
    let mut request = post(&format!("/{}", ENDS[operation % ENDS.len()]), &key(operation), "{}");
    if let Some(micros) = cut_after {
        request.headers_mut().insert("cut-after", micros.into());
    }
    send(service, request).await
}

fn guarded<St, W, F>(store: St, lease: Duration, handler: W) -> Service
where
    St: KeyStore,
    W: Fn(Request<Body>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<&'static str, BoxError>> + Send + 'static,
{
    let layer = IdempotencyLayer::builder(store).lease(lease).build().unwrap();
    let handler = service_fn(move |request: Request<Body>| {
        let handled = handler(request);
        async move {
            Ok::<_, BoxError>(match handled.await {
                Ok(text) => Response::new(http_body_util::Full::from(text)),
                Err(_) => {
                    let mut response = Response::new(http_body_util::Full::default());
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    response
                }
            })
        }
    });
    BoxCloneSyncService::new(layer.layer(handler))
}

macro_rules! handler {
    ($name:ident, $database:ty) => {
        async fn $name(request: Request<Body>) -> Result<&'static str, BoxError> {
            let (head, _) = request.into_parts();
            let key = head
                .extensions
                .get::<IdempotencyKey>()
                .unwrap()
                .as_str()
                .to_owned();
            let insert = |mark: &str| {
                let insert = format!("INSERT INTO marks VALUES ('{key}', '{mark}')");
                sqlx::raw_sql(AssertSqlSafe(insert))
            };
            let transaction = head.extensions.get::<Transaction<$database>>().unwrap();
            let mut work: Work<$database> = transaction.begin().await?;
            insert("before").execute(&mut *work).await?;
            let in_savepoint = async {
                let mut savepoint = work.begin().await?;
                insert("within").execute(&mut *savepoint).await?;
                match head.uri.path() {
                    "/kept" => savepoint.commit().await,
                    "/rolled-back" => savepoint.rollback().await,
                    _ => Ok(drop(savepoint)),
                }
            };
            let text = match head.headers.get("cut-after") {
                Some(micros) => {
                    let limit = Duration::from_micros(micros.to_str()?.parse()?);
                    match timeout(limit, in_savepoint).await {
                        Ok(ended) => ended.map(|()| "done")?,
                        Err(_) => "cut off",
                    }
                }
                None => in_savepoint.await.map(|()| "done")?,
            };
            insert("after").execute(&mut *work).await?;
            Ok(text)
        }
    };
}

handler!(in_sqlite, sqlx::Sqlite);
handler!(in_postgres, sqlx::Postgres);

mod bad_savepoints {
    use super::*;

    fn seen(answers: &[(bool, &str)], rows: &[&str]) -> Seen {
        Seen {
            answers: answers
                .iter()
                .map(|&(replayed, text)| (replayed, text.to_owned()))
                .collect(),
            rows: rows.iter().map(|&row| row.to_owned()).collect(),
        }
    }

    #[test]
    fn half_a_savepoint_is_found() {
        const WHOLE: &[&str] = &["after", "before", "within"];
        const WITHOUT: &[&str] = &["after", "before"];
        for (text, end, right, wrong) in [
            ("done", "kept", WHOLE, WITHOUT),
            ("done", "rolled-back", WITHOUT, WHOLE),
            ("done", "dropped", WITHOUT, &["before", "within"]),
            ("cut off", "kept", WITHOUT, &["before"]),
            ("cut off", "kept", WHOLE, &[]),
            ("cut off", "dropped", WITHOUT, WHOLE),
            (
                "done",
                "kept",
                WHOLE,
                &["after", "after", "before", "before", "within", "within"],
            ),
        ] {
            let answers = [(false, text), (true, text)];
            assert_eq!(seen(&answers, right).violations(end), Vec::<String>::new());
            assert_ne!(seen(&answers, wrong).violations(end), Vec::<String>::new(), "{wrong:?}");
        }
        for answers in [
            &[][..],
            &[(false, "done")],
            &[(false, "done"), (false, "done"), (true, "done")],
            &[(false, "done"), (true, "cut off")],
        ] {
            assert_ne!(
                seen(answers, WHOLE).violations("kept"),
                Vec::<String>::new(),
                "{answers:?}"
            );
        }
    }
}
