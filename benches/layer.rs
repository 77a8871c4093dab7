//! The layer's paths under Criterion: `cargo bench --bench layer`. For multiples of the bare
//! router, which need interleaved rounds, see `ratios`. For allocations and bytes, see `footprint`.

mod support;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use http::Method;
use support::{get_session, guarded, key, post_session, request, router, send};
use tokio::runtime::{Builder, Runtime};
use tower_idempotency::{IdempotencyLayer, MemoryStore};

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new())
}

fn runtimes() -> [(&'static str, Runtime); 2] {
    let one = Builder::new_current_thread().enable_all().build();
    let two = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    [
        ("current_thread", one.expect("a runtime")),
        ("two_workers", two.expect("a runtime")),
    ]
}

fn small(criterion: &mut Criterion) {
    for (name, runtime) in runtimes() {
        let mut group = criterion.benchmark_group(name);
        let mut next = 0;
        let mut first = move || {
            next += 1;
            post_session(Some(key(next)))
        };
        let bare = router();
        let guarded = guarded(layer());
        runtime.block_on(send(&guarded, post_session(Some(key(0)))));
        group.bench_function("bare_get", |b| {
            b.to_async(&runtime)
                .iter_batched(get_session, |request| send(&bare, request), BatchSize::SmallInput);
        });
        group.bench_function("bare_post", |b| {
            b.to_async(&runtime)
                .iter_batched(&mut first, |request| send(&bare, request), BatchSize::SmallInput);
        });
        group.bench_function("through_get", |b| {
            b.to_async(&runtime)
                .iter_batched(get_session, |request| send(&guarded, request), BatchSize::SmallInput);
        });
        group.bench_function("through_post_without_key", |b| {
            b.to_async(&runtime).iter_batched(
                || post_session(None),
                |request| send(&guarded, request),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("first_request", |b| {
            b.to_async(&runtime)
                .iter_batched(&mut first, |request| send(&guarded, request), BatchSize::SmallInput);
        });
        group.bench_function("replay", |b| {
            b.to_async(&runtime).iter_batched(
                || post_session(Some(key(0))),
                |request| send(&guarded, request),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn bodies(criterion: &mut Criterion) {
    let [(_, runtime), _] = runtimes();
    let mut group = criterion.benchmark_group("echoed_body");
    for size in [200, 16 << 10, 1 << 20] {
        let body = Bytes::from(vec![b'x'; size]);
        let mut next = 0;
        let mut post = |key_is_new: bool| {
            next += u64::from(key_is_new);
            request(Method::POST, "/v1/echo", Some(key(next)), body.clone())
        };
        group.throughput(Throughput::Bytes(size as u64));
        let (bare, guarded) = (router(), guarded(layer()));
        group.bench_function(BenchmarkId::new("bare", size), |b| {
            b.to_async(&runtime)
                .iter_batched(|| post(true), |request| send(&bare, request), BatchSize::SmallInput);
        });
        group.bench_function(BenchmarkId::new("first_request", size), |b| {
            b.to_async(&runtime)
                .iter_batched(|| post(true), |request| send(&guarded, request), BatchSize::SmallInput);
        });
        runtime.block_on(send(&guarded, post(true)));
        group.bench_function(BenchmarkId::new("replay", size), |b| {
            b.to_async(&runtime)
                .iter_batched(|| post(false), |request| send(&guarded, request), BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, small, bodies);
criterion_main!(benches);
