//! Values that are not what the store wrote.

use super::*;

#[tokio::test]
async fn contract_6_5_what_cannot_be_read_is_never_claimed_over() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let key = store.key(&slot(1));
    let good = record(b"answer").to_bytes();
    let mut damaged = good.clone();
    damaged[30] ^= 1;
    let mut print_damaged = good.clone();
    print_damaged[5] ^= 1;
    let newer = [&[2_u8][..], &good[1..]].concat();
    let claimed = format!("claim {:016x} {} 1 1000 {}", 9, "ab".repeat(16), "0".repeat(32));
    let later = claimed.replace("claim", "claim2");
    let short = claimed.replacen("abab", "ab", 1);
    let values: [&[u8]; 8] = [
        &damaged,
        &print_damaged,
        &good[..10],
        &newer,
        b"",
        b"somebody else's",
        later.as_bytes(),
        short.as_bytes(),
    ];
    for value in values {
        let mut set = cmd("SET");
        set.arg(&key).arg(value).arg("PX").arg(3_600_000);
        let () = set.query_async(&mut raw).await.unwrap();
        let name = String::from_utf8_lossy(value);
        for on_lapse in [OnLapse::RunAgain, OnLapse::Refuse] {
            let answer = store.begin(&claim(1).on_lapse(on_lapse)).await;
            assert_fails(answer, StoreErrorKind::Corrupt, "redis: begin: ");
        }
        let token = Token(9);
        let text = !value.is_empty() && value[0] >= 32;
        for (op, answer) in [
            ("renew", store.renew(&slot(1), token, HOUR).await),
            ("complete", store.complete(&slot(1), token, &record(b""), HOUR).await),
            ("release", store.release(&slot(1), token).await),
        ] {
            match text {
                true => assert_fails(answer, StoreErrorKind::Corrupt, &format!("redis: {op}: ")),
                // Nobody's claim, whatever it is.
                false => assert_eq!(answer.unwrap(), Held::Lost, "{op} of {name}"),
            }
        }
        let held: Vec<u8> = query(&mut raw, &format!("GET {key}")).await;
        assert_eq!(held, value, "nothing was changed");
    }
    // A claim that never ends is not one of ours, unless its holder gives it an end.
    let () = cmd("SET").arg(&key).arg(&claimed).query_async(&mut raw).await.unwrap();
    assert_fails(store.begin(&claim(1)).await, StoreErrorKind::Corrupt, "redis: begin: ");
    for answer in [
        store.renew(&slot(1), Token(9), HOUR).await,
        store.release(&slot(1), Token(9)).await,
    ] {
        assert_fails(answer, StoreErrorKind::Corrupt, "prefix");
    }
    let held = store.complete(&slot(1), Token(9), &record(b""), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    let () = query(&mut raw, &format!("SET {key} claim-of-another")).await;
    assert_fails(store.look_up(&slot(1)).await, StoreErrorKind::Corrupt, "prefix");
    let () = cmd("SET").arg(&key).arg(&newer).query_async(&mut raw).await.unwrap();
    assert_fails(store.look_up(&slot(1)).await, StoreErrorKind::Corrupt, "newer release");

    let () = query(&mut raw, &format!("DEL {key}")).await;
    let () = query(&mut raw, &format!("HSET {key} field 1")).await;
    let token = Token(9);
    assert_fails(
        store.begin(&claim(1)).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
    assert_fails(
        store.renew(&slot(1), token, HOUR).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
    let answer = store.complete(&slot(1), token, &record(b""), HOUR).await;
    assert_fails(answer, StoreErrorKind::Corrupt, "another application");
    assert_fails(
        store.release(&slot(1), token).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
    assert_fails(
        store.look_up(&slot(1)).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
    assert_eq!(query::<u32>(&mut raw, &format!("HLEN {key}")).await, 1);
    assert!(store.forget(&slot(1)).await.unwrap());
    assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
}
