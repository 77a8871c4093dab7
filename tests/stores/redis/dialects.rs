//! Servers that do not know the command that claims, or mean something else by it.

use std::net::Ipv4Addr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What becomes of `SET … NX GET …`.
#[derive(Clone, Copy, Debug)]
enum Means {
    /// As of Redis before version 7.
    SyntaxError,
    /// As if `GET` were not there: nil if the key is taken.
    NothingByGet,
}

/// A server before a real one, which is asked all but that.
async fn before(server: &Redis, means: Means) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let port = server.port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            tokio::spawn(relay(client, server, means));
        }
    });
    url
}

async fn relay(client: TcpStream, server: TcpStream, means: Means) {
    let (commands, mut answers) = client.into_split();
    let (replies, mut server) = server.into_split();
    let (mut commands, mut replies) = (BufReader::new(commands), BufReader::new(replies));
    while let Some(mut words) = command(&mut commands).await {
        let claims = words[0].eq_ignore_ascii_case(b"SET") && words.iter().any(|word| word == b"GET");
        if claims {
            match means {
                Means::SyntaxError => {
                    answers.write_all(b"-ERR syntax error\r\n").await.unwrap();
                    continue;
                }
                Means::NothingByGet => words.retain(|word| word != b"GET"),
            }
        }
        put(&mut server, &words).await;
        let mut reply = Vec::new();
        read_reply(&mut replies, &mut reply).await;
        answers.write_all(&reply).await.unwrap();
    }
}

async fn command(from: &mut BufReader<OwnedReadHalf>) -> Option<Vec<Vec<u8>>> {
    let mut line = String::new();
    from.read_line(&mut line).await.ok().filter(|&length| length > 0)?;
    let count: usize = line.trim().strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        line.clear();
        from.read_line(&mut line).await.ok()?;
        let length: usize = line.trim().strip_prefix('$')?.parse().ok()?;
        let mut word = vec![0; length + 2];
        from.read_exact(&mut word).await.ok()?;
        word.truncate(length);
        words.push(word);
    }
    Some(words)
}

async fn put(to: &mut OwnedWriteHalf, words: &[Vec<u8>]) {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    to.write_all(&bytes).await.unwrap();
}

/// One reply, with all that is in it.
async fn read_reply(from: &mut BufReader<OwnedReadHalf>, reply: &mut Vec<u8>) {
    let mut left = 1;
    while left > 0 {
        left -= 1;
        let start = reply.len();
        from.read_until(b'\n', reply).await.unwrap();
        let line = String::from_utf8(reply[start..].to_vec()).unwrap();
        let number = || line[1..].trim().parse::<i64>().unwrap();
        match line.as_bytes()[0] {
            b'$' if number() >= 0 => {
                let length = usize::try_from(number()).unwrap() + 2;
                let mut bulk = vec![0; length];
                from.read_exact(&mut bulk).await.unwrap();
                reply.extend_from_slice(&bulk);
            }
            b'*' => left += number().max(0),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_server_that_claims_in_another_way_is_asked_by_the_script() {
    let Some(server) = Redis::start() else { return };
    let plain = store(&server).await;
    for (number, means) in [(0, Means::SyntaxError), (100, Means::NothingByGet)] {
        let url = before(&server, means).await;
        let (free, taken, done) = (claim(number), claim(number + 1), claim(number + 2));
        plain.begin(&taken).await.unwrap();
        plain.begin(&done).await.unwrap();
        let held = plain.complete(&done.slot, done.token, &record(b"answer"), HOUR).await;
        assert_eq!(held.unwrap(), Held::Yes);
        // Whatever is met first, on a connection of which nothing is known.
        for first in 0..3 {
            let store = RedisStore::connect(&url).await.unwrap();
            for turn in 0..3 {
                match (first + turn) % 3 {
                    0 => assert_eq!(store.begin(&free).await.unwrap(), STARTED, "{means:?}"),
                    1 => assert!(
                        matches!(
                            store.begin(&claim(number + 1)).await.unwrap(),
                            ClaimOutcome::InFlight { .. }
                        ),
                        "{means:?}"
                    ),
                    _ => assert_eq!(
                        store.begin(&claim(number + 2)).await.unwrap(),
                        ClaimOutcome::Done(record(b"answer")),
                        "{means:?}"
                    ),
                }
            }
            assert_eq!(store.release(&free.slot, free.token).await.unwrap(), Held::Yes);
        }
    }
}

#[tokio::test]
async fn large_records_on_a_server_that_is_asked_by_the_script() {
    let Some(server) = Redis::start() else { return };
    let url = before(&server, Means::SyntaxError).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    let large = Record::of_response(PRINT, &Response::new(Bytes::from(vec![7; 1 << 16])));
    let held = store.complete(&slot(1), begin.token, &large, HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    assert_eq!(store.begin(&claim(1)).await.unwrap(), ClaimOutcome::Done(large));
}
