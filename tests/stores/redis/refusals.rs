//! What a server refuses, and what the error says to do.

use std::net::Ipv4Addr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn urls_that_lead_nowhere() {
    for url in [
        "",
        "HUSH",
        "http://u:HUSH@localhost",
        "redis://u:HUSH@localhost:99999",
        "redis://u:HUSH@localhost/x",
    ] {
        assert_fails(
            RedisStore::connect(url).await,
            StoreErrorKind::Unavailable,
            "expected redis://",
        );
    }
    assert_fails(
        RedisStore::connect("rediss://u:HUSH@localhost").await,
        StoreErrorKind::Unavailable,
        "TLS feature",
    );
    let nobody = format!("redis://u:{PASSWORD}@127.0.0.1:{}", free_port());
    assert_fails(
        RedisStore::connect(&nobody).await,
        StoreErrorKind::Unavailable,
        "nothing listens",
    );
}

#[tokio::test]
async fn passwords_and_permissions() {
    let Some(server) = Redis::start_with(&["--requirepass", PASSWORD]) else {
        return;
    };
    let at = format!("127.0.0.1:{}", server.port());
    let connect = async |credentials: &str| RedisStore::connect(&format!("redis://{credentials}@{at}")).await;
    assert_fails(connect(":HUSH-wrong").await, StoreErrorKind::Unavailable, "password");
    assert_fails(
        RedisStore::connect(&server.url()).await,
        StoreErrorKind::Unavailable,
        "put the user name and password",
    );
    let store = connect(&format!(":{PASSWORD}")).await.unwrap();
    assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
    assert!(!format!("{store:?}").contains("HUSH"), "{store:?}");

    let mut raw = raw(&format!("redis://:{PASSWORD}@{at}")).await;
    let () = query(&mut raw, "ACL SETUSER weak on >HUSH ~* +ping +evalsha +eval").await;
    let weak = connect("weak:HUSH").await.unwrap();
    assert_fails(weak.begin(&claim(2)).await, StoreErrorKind::Unavailable, "ACL");
    assert_fails(weak.forget(&slot(2)).await, StoreErrorKind::Unavailable, "ACL");

    // What the message says is needed is enough.
    let () = query(
        &mut raw,
        "ACL SETUSER strong on >HUSH ~idempotency:* +ping +evalsha +eval +get +getrange +strlen +exists +set +del +pttl +pexpire +hset +hget +hstrlen +unlink +scan +info +wait",
    )
    .await;
    let strong = connect("strong:HUSH").await.unwrap();
    let begin = claim(3);
    assert_eq!(strong.begin(&begin).await.unwrap(), STARTED);
    assert_eq!(strong.renew(&slot(3), begin.token, HOUR).await.unwrap(), Held::Yes);
    assert!(strong.look_up(&slot(3)).await.unwrap().is_some());
    assert_eq!(strong.look_up(&slot(4)).await.unwrap(), None);
    assert_eq!(
        strong
            .complete(&slot(3), begin.token, &record(b""), HOUR)
            .await
            .unwrap(),
        Held::Yes
    );
    assert!(strong.look_up(&slot(3)).await.unwrap().is_some());
    assert_eq!(strong.release(&slot(3), begin.token).await.unwrap(), Held::Lost);
    let (large, answer) = (
        claim(4),
        Record::of_response(PRINT, &Response::new(Bytes::from(vec![7; 1 << 16]))),
    );
    strong.begin(&large).await.unwrap();
    strong.complete(&slot(4), large.token, &answer, HOUR).await.unwrap();
    assert_eq!(strong.begin(&claim(4)).await.unwrap(), ClaimOutcome::Done(answer));
    assert_eq!(strong.count().await.unwrap(), Census::new(1, 0, 2));
    assert!(strong.forget(&slot(3)).await.unwrap());
}

#[tokio::test]
async fn a_server_that_may_evict_is_warned_of() {
    let options = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let Some(server) = Redis::start_with(&options) else {
        return;
    };
    capture::install();
    capture::take();
    store(&server).await;
    let warned = |events: Vec<capture::Captured>| events.iter().any(|event| event.message().contains("noeviction"));
    assert!(warned(capture::take()));
    let Some(server) = Redis::start_with(&["--maxmemory", "100mb"]) else {
        return;
    };
    store(&server).await;
    assert!(!warned(capture::take()));
}

/// Answers every `EVALSHA` and `EVAL` with that line.
async fn says(line: &'static str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                let mut number = async |sign: char| -> Option<(usize, Option<String>)> {
                    let head = lines.next_line().await.ok()??;
                    let number = head.strip_prefix(sign)?.parse().ok()?;
                    let text = if sign == '$' {
                        lines.next_line().await.ok()?
                    } else {
                        None
                    };
                    Some((number, text))
                };
                while let Some((parts, _)) = number('*').await {
                    let mut name = String::new();
                    for part in 0..parts {
                        let (_, text) = number('$').await.unwrap();
                        if part == 0 {
                            name = text.unwrap();
                        }
                    }
                    let answer = if name.starts_with("EVAL") { line } else { "+OK" };
                    write.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn what_a_server_refuses_is_said_with_what_to_do() {
    use StoreErrorKind::{Corrupt, Full, Unavailable};
    for (line, kind, words) in [
        (
            "-LOADING Redis is loading the dataset in memory",
            Unavailable,
            "loading",
        ),
        (
            "-READONLY You can't write against a read only replica.",
            Unavailable,
            "primary",
        ),
        (
            "-MISCONF Redis is configured to save RDB snapshots",
            Unavailable,
            "disk",
        ),
        ("-BUSY Redis is busy running a script.", Unavailable, "SCRIPT KILL"),
        (
            "-CROSSSLOT Keys in request don't hash to the same slot",
            Unavailable,
            "cluster connection",
        ),
        ("-MOVED 3999 127.0.0.1:6381", Unavailable, "cluster connection"),
        ("-CLUSTERDOWN The cluster is down", Unavailable, "CLUSTER INFO"),
        ("-MASTERDOWN Link with MASTER is down", Unavailable, "primary"),
        (
            "-NOREPLICAS Not enough good replicas to write.",
            Unavailable,
            "min-replicas-to-write",
        ),
        ("-NOAUTH Authentication required.", Unavailable, "password"),
        ("-NOPERM this user has no permissions", Unavailable, "ACL"),
        (
            "-OOM command not allowed when used memory > 'maxmemory'.",
            Full,
            "maxmemory",
        ),
        // As servers before version 7 say it.
        (
            "-ERR Error running script (call to f_1): @user_script:3: @user_script: 3: -OOM command not allowed",
            Full,
            "maxmemory",
        ),
        (
            "-ERR Error running script (call to f_1): @user_script:3: WRONGTYPE Operation against a key",
            Corrupt,
            "another application",
        ),
        (
            "-ERR unknown command 'EVALSHA', with args beginning with: 'HUSH'",
            Unavailable,
            "a proxy in front of it",
        ),
        ("-ERR something new", Unavailable, "the error's source"),
        ("+OK", Unavailable, "form"),
        (":7", Unavailable, "form"),
        ("$-1", Unavailable, "form"),
    ] {
        let store = RedisStore::connect(&says(line).await).await.unwrap();
        assert_fails(store.begin(&claim(1)).await, kind, words);
        if line != ":7" && line != "$-1" {
            assert_fails(store.renew(&slot(1), Token(1), HOUR).await, kind, words);
        }
    }
}
