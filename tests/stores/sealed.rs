//! `Sealed`: what a store holds cannot be read, and what was changed in it is not replayed.

use std::collections::HashSet;

use axum::body::Body;
use bytes::Bytes;
use http::{Extensions, HeaderValue, Request, Response, StatusCode};
use sha2::{Digest, Sha256};
use tower::Layer;
use tower_idempotency::store::{
    Census, ClaimOutcome, ClaimRequest, Commit, Held, Inspect, KeyRing, Record, Sealed, StoreErrorKind, Tiered,
};
use tower_idempotency::{IdempotencyLayer, IdempotencyService, MemoryStore, Store};

use super::work::{Asked, Work};
use crate::support::claim::{Claim, HOUR, claim, print, print_under_another_rule, slot};
use crate::support::store::Scripted;
use crate::support::{Answer, Count, Inner, inner, ok, post, send};

const KEY: [u8; 32] = [0x11; 32];
const OTHER: [u8; 32] = [0x22; 32];

fn sealed<S>(store: S) -> Sealed<S> {
    Sealed::new(store, KeyRing::new(KEY)).unwrap()
}

mod conforms {
    use tower_idempotency::store::{DynStore, conformance};

    use super::*;
    use crate::support::conformance::Handles;

    #[tokio::test(start_paused = true)]
    async fn a_sealed_store_conforms() {
        let harness = Handles::to(sealed(MemoryStore::new()));
        conformance::check(&harness).await;
        for check in conformance::inspection_checks() {
            check.run(&harness).await;
        }
        for seed in 0..100 {
            conformance::check_history(&harness, seed).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_sealed_twice_and_one_that_accepts_the_unsealed_conform() {
        conformance::check(&Handles::to(sealed(sealed(MemoryStore::new())))).await;
        let lenient = Sealed::builder(MemoryStore::new(), KeyRing::new(KEY)).accept_unsealed(true);
        conformance::check(&Handles::to(lenient.build().unwrap())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn tiered_over_sealed_and_sealed_over_tiered_and_erased_conform() {
        conformance::check(&Handles::to(Tiered::new(sealed(MemoryStore::new())))).await;
        conformance::check(&Handles::to(sealed(Tiered::new(MemoryStore::new())))).await;
        conformance::check(&Handles::to(DynStore::new(sealed(MemoryStore::new())))).await;
    }
}

#[test]
fn a_sealed_store_is_as_near_as_the_one_it_wraps() {
    const { assert!(<Sealed<MemoryStore> as Store>::IN_PROCESS) };
    const { assert!(!<Sealed<Tiered<MemoryStore>> as Store>::IN_PROCESS) };
}

/// The bytes of the records that the store was given.
fn kept(shelf: &Scripted) -> Vec<Vec<u8>> {
    shelf.records().iter().map(Record::to_bytes).collect()
}

fn claim_of(at: u64, of: u8) -> ClaimRequest {
    claim(at).print(print(of))
}

fn answer(of: u8, body: &'static str) -> Record {
    let mut response = Response::new(Bytes::from_static(body.as_bytes()));
    response
        .headers_mut()
        .insert("x-token", HeaderValue::from_static("HUSH-header"));
    Record::of_response(print(of), &response)
}

/// Runs an operation in that slot and returns the bytes that the store behind was given.
async fn run(store: &Sealed<Scripted>, shelf: &Scripted, at: u64, record: &Record) -> Vec<u8> {
    let begin = claim(at).print(record.fingerprint());
    assert!(matches!(
        store.begin(&begin).await.unwrap(),
        ClaimOutcome::Started { .. }
    ));
    let held = store.complete(&begin.slot, begin.token, record, HOUR).await.unwrap();
    assert_eq!(held, Held::Yes);
    kept(shelf).pop().unwrap()
}

async fn corrupt(store: &impl Store, at: u64, of: u8) -> String {
    let error = store.begin(&claim_of(at, of)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
    error.to_string()
}

/// Gives changed bytes the checksum that belongs to them, as one does who changes them on purpose.
fn with_checksum(record: &[u8]) -> Vec<u8> {
    [record, &Sha256::digest(record)[..8]].concat()
}

#[tokio::test]
async fn records_rotate_from_key_to_key() {
    let shelf = Scripted::default();
    let record = answer(1, "first");
    run(&sealed(shelf.clone()), &shelf, 1, &record).await;
    let both = Sealed::new(shelf.clone(), KeyRing::new(OTHER).with_former([3; 32]).with_former(KEY)).unwrap();
    assert_eq!(both.begin(&claim_of(1, 1)).await.unwrap(), ClaimOutcome::Done(record));
    // What is sealed meanwhile opens under the new key alone, and what was sealed before does not.
    let second = answer(2, "second");
    run(&both, &shelf, 2, &second).await;
    let new = Sealed::new(shelf.clone(), KeyRing::new(OTHER)).unwrap();
    assert_eq!(new.begin(&claim_of(2, 2)).await.unwrap(), ClaimOutcome::Done(second));
    let error = corrupt(&new, 1, 1).await;
    let name = kept(&shelf)[0][20..28]
        .iter()
        .fold(String::new(), |name, byte| format!("{name}{byte:02x}"));
    assert!(error.contains(&name) && error.contains("with_former"), "{error}");
    let debug = format!("{:?}", sealed(MemoryStore::new()));
    assert!(debug.contains(&name), "{debug}");
}

#[tokio::test]
async fn contract_6_5_a_record_does_not_open_in_another_slot_or_for_another_request() {
    let (shelf, record) = (Scripted::default(), answer(1, "mine"));
    let store = sealed(shelf.clone());
    let stored = run(&store, &shelf, 1, &record).await;
    shelf.plant(slot(1), stored.clone());
    assert_eq!(store.begin(&claim_of(1, 1)).await.unwrap(), ClaimOutcome::Done(record));
    shelf.plant(slot(2), stored.clone());
    let error = corrupt(&store, 2, 1).await;
    assert!(error.contains("moved from another slot"), "{error}");
    // An older request's record of the same slot.
    let error = corrupt(&store, 1, 2).await;
    assert!(error.contains("belongs to another request"), "{error}");
    // With the fingerprint changed to fit.
    let mut changed = stored[..stored.len() - 8].to_vec();
    changed[4..20].copy_from_slice(print(2).as_bytes());
    shelf.plant(slot(1), with_checksum(&changed));
    let error = corrupt(&store, 1, 2).await;
    assert!(error.contains("cannot be opened"), "{error}");
}

#[tokio::test]
async fn contract_5_9_a_record_sealed_under_another_rule_opens() {
    let (shelf, record) = (Scripted::default(), answer(1, "mine"));
    let store = sealed(shelf.clone());
    let stored = run(&store, &shelf, 1, &record).await;
    let under_another_rule = |at| claim(at).print(print_under_another_rule(1));
    let begun = store.begin(&under_another_rule(1)).await.unwrap();
    assert_eq!(begun, ClaimOutcome::Done(record));
    // In its own slot only, and with its own fingerprint only.
    shelf.plant(slot(2), stored.clone());
    let error = store.begin(&under_another_rule(2)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
    let mut changed = stored[..stored.len() - 8].to_vec();
    changed[4..20].copy_from_slice(print_under_another_rule(1).as_bytes());
    shelf.plant(slot(1), with_checksum(&changed));
    let error = store.begin(&claim_of(1, 1)).await.unwrap_err();
    assert!(error.to_string().contains("cannot be opened"), "{error}");
}

#[tokio::test]
async fn contract_6_5_no_byte_of_a_sealed_record_can_be_changed() {
    let shelf = Scripted::default();
    let store = sealed(shelf.clone());
    for (at, record) in [
        (1, answer(1, "a body")),
        (2, Record::outcome_unknown(print(1))),
        (3, Record::response_not_retained(print(1), StatusCode::CREATED)),
    ] {
        let stored = run(&store, &shelf, at, &record).await;
        let whole = &stored[..stored.len() - 8];
        for byte in 0..whole.len() {
            for bit in [0x01, 0x80] {
                let mut damaged = whole.to_vec();
                damaged[byte] ^= bit;
                shelf.plant(slot(at), with_checksum(&damaged));
                corrupt(&store, at, 1).await;
                shelf.plant(slot(at), [&damaged[..], &stored[whole.len()..]].concat());
                corrupt(&store, at, 1).await;
            }
            shelf.plant(slot(at), with_checksum(&whole[..byte]));
            corrupt(&store, at, 1).await;
        }
        shelf.plant(slot(at), with_checksum(&[whole, &[0]].concat()));
        corrupt(&store, at, 1).await;
        shelf.unplant();
        assert_eq!(store.begin(&claim_of(at, 1)).await.unwrap(), ClaimOutcome::Done(record));
    }
}

#[tokio::test]
async fn contract_6_5_an_unsealed_record_is_refused_unless_it_is_accepted() {
    let shelf = Scripted::default();
    let record = answer(1, "planted, or from before");
    shelf.plant(slot(1), record.to_bytes());
    let error = corrupt(&sealed(shelf.clone()), 1, 1).await;
    assert!(error.contains("accept_unsealed(true)"), "{error}");
    let builder = || Sealed::builder(shelf.clone(), KeyRing::new(KEY));
    let lenient = builder().accept_unsealed(true).build().unwrap();
    assert_eq!(
        lenient.begin(&claim_of(1, 1)).await.unwrap(),
        ClaimOutcome::Done(record)
    );
    corrupt(&lenient, 1, 2).await;
    // It still seals what it writes, and still wants sealed records whole.
    let stored = run(&lenient, &shelf, 2, &answer(2, "second")).await;
    assert_eq!(stored[1], 3);
    shelf.plant(slot(3), stored);
    corrupt(&lenient, 3, 2).await;
    let strict = builder().accept_unsealed(true).accept_unsealed(false).build().unwrap();
    corrupt(&strict, 1, 1).await;
}

#[test]
fn keys_that_cannot_be_meant_are_refused() {
    let refused = |keys: KeyRing| {
        let error = Sealed::new(MemoryStore::new(), keys).unwrap_err();
        assert_eq!(error.option(), "keys");
        error.to_string()
    };
    assert!(refused(KeyRing::new([0; 32])).contains("zeros"));
    assert!(refused(KeyRing::new(KEY).with_former([0; 32])).contains("zeros"));
    assert!(refused(KeyRing::new(KEY).with_former(KEY)).contains("twice"));
    assert!(refused(KeyRing::new(KEY).with_former(OTHER).with_former(OTHER)).contains("twice"));
    assert!(Sealed::new(MemoryStore::new(), KeyRing::new(KEY).with_former(OTHER)).is_ok());
}

#[test]
fn debug_shows_names_and_no_keys() {
    let key: [u8; 32] = std::array::from_fn(|at| 0xa0 + at as u8);
    let keys = || KeyRing::new(key).with_former(OTHER);
    let builder = Sealed::builder(MemoryStore::new(), keys());
    for debug in [
        format!("{:?}", keys()),
        format!("{:#?} {builder:?}", keys()),
        format!("{:?}", builder.build().unwrap()),
    ] {
        for shown in ["a0a1", "a0, a1", "160, 161", "2222", "22, 22", "34, 34"] {
            assert!(!debug.to_lowercase().contains(shown), "{shown} in {debug}");
        }
        assert!(debug.contains("current") && debug.contains("former"), "{debug}");
    }
}

#[tokio::test]
async fn what_a_store_holds_differs_each_time_and_tells_nothing() {
    let shelf = Scripted::default();
    let store = sealed(shelf.clone());
    let record = answer(1, "HUSH-body");
    let mut seen = HashSet::new();
    let mut tails = HashSet::new();
    for _ in 0..20 {
        let stored = run(&store, &shelf, 1, &record).await;
        assert!(!stored.windows(4).any(|window| window == b"HUSH"));
        assert_eq!(stored.len(), record.to_bytes().len() + 68);
        tails.insert(stored[stored.len() - 30..stored.len() - 8].to_vec());
        seen.insert(stored[28..52].to_vec());
        assert!(store.forget(&slot(1)).await.unwrap());
    }
    assert_eq!((seen.len(), tails.len()), (20, 20), "nonces and ciphertexts");
    assert!(record.to_bytes().windows(4).any(|window| window == b"HUSH"));
}

/// Answers with its number, and with what must not be seen in the store.
fn service<St: Store>(layer: &IdempotencyLayer<St>, runs: &Count) -> IdempotencyService<Inner, St> {
    let runs = runs.clone();
    layer.layer(inner(move |_: Request<Body>| {
        let mut response = ok(format!("HUSH-body of run {}", runs.up()));
        *response.status_mut() = StatusCode::CREATED;
        let headers = response.headers_mut();
        headers.insert("x-token", HeaderValue::from_static("HUSH-header"));
        headers.append("link", HeaderValue::from_static("</HUSH-a>"));
        headers.append("link", HeaderValue::from_static("</HUSH-b>"));
        std::future::ready(response)
    }))
}

#[tokio::test(start_paused = true)]
async fn contract_5_1_a_sealed_answer_is_replayed_byte_for_byte() {
    let (shelf, runs) = (Scripted::default(), Count::default());
    let service_ = service(&IdempotencyLayer::new(sealed(shelf.clone())), &runs);
    let first = send(&service_, post("/", "k", "b")).await;
    assert_eq!(first.status, 201);
    send(&service_, post("/", "k", "b")).await.assert_replay_of(&first);
    send(&service_, post("/", "k", "c"))
        .await
        .assert_problem(422, "key-reused");
    assert_eq!(runs.get(), 1);
    let kept = kept(&shelf);
    assert_eq!(kept.len(), 1);
    for hidden in [&b"HUSH"[..], b"x-token", b"run 1"] {
        assert!(!kept[0].windows(hidden.len()).any(|window| window == hidden));
    }
    // In memory alone as well, where futures have to be ready at once.
    let memory = service(&IdempotencyLayer::new(sealed(MemoryStore::new())), &runs);
    let first = send(&memory, post("/", "k", "b")).await;
    send(&memory, post("/", "k", "b")).await.assert_replay_of(&first);
}

fn assert_unavailable(answer: &Answer) {
    answer.assert_problem(503, "store-unavailable");
    assert!(answer.header("retry-after").is_some());
    assert!(!answer.text().contains("HUSH"));
}

#[tokio::test(start_paused = true)]
async fn contract_6_5_what_does_not_open_is_503_and_never_a_wrong_replay() {
    let (shelf, runs) = (Scripted::default(), Count::default());
    let layer = IdempotencyLayer::new(sealed(shelf.clone()));
    let at = |key| layer.slot(None, key).unwrap();
    let service_ = service(&layer, &runs);
    let first = send(&service_, post("/", "k", "b")).await;
    send(&service_, post("/", "other", "b")).await;
    let kept = kept(&shelf);
    let mut damaged = kept[0][..kept[0].len() - 8].to_vec();
    damaged[60] ^= 1;
    shelf.plant(at("k"), with_checksum(&damaged));
    assert_unavailable(&send(&service_, post("/", "k", "b")).await);
    // The other key's answer to the very same request.
    shelf.plant(at("k"), kept[1].clone());
    assert_unavailable(&send(&service_, post("/", "k", "b")).await);
    shelf.plant(at("k"), kept[0].clone());
    send(&service_, post("/", "k", "b")).await.assert_replay_of(&first);
    // A host whose key is another, and one that does not unseal.
    let foreign = Sealed::new(shelf.clone(), KeyRing::new(OTHER)).unwrap();
    let foreign = service(&IdempotencyLayer::new(foreign), &runs);
    assert_unavailable(&send(&foreign, post("/", "k", "b")).await);
    let plain = service(&IdempotencyLayer::new(shelf.clone()), &runs);
    assert_unavailable(&send(&plain, post("/", "k", "b")).await);
    assert_eq!(runs.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_sealed_store_is_inspected_and_settled() {
    let shelf = Scripted::default();
    let store = sealed(shelf.clone());
    let begin = claim_of(1, 1);
    store.begin(&begin).await.unwrap();
    tokio::time::sleep(HOUR).await;
    assert_eq!(store.count().await.unwrap(), Census::new(0, 1, 0));
    let answer = Response::new(Bytes::from_static(b"HUSH"));
    assert!(store.settle(&slot(1), &answer, HOUR).await.unwrap());
    assert_eq!(kept(&shelf)[0][1], 3);
    let expected = Record::of_response(print(1), &answer);
    assert_eq!(
        store.begin(&claim_of(1, 1)).await.unwrap(),
        ClaimOutcome::Done(expected)
    );
    assert!(store.look_up(&slot(1)).await.unwrap().is_some());
    assert!(store.forget(&slot(1)).await.unwrap());
    assert!(store.look_up(&slot(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_unit_of_work_commits_a_sealed_record() {
    let (shelf, work) = (Scripted::default(), Work::ending(Commit::Lost));
    let store = sealed(shelf.clone());
    assert!(store.unit_of_work(&claim_of(1, 1)).is_none());
    shelf.offer(work.clone());
    let unit = store.unit_of_work(&claim_of(1, 1)).unwrap();
    let mut extensions = Extensions::new();
    unit.offer(&mut extensions);
    assert_eq!(extensions.get(), Some(&7u8));
    assert!(unit.is_begun());
    let record = answer(1, "HUSH");
    assert!(matches!(unit.commit(&record, HOUR).await, Commit::Lost));
    assert!(unit.was_committed().await.unwrap());
    unit.roll_back().await;
    let asked = work.asked();
    let [
        Asked::Offer,
        Asked::IsBegun,
        Asked::Commit(kept, ttl),
        Asked::WasCommitted,
        Asked::RollBack,
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!(*ttl, HOUR);
    assert!(!kept.to_bytes().windows(4).any(|window| window == b"HUSH"));
    shelf.plant(slot(1), kept.to_bytes());
    assert_eq!(store.begin(&claim_of(1, 1)).await.unwrap(), ClaimOutcome::Done(record));
}
