//! A store of ten million rows next to a store of ten thousand.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const FEW: u64 = 10_000;
const MANY: u64 = 10_000_000;
/// The number of rows that one statement fills in.
const AT_ONCE: u64 = 250_000;
/// The distance between the rows' slots, with their first eight bytes read as a number.
const STEP: u64 = (1 << 63) / MANY;

/// The slot of a row that was filled in.
fn filled(number: u64) -> Slot {
    let mut bytes = [0; Slot::LEN];
    bytes[..8].copy_from_slice(&(number * STEP).to_be_bytes());
    Slot::from_bytes(bytes)
}

/// A new slot, between the slots that were filled in.
fn among() -> Slot {
    let mut bytes = *fresh().as_bytes();
    bytes[0] &= 0x7f;
    Slot::from_bytes(bytes)
}

/// The record of this slot is copied to every row.
const MODEL: u64 = 0;

/// The number of rows that are recorded last, and replayed as retries are.
const LATELY: u64 = 1000;

/// Claims, replays of recent records, and replays of rows anywhere in the table.
async fn of_rows<S: Store + Clone>(store: S, rows: u64) -> [Case; 3] {
    let mut lately = Vec::new();
    for _ in 0..LATELY {
        let claim = begin(among());
        claim_and_record(&store, claim).await;
        lately.push(claim.slot);
    }
    let replay = |store: S, slot: Slot| async move {
        let again = store.begin(&begin(slot)).await;
        assert!(matches!(again, Ok(ClaimOutcome::Done(_))));
    };
    let (writer, reader) = (store.clone(), store.clone());
    let next = Arc::new(AtomicU64::new(1));
    let last = Arc::clone(&next);
    [
        Case::new("claim and record", move |_| {
            let store = writer.clone();
            async move { claim_and_record(&store, begin(among())).await }
        }),
        Case::new("replay of one of the last 1000", move |_| {
            let at = last.fetch_add(1, Ordering::Relaxed) % LATELY;
            replay(reader.clone(), lately[at as usize])
        }),
        Case::new("replay of any", move |_| {
            // A stride without a common factor visits all rows, far apart from each other.
            let at = next
                .fetch_add(1, Ordering::Relaxed)
                .wrapping_mul(6_364_136_223_846_793_005)
                >> 11;
            replay(store.clone(), filled(at % rows))
        }),
    ]
}

async fn claim_and_record<S: Store>(store: &S, claim: ClaimRequest) {
    let answer = Response::new(Bytes::from_static(ANSWER));
    let record = tower_idempotency::store::Record::of_response(claim.fingerprint, &answer);
    store.begin(&claim).await.expect("a claim");
    let held = store.complete(&claim.slot, claim.token, &record, claim.ttl).await;
    held.expect("a record");
}

/// Measures both tables in turns.
async fn compare_rows<S: Store + Clone>(title: &str, few: S, many: S) {
    let mut cases = Vec::from(of_rows(few, FEW).await);
    cases.extend(of_rows(many, MANY).await);
    let cases = Arc::new(cases);
    println!(
        "\n| {title}: callers | | {FEW} rows: calls/s | {MANY} rows: calls/s | time, as a multiple |\n|---|---|---|---|---|"
    );
    for callers in [1, 32] {
        let mut rates = vec![Vec::new(); cases.len()];
        for turn in 0..=2 * TURNS {
            for (index, rates) in rates.iter_mut().enumerate() {
                let rate = rate(&cases, index, callers).await;
                // The first turn is a warm-up.
                if turn > 0 {
                    rates.push(rate);
                }
            }
        }
        for case in 0..3 {
            let [few, many] = [case, case + 3].map(|index| median(&mut rates[index]));
            let name = cases[case].name;
            println!("| {callers} | {name} | {few:.0} | {many:.0} | {:.2} |", few / many);
        }
    }
}

/// Prints what each call does to the disk, from counters that `read` returns.
async fn count_work<S: Store + Clone>(few: S, many: S, of: [&str; 2], read: impl AsyncFn() -> [f64; 2]) {
    println!("\n| per call | rows | {} | {} |\n|---|---|---|---|", of[0], of[1]);
    for (store, rows) in [(few, FEW), (many, MANY)] {
        let cases = Arc::new(Vec::from(of_rows(store, rows).await));
        for index in 0..cases.len() {
            // The first turn reads pages that stay in the cache.
            times(&cases, index, 1).await;
            let before = read().await;
            let calls = times(&cases, index, 1).await.1.len() as f64;
            let after = read().await;
            let [first, second] = [0, 1].map(|at| (after[at] - before[at]) / calls);
            println!("| {} | {rows} | {first:.2} | {second:.0} |", cases[index].name);
        }
    }
}

pub async fn postgres(server: &Postgres) {
    let mut stores = Vec::new();
    for rows in [FEW, MANY] {
        let options = PgPoolOptions::new().max_connections(2);
        let pool = options.connect(&server.create_database()).await.expect("the database");
        let store = PostgresStore::new(pool.clone());
        store.migrate().await.expect("a table");
        claim_and_record(&store, begin(filled(MODEL))).await;
        for first in (1..rows).step_by(AT_ONCE as usize) {
            let fill = format!(
                "INSERT INTO idempotency_keys
                 SELECT decode(lpad(to_hex(n * {STEP}), 16, '0') || repeat('0', 48), 'hex'),
                        substr(sha256(int8send(n % 100000)), 1, 16), fingerprint, n, 1, lease_until, forget_at,
                        sweep_at + n * interval '1 microsecond', record
                 FROM generate_series({first}::bigint, {}::bigint) AS n,
                      (SELECT * FROM idempotency_keys WHERE slot = decode(repeat('0', 64), 'hex')) AS model",
                (first + AT_ONCE).min(rows) - 1
            );
            sqlx::raw_sql(sqlx::AssertSqlSafe(fill))
                .execute(&pool)
                .await
                .expect("rows");
        }
        sqlx::raw_sql("VACUUM (ANALYZE) idempotency_keys")
            .execute(&pool)
            .await
            .expect("statistics");
        stores.push(store);
        sqlx::raw_sql("CHECKPOINT").execute(&pool).await.expect("a checkpoint");
    }
    let [few, many] = [stores[0].clone(), stores[1].clone()];
    compare_rows("PostgreSQL", few.clone(), many.clone()).await;
    let pool = few.pool().clone();
    count_work(few, many, ["pages read", "bytes of WAL"], async || {
        // A connection reports its counts when it has been idle for ten seconds.
        tokio::time::sleep(Duration::from_secs(11)).await;
        let counts: (i64, i64) = sqlx::query_as(
            "SELECT sum(blks_read)::bigint, (pg_current_wal_insert_lsn() - '0/0')::bigint FROM pg_stat_database",
        )
        .fetch_one(&pool)
        .await
        .expect("the counts");
        [counts.0 as f64, counts.1 as f64]
    })
    .await;
}

pub async fn sqlite() {
    let directory = Directory::new();
    let mut stores = Vec::new();
    for rows in [FEW, MANY] {
        let path = directory.path(&format!("{rows}.db"));
        let store = SqliteStore::open(path).await.expect("a database");
        store.migrate().await.expect("a table");
        claim_and_record(&store, begin(filled(MODEL))).await;
        for first in (1..rows).step_by(AT_ONCE as usize) {
            let fill = format!(
                "WITH RECURSIVE numbers (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {})
                 INSERT INTO idempotency_keys
                 SELECT unhex(printf('%016x', n * {STEP}) || printf('%048d', 0)), unhex(printf('%032x', n % 100000)),
                        fingerprint, n, 1, lease_until, forget_at, sweep_at + n / 1000, record
                 FROM numbers, (SELECT * FROM idempotency_keys WHERE slot = zeroblob(32)) AS model",
                (first + AT_ONCE).min(rows) - 1
            );
            sqlx::raw_sql(sqlx::AssertSqlSafe(fill))
                .execute(store.pool())
                .await
                .expect("rows");
        }
        sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(store.pool())
            .await
            .expect("a checkpoint");
        stores.push(store);
    }
    let [few, many] = [stores[0].clone(), stores[1].clone()];
    compare_rows("SQLite", few.clone(), many.clone()).await;
    count_work(few, many, ["pages read or written", "bytes written"], async || {
        let text = std::fs::read_to_string("/proc/self/io").expect("the process's counts");
        let count = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.expect("a count").trim().parse().expect("a number")
        };
        [count("syscr:") + count("syscw:"), count("wchar:")]
    })
    .await;
}
