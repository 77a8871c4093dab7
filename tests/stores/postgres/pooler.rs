//! PgBouncer in transaction mode between the store and the server.

use super::*;
use crate::support::servers::pgbouncer::PgBouncer;

/// What a client sets on a connection in transaction mode, the next one meets. From version 1.21 on PgBouncer
/// keeps prepared statements. Before, nothing works that uses them, and the error must say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_works_or_the_error_says_why_not() {
    let Some((server, url)) = database().await else { return };
    let Some(bouncer) = blocking(move || PgBouncer::start(server)).await else {
        return;
    };
    let name = url.rsplit_once('/').unwrap().1;
    open(&url, 1).await;
    let pooled = server.url_through(bouncer.port(), name);
    let store = async || PostgresStore::new(pool(&pooled, 4).await).schema("public").unwrap();
    let stores = [store().await, store().await];
    let calls: Vec<_> = (0..400_u64)
        .map(|number| {
            let store = stores[number as usize % 2].clone();
            let other = stores[(number as usize + 1) % 2].clone();
            tokio::spawn(async move {
                let claimed = claim(number).token(number);
                assert_eq!(store.begin(&claimed).await?, ClaimOutcome::started(1));
                assert_eq!(store.renew(&claimed.slot, Token(number), HOUR).await?, Held::Yes);
                let completed = store.complete(&claimed.slot, Token(number), &record(), HOUR).await?;
                assert_eq!(completed, Held::Yes);
                let replay = other.begin(&claim(number).token(999)).await?;
                assert_eq!(replay, ClaimOutcome::Done(record()));
                Ok::<_, StoreError>(())
            })
        })
        .collect();
    let mut errors = Vec::new();
    for call in calls {
        errors.extend(call.await.unwrap().err());
    }
    if bouncer.keeps_prepared_statements() {
        assert!(errors.is_empty(), "{errors:?}\n{}", bouncer.log());
        // Nothing was set that another client would meet.
        for setting in ["enable_seqscan", "lock_timeout", "random_page_cost"] {
            let through = pool(&pooled, 4).await;
            let show = sqlx::AssertSqlSafe(format!(
                "SELECT current_setting('{setting}'), reset_val FROM pg_settings WHERE name = '{setting}'"
            ));
            let (now, reset): (String, String) = sqlx::query_as(show).fetch_one(&through).await.unwrap();
            assert_eq!(now.trim_end_matches("ms"), reset, "{setting}");
        }
    } else {
        assert!(!errors.is_empty(), "it keeps them after all");
        for error in &errors {
            assert_told(
                error,
                StoreErrorKind::Unavailable,
                &["prepared statements", "PgBouncer", "1.21"],
            );
        }
    }
}
