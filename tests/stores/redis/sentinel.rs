//! The primary is the one that Sentinel names.

use super::*;
use tower_idempotency::store::RedisSentinel;

struct Watched {
    pair: Pair,
    sentinels: Vec<Redis>,
}

impl Watched {
    /// A primary, a replica, and three Sentinels that know each other and the replica.
    async fn start() -> Option<Self> {
        let pair = Pair::start().await?;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Redis::sentinel_of(&pair.primary, 2)?);
        }
        for sentinel in &sentinels {
            let mut raw = raw(&sentinel.url()).await;
            eventually("the Sentinels know each other", async || {
                let known: std::collections::HashMap<String, String> =
                    query(&mut raw, "SENTINEL MASTER mymaster").await;
                known["num-other-sentinels"] == "2" && known["num-slaves"] == "1" && known["flags"] == "master"
            })
            .await;
        }
        Some(Self { pair, sentinels })
    }

    fn sentinel(&self) -> RedisSentinel {
        RedisSentinel::new(self.sentinels.iter().map(Redis::url), "mymaster").unwrap()
    }

    async fn store(&self) -> RedisStore {
        RedisStore::connect_sentinel(self.sentinel()).await.unwrap()
    }
}

async fn done(store: &RedisStore, n: u64) {
    let begin = claim(n);
    assert_eq!(store.begin(&begin).await.unwrap(), STARTED);
    let held = store.complete(&slot(n), begin.token, &record(b"answer"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
}

#[tokio::test]
async fn a_failover_is_followed_whether_the_old_primary_is_demoted_or_frozen() {
    let Some(watched) = Watched::start().await else { return };
    let store = watched.store().await;
    assert!(!format!("{store:?}").contains("127.0.0.1"), "{store:?}");
    let patient = store.clone().wait_for_replicas(1, Duration::from_secs(30)).unwrap();
    done(&patient, 1).await;

    // By command: the old primary lives on as a replica.
    let mut sentinel = raw(&watched.sentinels[0].url()).await;
    let () = query(&mut sentinel, "SENTINEL FAILOVER mymaster").await;
    eventually("the old primary is a replica", async || {
        watched.pair.primary.is_a("slave")
    })
    .await;
    eventually("the new primary is found", async || {
        matches!(store.begin(&claim(1)).await, Ok(ClaimOutcome::Done(_)))
    })
    .await;
    assert!(watched.pair.replica.is_a("master"));
    eventually("it has a replica", async || patient.begin(&claim(2)).await.is_ok()).await;
    done(&patient, 3).await;

    // By its silence.
    for sentinel in &watched.sentinels {
        let mut raw = raw(&sentinel.url()).await;
        eventually("the Sentinels know what has become of them", async || {
            let known: std::collections::HashMap<String, String> = query(&mut raw, "SENTINEL MASTER mymaster").await;
            known["port"] == watched.pair.replica.port().to_string() && known["flags"] == "master"
        })
        .await;
    }
    watched.pair.replica.pause();
    eventually("the first server is the primary again, and is found", async || {
        matches!(store.begin(&claim(3)).await, Ok(ClaimOutcome::Done(_)))
    })
    .await;
    done(&store, 4).await;
    watched.pair.replica.resume();
}

#[tokio::test]
async fn sentinels_that_are_away_are_passed_over() {
    let Some(mut watched) = Watched::start().await else {
        return;
    };
    let store = watched.store().await;
    watched.sentinels[0].pause();
    watched.sentinels[1].kill();
    // A new connection of this store, and one of another.
    let mut raw = raw(&watched.pair.primary.url()).await;
    let () = query(&mut raw, "CLIENT KILL TYPE normal SKIPME yes").await;
    done(&store, 1).await;
    done(&watched.store().await, 2).await;
    watched.sentinels[0].resume();
}

#[tokio::test]
async fn a_primary_with_a_password_and_a_database() {
    let Some(watched) = Watched::start().await else { return };
    let mut raw = raw(&watched.pair.primary.url()).await;
    let () = query(&mut raw, &format!("ACL SETUSER app on >{PASSWORD} ~* +@all")).await;
    let sentinel = watched
        .sentinel()
        .primary(&format!("redis://app:{PASSWORD}@elsewhere/3"))
        .unwrap();
    assert!(!format!("{sentinel:?}").contains("HUSH"), "{sentinel:?}");
    let store = RedisStore::connect_sentinel(sentinel).await.unwrap();
    done(&store, 1).await;
    let keyspace: String = query(&mut raw, "INFO keyspace").await;
    assert!(keyspace.contains("db3:") && !keyspace.contains("db0:"), "{keyspace}");
    let wrong = watched.sentinel().primary("redis://app:HUSH-wrong@elsewhere").unwrap();
    assert_fails(
        RedisStore::connect_sentinel(wrong).await,
        StoreErrorKind::Unavailable,
        "password",
    );
}

#[tokio::test]
async fn what_cannot_be_found_through_sentinel_is_told() {
    let Some(watched) = Watched::start().await else { return };
    let unknown = RedisSentinel::new(watched.sentinels.iter().map(Redis::url), "other").unwrap();
    assert_fails(
        RedisStore::connect_sentinel(unknown).await,
        StoreErrorKind::Unavailable,
        "are the name and the Sentinels' addresses correct",
    );
    let nobody = RedisSentinel::new([format!("redis://127.0.0.1:{}", free_port())], "mymaster").unwrap();
    assert_fails(
        RedisStore::connect_sentinel(nobody).await,
        StoreErrorKind::Unavailable,
        "nothing listens",
    );
    for (urls, service, option) in [
        (vec![], "mymaster", "sentinels"),
        (vec!["HUSH"], "mymaster", "sentinels"),
        (vec!["redis://host"], "", "service"),
    ] {
        let error = RedisSentinel::new(urls, service).unwrap_err();
        assert_eq!(error.option(), option);
        assert!(!error.to_string().contains("HUSH"), "{error}");
    }
    for url in ["HUSH", "redis+unix:///HUSH"] {
        let error = watched.sentinel().primary(url).unwrap_err();
        assert_eq!(error.option(), "primary");
        assert!(!error.to_string().contains("HUSH"), "{error}");
    }
}
