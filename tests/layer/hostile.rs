//! Clients that mean harm: floods of keys, bodies that trickle, headers without measure, keys made to
//! collide, and guesses at what is another's.

use std::future::ready;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::Layer;
use tower_idempotency::store::Inspect;
use tower_idempotency::{IdempotencyLayer, MemoryStore, Store};

use crate::support::store::{Op, Scripted};
use crate::support::{
    Answer, Count, Gate, Inner, ScriptedBody, Step, counted, drain, inner, ok, request, send, spawn, yields,
};

/// A request of that caller.
fn by(caller: &str, key: &str, body: &'static str) -> Request<Body> {
    let headers = [("authorization", caller), ("idempotency-key", key)];
    request("POST", "/charges", &headers, body)
}

/// Answers with the number of the run.
fn counting(runs: &Count) -> Inner {
    let runs = runs.clone();
    inner(move |_| ready(ok(format!("run {}", runs.up()))))
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_stays_in_its_budget_and_costs_other_tenants_nothing() {
    const BUDGET: usize = 1024 * 1024;
    let store = MemoryStore::builder().budget(BUDGET).build().unwrap();
    let layer = IdempotencyLayer::builder(store.clone()).build().unwrap();
    let runs = Count::default();
    let service = layer.layer(counting(&runs));

    let victims: Vec<(String, String)> = (0..10)
        .flat_map(|tenant| (0..20).map(move |n| (format!("tenant-{tenant}"), format!("order-{n}"))))
        .collect();
    let mut first = Vec::new();
    for (tenant, key) in &victims {
        first.push(send(&service, by(tenant, key, "pay")).await);
    }
    for n in 0..30_000 {
        let answer = send(&service, by("the flood", &format!("key-{n}"), "pay")).await;
        assert_eq!(answer.outcome(), "executed");
        assert!(store.stats().bytes <= BUDGET, "{:?}", store.stats());
    }
    assert!(store.stats().evicted > 20_000, "{:?}", store.stats());
    for ((tenant, key), first) in victims.iter().zip(&first) {
        send(&service, by(tenant, key, "pay")).await.assert_replay_of(first);
    }
    assert_eq!(runs.get(), 30_200);
}

/// All of an answer that a client can see.
fn visible(answer: &Answer) -> String {
    format!("{:?} {:?} {:?}", answer.status, answer.headers, answer.trailers)
}

#[tokio::test(start_paused = true)]
async fn who_guesses_anothers_key_gets_what_a_new_key_gets() {
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone()).build().unwrap();
    let (runs, gate) = (Count::default(), Gate::default());
    let handler = {
        let (runs, gate) = (runs.clone(), gate.clone());
        inner(move |request: Request<Body>| {
            let (runs, gate) = (runs.clone(), gate.clone());
            async move {
                if request.headers()["authorization"] == "victim" && request.uri().path() == "/slow" {
                    gate.pass().await;
                }
                runs.up();
                ok("done")
            }
        })
    };
    let service = layer.layer(handler);
    // The victim's keys: one done, one in flight.
    send(&service, by("victim", "done", "pay")).await;
    let running = spawn(
        &service,
        request(
            "POST",
            "/slow",
            &[("authorization", "victim"), ("idempotency-key", "running")],
            "pay",
        ),
    );
    gate.arrival().await;

    let mut seen = Vec::new();
    for (key, body) in [
        ("never-used", "pay"),
        ("done", "pay"),
        ("done", "other"),
        ("running", "pay"),
    ] {
        let before = (store.calls(Op::Begin), store.calls(Op::Complete));
        let answer = send(&service, by("guesser", key, body)).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "done"));
        let cost = (store.calls(Op::Begin) - before.0, store.calls(Op::Complete) - before.1);
        seen.push((visible(&answer), cost));
        // So that the second guess at the same key is no repetition of the guesser's own.
        let slot = layer.slot(Some("guesser"), key).unwrap();
        assert!(store.memory().forget(&slot).await.unwrap());
    }
    assert!(seen.iter().all(|guess| *guess == seen[0]), "{seen:#?}");

    gate.open();
    assert_eq!(running.await.unwrap().text(), "done");
    assert!(send(&service, by("victim", "done", "pay")).await.is_replay());
    assert_eq!(runs.get(), 2 + 4);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_trickle_hold_neither_keys_nor_room() {
    let store = MemoryStore::new();
    let layer = IdempotencyLayer::builder(store.clone()).build().unwrap();
    let runs = Count::default();
    let service = layer.layer(counting(&runs));
    let gate = Gate::default();
    let trickle = |key: String| {
        let steps = [
            Step::Data("pa".into()),
            Step::Stop(gate.clone()),
            Step::Data("y".into()),
        ];
        let body = Body::new(ScriptedBody::new(steps).map_err(axum::Error::new));
        request("POST", "/charges", &[("idempotency-key", &key)], body)
    };
    let slow: Vec<_> = (0..1000)
        .map(|n| spawn(&service, trickle(format!("key-{}", n % 500))))
        .collect();
    for _ in 0..1000 {
        gate.arrival().await;
    }
    assert_eq!(store.stats().entries, 0, "nothing is claimed before the body is there");
    let quick = send(
        &service,
        request("POST", "/charges", &[("idempotency-key", "key-7")], "pay"),
    )
    .await;
    assert_eq!(quick.outcome(), "executed");

    // A quarter of them hang up, the others come to their end.
    let mut slow = slow;
    for task in slow.drain(..250) {
        task.abort();
    }
    yields(10).await;
    gate.open();
    for task in slow {
        let answer = task.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    drain(&layer).await;
    assert_eq!(runs.get(), 500, "each key once");
    assert_eq!(counted(&layer, "executed"), 500);
}

/// A server on a port of its own: plain hyper with its own limits on a head.
async fn serve(layer: IdempotencyLayer, runs: Count) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = layer.layer(tower::service_fn({
                let runs = runs.clone();
                move |_: Request<Full<Bytes>>| {
                    ready(Ok::<_, std::convert::Infallible>(ok(format!("run {}", runs.up()))))
                }
            }));
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let service = service.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = Full::new(body.collect().await?.to_bytes());
                    let answer = tower::ServiceExt::oneshot(service, Request::from_parts(head, body)).await;
                    Ok::<Response<_>, hyper::Error>(answer.unwrap_or_else(|never| match never {}))
                }
            });
            tokio::spawn(async move {
                let io = hyper_util::rt::TokioIo::new(stream);
                // That it ends with an error is the client's doing.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await;
            });
        }
    });
    address
}

/// The answer's status and text to a request with these header lines.
async fn sent(address: std::net::SocketAddr, lines: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n{lines}\r\npay");
    // A server that refuses a head may close before it has read all of it.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.get(9..12).and_then(|status| status.parse().ok());
    (status.unwrap_or_default(), text)
}

#[tokio::test]
async fn headers_without_measure_are_refused_and_kept_nowhere() {
    let store = MemoryStore::new();
    let layer = IdempotencyLayer::builder(store.clone()).build().unwrap();
    let runs = Count::default();
    let address = serve(layer, runs.clone()).await;
    let long = "k".repeat(100_000);

    let (status, text) = sent(address, &format!("idempotency-key: {long}\r\n")).await;
    assert_eq!(status, 400);
    assert!(
        text.contains("\"invalid-key\"") && text.contains("100000 bytes long"),
        "{text}"
    );
    assert!(text.len() < 1000 && !text.contains("kkkk"), "the key is not sent back");

    let (status, text) = sent(address, &format!("idempotency-key: \"{}\"\r\n", "\\\"".repeat(50_000))).await;
    assert_eq!((status, text.len() < 1000), (400, true), "{text}");

    let (status, _) = sent(address, &"idempotency-key: a\r\n".repeat(90)).await;
    assert_eq!(status, 400, "as often as hyper allows");
    let (status, _) = sent(address, &format!("idempotency-key: a\r\n{}", "x: y\r\n".repeat(10_000))).await;
    assert_eq!(status, 431, "hyper's own bound");
    assert_eq!((runs.get(), store.stats().entries), (0, 0));

    // A credential of that length is a scope like any other, and as small in the store.
    let (status, _) = sent(address, "idempotency-key: a\r\n").await;
    let small = store.stats().bytes;
    assert_eq!((status, store.stats().entries), (200, 1));
    let (status, _) = sent(address, &format!("idempotency-key: a\r\nauthorization: {long}\r\n")).await;
    assert_eq!((status, store.stats().entries), (200, 2));
    assert_eq!(store.stats().bytes, 2 * small);
}

#[tokio::test(start_paused = true)]
async fn keys_made_to_look_alike_are_apart() {
    let store = MemoryStore::new();
    let layer = IdempotencyLayer::builder(store.clone()).build().unwrap();
    let runs = Count::default();
    let service = layer.layer(counting(&runs));
    // Alike at the beginning, at the end, in length, but for one character or the order of two; and
    // texts that say where a scope or a length would end.
    let mut keys: Vec<String> = Vec::new();
    let long = "a".repeat(255);
    for at in 0..255 {
        let mut key = long.clone();
        key.replace_range(at..=at, "b");
        keys.push(key);
        keys.push("a".repeat(at + 1));
    }
    keys.extend((1..=20_000).map(|n| format!("{n:0>32}")));
    keys.extend(
        [
            "\\u0000", "%00", "a:b", "a/b", "a;b", "nulls", "{}", "0", "00", "ti.slot1", "''",
        ]
        .map(String::from),
    );
    for (number, key) in keys.iter().enumerate() {
        let answer = send(&service, by("caller", key, "pay")).await;
        assert_eq!(answer.text(), format!("run {}", number + 1), "{key}");
    }
    assert_eq!(store.stats().entries, keys.len());
}

#[tokio::test(start_paused = true)]
async fn a_key_and_a_scope_do_not_run_into_each_other() {
    let layer = IdempotencyLayer::builder(MemoryStore::new()).build().unwrap();
    let runs = Count::default();
    let service = layer.layer(counting(&runs));
    let pairs = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc", "c"),
        ("a", "b"),
        ("", "abc"),
        ("abc", "abc"),
        ("b", "a"),
    ];
    for (number, (scope, key)) in pairs.into_iter().enumerate() {
        let answer = send(&service, by(scope, key, "pay")).await;
        assert_eq!(answer.text(), format!("run {}", number + 1), "{scope} {key}");
    }
}

/// The store's own bound under many clients that hang up at once, each with a key of its own.
#[tokio::test(start_paused = true)]
async fn clients_that_hang_up_by_the_thousand_are_bounded() {
    async fn check<St: Store>(layer: IdempotencyLayer<St>) {
        let (gate, runs) = (Gate::default(), Count::default());
        let handler = {
            let (gate, runs) = (gate.clone(), runs.clone());
            inner(move |_| {
                let (gate, runs) = (gate.clone(), runs.clone());
                async move {
                    runs.up();
                    gate.pass().await;
                    ok("done")
                }
            })
        };
        let service = layer.layer(handler);
        let mut refused = 0;
        for n in 0..2000 {
            let task = spawn(&service, by("hostile", &format!("key-{n}"), "pay"));
            yields(5).await;
            if task.is_finished() {
                task.await.unwrap().assert_problem(503, "overloaded");
                refused += 1;
            } else {
                task.abort();
            }
            yields(5).await;
        }
        assert_eq!((layer.background().len(), runs.get(), refused), (100, 100, 1900));
        gate.open();
        drain(&layer).await;
        assert_eq!(layer.background().len(), 0);
        let answer = send(&service, by("hostile", "key-1999", "pay")).await;
        assert_eq!(answer.outcome(), "executed", "and then all is well");
    }
    check(
        IdempotencyLayer::builder(MemoryStore::new())
            .max_detached(100)
            .build()
            .unwrap(),
    )
    .await;
}
