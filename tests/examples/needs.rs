//! The examples by need: the tests that are in them run here too, and those that need a server get one.

#[path = "../../examples/error_format.rs"]
#[allow(dead_code, reason = "its `main` starts a server on a fixed port")]
mod error_format;

#[path = "../../examples/policies.rs"]
#[allow(dead_code, reason = "its `main` starts a server on a fixed port")]
mod policies;

#[path = "../../examples/redis.rs"]
#[allow(dead_code, reason = "its `main` starts a server on a fixed port")]
#[cfg(unix)]
mod redis;

#[path = "../../examples/reqwest_client.rs"]
#[allow(dead_code, reason = "its `main` needs a server on a fixed port")]
mod reqwest_client;

#[path = "../../examples/sqlite_atomic.rs"]
#[allow(dead_code, reason = "its `main` starts a server on a fixed port")]
mod sqlite_atomic;

#[path = "../../examples/testing.rs"]
#[allow(dead_code, reason = "its `main` starts a server on a fixed port")]
mod testing;

#[path = "../../examples/webhooks.rs"]
#[allow(dead_code, reason = "its `main` starts a server on a fixed port")]
mod webhooks;

/// Each is short enough to read in a minute, and says how to run it.
#[test]
fn an_example_by_need_fits_on_two_screens() {
    for (name, text) in [
        ("error_format", include_str!("../../examples/error_format.rs")),
        ("policies", include_str!("../../examples/policies.rs")),
        ("postgres", include_str!("../../examples/postgres.rs")),
        ("redis", include_str!("../../examples/redis.rs")),
        ("reqwest_client", include_str!("../../examples/reqwest_client.rs")),
        ("sqlite_atomic", include_str!("../../examples/sqlite_atomic.rs")),
        ("testing", include_str!("../../examples/testing.rs")),
        ("webhooks", include_str!("../../examples/webhooks.rs")),
    ] {
        assert!(text.lines().count() <= 130, "{name}");
        assert!(text.contains(&format!("--example {name}")), "{name}");
    }
}

#[cfg(unix)]
mod servers {
    use axum::Router;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use crate::support::servers::redis::Redis;

    async fn pay(app: Router, amount: &'static str) -> (u16, bool, String) {
        let request = Request::post("/payments").header("Idempotency-Key", "order-17");
        let response = app.oneshot(request.body(Body::from(amount)).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let replayed = response.headers().contains_key("Idempotency-Replayed");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, replayed, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_redis_example_is_one_service_in_two_processes() {
        let Some(redis) = Redis::start() else { return };
        let one = super::redis::app(&redis.url()).await.unwrap();
        let other = super::redis::app(&redis.url()).await.unwrap();
        let (status, replayed, paid) = pay(one, "EUR 10").await;
        assert_eq!((status, replayed), (201, false));
        assert!(paid.starts_with("paid EUR 10 as "), "{paid}");
        assert_eq!(pay(other.clone(), "EUR 10").await, (201, true, paid));
        assert_eq!(pay(other, "EUR 99").await.0, 422);
    }
}

#[cfg(target_os = "linux")]
mod migrations {
    use std::process::Command;

    use axum::http::StatusCode;

    use crate::examples::identity_verification::process::Server;
    use crate::examples::identity_verification::request::Call;
    use crate::support::example;
    use crate::support::servers::postgres::Postgres;
    use crate::support::servers::process;

    /// The example's migrations have a copy, as those of an application have.
    #[test]
    fn the_migration_of_the_postgres_example_is_the_stores_own_table() {
        assert_eq!(
            include_str!("../../examples/migrations/2_idempotency_keys.sql"),
            include_str!("../../src/store/sql/postgres/table.sql"),
            "copy src/store/sql/postgres/table.sql to examples/migrations/2_idempotency_keys.sql"
        );
    }

    #[tokio::test]
    async fn the_postgres_example_migrates_and_survives_a_kill() {
        let Some(program) = example::built("postgres") else {
            process::missing("the example `postgres` (cargo build --examples --features examples/migrations)");
            return;
        };
        let Some(postgres) = Postgres::shared() else { return };
        let url = postgres.create_database();
        let start = || {
            let mut command = Command::new(&program);
            command.env("DATABASE_URL", &url).env("LISTEN", "127.0.0.1:0");
            Server::spawn(command)
        };
        let charge = Call::post("/charges", "1000").key("order-17");
        let server = start();
        let first = server.send(&charge).await;
        assert_eq!((first.status, first.text()), (StatusCode::CREATED, "charge 1\n"));
        server.signal("KILL");
        let (_, _) = server.ended().await;
        let server = start();
        let retry = server.send(&charge).await;
        assert!(retry.is_replay());
        assert_eq!(retry.body, first.body);
        let next = server.send(&Call::post("/charges", "1000").key("order-18")).await;
        assert_eq!(next.text(), "charge 2\n");

        // What the page for the person on call says to a database.
        let page = include_str!("../../docs/operating.md");
        let block = page.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next());
        let statements: Vec<_> = block.expect("a block of SQL").lines().collect();
        let [look_up, forget, count_lapsed] = statements[..] else {
            panic!("{statements:?}");
        };
        let database = url.rsplit('/').next().unwrap();
        let slot = postgres.sql(database, "SELECT encode(slot, 'hex') FROM idempotency_keys LIMIT 1");
        let ask = |statement: &str| postgres.sql(database, &statement.replace('…', slot.trim()));
        assert!(ask(look_up).starts_with("1|"), "attempt 1: {}", ask(look_up));
        assert_eq!(ask(count_lapsed).trim(), "0");
        ask(forget);
        assert_eq!(ask(look_up).trim(), "");
    }
}
