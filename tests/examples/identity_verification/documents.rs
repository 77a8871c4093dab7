//! Documents, over real HTTP and on every store: a file is there if and only if its document is.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::process::Server;
use super::request::{Answer, BILLING, Call, SESSIONS};
use super::stores::{Store, tests};
use crate::support::directory::Directory;
use crate::support::eventually;
use crate::support::servers::postgres::Postgres;
use crate::support::servers::proxy::Proxy;

/// One server.
mod alone {
    use super::tests;

    tests!(memory, sqlite, postgres, redis: {
        a_document_is_kept_and_charged_once_whatever_the_boundary,
        contract_8_3_another_content_under_the_key_is_refused,
        a_document_without_a_form_has_no_file_name,
        what_is_no_document_is_refused_and_leaves_no_file,
        a_bad_upload_has_its_answer_and_leaves_nothing,
        a_form_of_many_or_odd_parts_is_kept_once,
        contract_8_4_an_upload_beyond_the_limit_leaves_no_file,
        contract_8_4_an_upload_that_breaks_off_leaves_nothing_and_may_be_sent_again,
        contract_8_2_a_duplicate_of_an_upload_in_flight_is_refused_before_its_body,
        over_http_2_an_upload_is_cut_refused_kept_and_replayed,
        what_was_never_finished_is_removed_at_the_start,
    });
}

/// Several servers on one store.
mod together {
    use super::tests;

    tests!(sqlite, postgres, redis: {
        a_file_whose_row_was_committed_gets_its_place_at_the_start,
        a_server_that_starts_leaves_the_uploads_of_another_alone,
    });
}

/// Uploads without a key, which their handler commits, and whose commit has to wait.
mod in_doubt {
    use super::Waiting;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_that_leaves_during_the_commit_leaves_a_document_with_its_file() {
        if let Some(waiting) = Waiting::start().await {
            waiting.commit_without_its_client().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_commit_that_is_done_after_its_connection_broke_leaves_a_document_with_its_file() {
        if let Some(waiting) = Waiting::start().await {
            waiting.commit_without_its_connection().await;
        }
    }
}

const DOCUMENT: &str = "the bytes of a picture";

/// A directory for documents, and a server that uses it.
struct Uploads {
    server: Server,
    directory: Directory,
}

impl Uploads {
    fn on(store: &Store, options: &[&str]) -> Self {
        let directory = Directory::new();
        let server = serve(store, &directory, options);
        Self { server, directory }
    }

    /// The path of a new session's documents.
    async fn session(&self) -> String {
        let created = self.server.send(&Call::session("usr_1", "any")).await.expect(201);
        format!(
            "{SESSIONS}/{}/documents",
            created.json()["session_id"].as_str().unwrap()
        )
    }

    async fn list(&self, path: &str) -> Vec<Value> {
        self.server.documents(path).await
    }

    /// How many documents are charged for.
    async fn charged(&self) -> usize {
        let bill = self
            .server
            .send(&Call::get(BILLING).from("sk_test_acme"))
            .await
            .expect(200);
        let charges = bill.json()["charges"].as_array().unwrap().clone();
        let of_documents = charges.iter().filter(|charge| charge["operation"] == "document");
        of_documents
            .inspect(|charge| assert_eq!(charge["amount_cents"], 20))
            .count()
    }

    fn files(&self) -> Vec<PathBuf> {
        files_in(&self.directory.path(""))
    }

    async fn has_no_files(&self) {
        eventually("no file is left", async || self.files().is_empty()).await;
    }

    /// The application refuses the upload, without a key and under `k-1`, and leaves no file.
    async fn refuses(&self, status: u16, call: Call) {
        for call in [call.clone(), call.key("k-1")] {
            let answer = self.server.send(&call).await.expect_error(status);
            assert!(!answer.is_replay());
            self.has_no_files().await;
        }
    }

    /// There is no document and no charge, and the key `k-1` is free.
    async fn has_kept_nothing(&self, path: &str) {
        self.has_no_files().await;
        assert!(self.list(path).await.is_empty());
        assert_eq!(self.charged().await, 0);
        let first = self.server.send(&passport(path, "b").key("k-1")).await.expect(201);
        assert!(!first.is_replay(), "the key is free");
    }
}

fn serve(store: &Store, directory: &Directory, options: &[&str]) -> Server {
    let path = directory.path("");
    let options = [&["--data-dir", path.to_str().unwrap()], options].concat();
    store.server(&options)
}

/// All files, however deep.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_in(&path));
        } else {
            files.push(path);
        }
    }
    files
}

fn form(boundary: &str, kind: &str, content: &str) -> String {
    format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"kind\"\r\n\r\n{kind}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"p.jpg\"\r\n\
         Content-Type: image/jpeg\r\n\r\n{content}\r\n--{boundary}--\r\n"
    )
}

fn upload(path: &str, boundary: &str, body: String) -> Call {
    Call::post(path, body)
        .header("content-type", &format!("multipart/form-data; boundary={boundary}"))
        .from("sk_test_acme")
}

fn passport(path: &str, boundary: &str) -> Call {
    upload(path, boundary, form(boundary, "passport", DOCUMENT))
}

fn sha256(content: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(content).into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn a_document_is_kept_and_charged_once_whatever_the_boundary(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let first = uploads
        .server
        .send(&passport(&path, "one").key("k-1"))
        .await
        .expect(201);
    assert!(!first.is_replay());
    let document = first.json();
    let id = document["document_id"].as_str().unwrap();
    let session = path.split('/').nth_back(1).unwrap();
    let expected = json!({
        "document_id": id,
        "session_id": session,
        "kind": "passport",
        "file_name": "p.jpg",
        "bytes": DOCUMENT.len(),
        "sha256": sha256(DOCUMENT),
    });
    assert_eq!(document, expected);
    let location = first.header("location").unwrap();
    let shown = uploads.server.send(&Call::get(location).from("sk_test_acme")).await;
    assert_eq!(shown.expect(200).json(), expected);

    for boundary in ["one", "another", "a-third"] {
        let replay = uploads
            .server
            .send(&passport(&path, boundary).key("k-1"))
            .await
            .expect(201);
        assert!(replay.is_replay());
        assert_eq!(
            (replay.json(), replay.header("location")),
            (expected.clone(), Some(location))
        );
    }
    assert_eq!(uploads.list(&path).await, [expected]);
    assert_eq!(uploads.charged().await, 1);
    let files = eventually("the file has its place", async || {
        let files = uploads.files();
        files
            .iter()
            .all(|file| file.parent().unwrap().ends_with("documents"))
            .then_some(files)
    })
    .await;
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), DOCUMENT);
    let others = uploads.server.send(&Call::get(&path).from("sk_test_globex")).await;
    others.expect_error(404);
}

async fn contract_8_3_another_content_under_the_key_is_refused(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    uploads.server.send(&passport(&path, "b").key("k-1")).await.expect(201);
    for (kind, content) in [("passport", "another picture"), ("selfie", DOCUMENT)] {
        let other = upload(&path, "b", form("b", kind, content)).key("k-1");
        uploads.server.send(&other).await.expect_problem(422, "key-reused");
    }
    let elsewhere = uploads.session().await;
    uploads
        .server
        .send(&passport(&elsewhere, "b").key("k-1"))
        .await
        .expect_problem(422, "key-reused");
    assert_eq!((uploads.charged().await, uploads.files().len()), (1, 1));
}

async fn a_document_without_a_form_has_no_file_name(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    for (content_type, kind) in [
        ("image/jpeg", "id_card"),
        ("image/png", "selfie"),
        ("application/pdf", "passport"),
    ] {
        let raw = Call::post(&format!("{path}?kind={kind}"), DOCUMENT)
            .header("content-type", content_type)
            .from("sk_test_acme")
            .key(kind);
        let document = uploads.server.send(&raw).await.expect(201).json();
        assert_eq!(
            (&document["kind"], &document["file_name"]),
            (&json!(kind), &Value::Null)
        );
        assert_eq!(document["sha256"], sha256(DOCUMENT));
        assert!(uploads.server.send(&raw).await.is_replay());
    }
    let kinds: Vec<_> = uploads
        .list(&path)
        .await
        .into_iter()
        .map(|document| document["kind"].clone())
        .collect();
    assert_eq!(kinds, ["id_card", "selfie", "passport"], "oldest first");
    assert_eq!(uploads.charged().await, 3);
}

async fn what_is_no_document_is_refused_and_leaves_no_file(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let part = |name: &str, content: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{content}\r\n")
    };
    let parts = |parts: &[String]| upload(&path, "b", parts.concat() + "--b--\r\n");
    let raw = |query: &str, content_type: &str, body: &str| {
        Call::post(&format!("{path}{query}"), body)
            .header("content-type", content_type)
            .from("sk_test_acme")
    };
    let (kind, file) = (part("kind", "passport"), part("file", DOCUMENT));
    for (status, call) in [
        (422, parts(std::slice::from_ref(&file))),
        (422, parts(std::slice::from_ref(&kind))),
        (422, parts(&[part("kind", "driving_licence"), file.clone()])),
        (422, parts(&[file.clone(), part("kind", &"x".repeat(1000))])),
        (422, parts(&[kind.clone(), file.clone(), file.clone()])),
        (422, parts(&[kind.clone(), kind.clone(), file.clone()])),
        (422, parts(&[kind.clone(), part("file", "")])),
        (400, upload(&path, "b", file.clone())),
        (422, raw("", "image/png", DOCUMENT)),
        (422, raw("?kind=map", "image/png", DOCUMENT)),
        (422, raw("?kind=selfie", "image/png", "")),
        (415, raw("?kind=selfie", "image/gif", DOCUMENT)),
        (415, Call::post(&path, "{}").from("sk_test_acme")),
        (404, passport(&path, "b").from("sk_test_globex")),
        (404, passport(&format!("{SESSIONS}/vs_none/documents"), "b")),
        (401, passport(&path, "b").from("sk_unknown")),
    ] {
        uploads.refuses(status, call).await;
    }
    uploads.has_kept_nothing(&path).await;
}

async fn a_bad_upload_has_its_answer_and_leaves_nothing(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let whole = form("b", "passport", DOCUMENT);
    let typed = |content_type: &str| {
        Call::post(&path, whole.clone())
            .header("content-type", content_type)
            .from("sk_test_acme")
    };
    let cut = |at: &str| upload(&path, "b", whole.split_once(at).unwrap().0.to_owned());
    let unnamed = whole.replace("Content-Disposition", "Content-Dispositio");
    for (status, call) in [
        (400, typed("multipart/form-data")),
        (400, typed("multipart/form-data; boundary=")),
        (400, typed("multipart/form-data; boundary=another")),
        (400, upload(&path, "b", String::new())),
        (400, cut("--b--")),
        (400, cut(DOCUMENT)),
        (400, cut("name=\"file\"")),
        (422, upload(&path, "b", unnamed)),
    ] {
        uploads.refuses(status, call).await;
    }
    for digest in [
        "sha-256=nonsense",
        "sha-256=:AAAA:",
        &format!("sha-256=:{}=:", "A".repeat(43)),
    ] {
        let call = passport(&path, "b").key("k-1").header("content-digest", digest);
        let answer = uploads.server.send(&call).await;
        answer.expect_problem(400, "digest-mismatch");
        uploads.has_no_files().await;
    }
    // What is left of a body that is longer than it says is the next request of its connection, and a bad one.
    let sent = passport(&path, "b").key("k-1").on_the_wire();
    let (length, shorter) = (whole.len(), whole.len() - 40);
    let sent = sent.replace(&format!("{length}\r\n"), &format!("{shorter}\r\n"));
    let mut connection = uploads.server.connect(&sent).await;
    let answer = head_of(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).await.unwrap();
    uploads.has_kept_nothing(&path).await;
}

/// More parts than are compared one by one, headers longer than are looked at, and a digest that nobody knows.
async fn a_form_of_many_or_odd_parts_is_kept_once(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let whole = form("b", "passport", DOCUMENT);
    let part = "--b\r\nContent-Disposition: form-data; name=\"n\"\r\n\r\n\r\n";
    let long = format!("--b\r\nX-Long: {}\r\n", "x".repeat(1 << 20));
    for (number, call) in [
        upload(&path, "b", part.repeat(10_001) + &whole),
        upload(&path, "b", whole.replacen("--b\r\n", &long, 1)),
        passport(&path, "b").header("content-digest", "md5=:AAAA:"),
    ]
    .into_iter()
    .enumerate()
    {
        let call = call.key(&format!("k-{number}"));
        let first = uploads.server.send(&call).await.expect(201);
        let again = uploads.server.send(&call).await.expect(201);
        assert!(!first.is_replay() && again.is_replay());
        assert_eq!(first.json(), again.json());
        assert_eq!(
            (uploads.charged().await, uploads.files().len()),
            (number + 1, number + 1)
        );
    }
}

async fn contract_8_4_an_upload_beyond_the_limit_leaves_no_file(store: &Store) {
    let uploads = Uploads::on(store, &["--max-upload", "1000"]);
    let path = uploads.session().await;
    let large = upload(&path, "b", form("b", "passport", &"x".repeat(2000)));
    uploads.server.send(&large).await.expect_error(413);
    uploads
        .server
        .send(&large.clone().key("k-1"))
        .await
        .expect_problem(413, "body-too-large");
    uploads.has_no_files().await;
    uploads.server.send(&passport(&path, "b").key("k-1")).await.expect(201);
    assert_eq!((uploads.charged().await, uploads.files().len()), (1, 1));
}

async fn contract_8_4_an_upload_that_breaks_off_leaves_nothing_and_may_be_sent_again(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let last_bytes = |all: &str| all.len() - 1;
    let boundary = |all: &str| all.len() - 12;
    let content = |all: &str| all.find(DOCUMENT).unwrap() + 5;
    let ends: [fn(&str) -> usize; 3] = [last_bytes, boundary, content];
    for (done, end) in ends.into_iter().enumerate() {
        let call = passport(&path, "b").key(&format!("k-{done}"));
        let whole = call.on_the_wire();
        let connection = uploads.server.connect(&whole[..end(&whole)]).await;
        eventually("the file is being written", async || uploads.files().len() == done + 1).await;
        drop(connection);
        eventually("the file is gone", async || uploads.files().len() == done).await;
        let first = eventually("the key is free", async || {
            let answer = uploads.server.send(&call).await;
            (answer.status != 409).then_some(answer)
        })
        .await;
        assert!(!first.expect(201).is_replay());
        assert_eq!(
            (uploads.charged().await, uploads.list(&path).await.len()),
            (done + 1, done + 1)
        );
    }
}

/// The head of an answer that the client gets before it has sent its body.
async fn head_of(connection: &mut tokio::net::TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn contract_8_2_a_duplicate_of_an_upload_in_flight_is_refused_before_its_body(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let call = passport(&path, "b").key("k-1");
    let whole = call.on_the_wire();
    let half = whole.find(DOCUMENT).unwrap() + 5;
    let mut connection = uploads.server.connect(&whole[..half]).await;
    eventually("the file is being written", async || uploads.files().len() == 1).await;
    let expecting = call.clone().header("expect", "100-continue").on_the_wire();
    let (head, _) = expecting.split_once("\r\n\r\n").unwrap();
    let mut duplicate = uploads.server.connect(&format!("{head}\r\n\r\n")).await;
    let answer = head_of(&mut duplicate).await;
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    connection.write_all(&whole.as_bytes()[half..]).await.unwrap();
    let answer = head_of(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert!(uploads.server.send(&call).await.expect(201).is_replay());
    assert_eq!(uploads.charged().await, 1);
}

/// Each request is a stream of one connection, which goes on when one is reset.
async fn over_http_2_an_upload_is_cut_refused_kept_and_replayed(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let origin = &uploads.server.origin;
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<BoxBody<Bytes, io::Error>>();
    let send = async |call: &Call| {
        let request = call.at(origin).map(|body| body.map_err(|never| match never {}).boxed());
        let response = client.request(request).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        Answer::of(response).await
    };
    let call = passport(&path, "b").key("k-1");

    let (frames, sent) = mpsc::channel(1);
    let frames_sent = stream::unfold(sent, |mut sent| async move { Some((sent.recv().await?, sent)) });
    let (head, body) = call.at(origin).into_parts();
    let half = form("b", "passport", DOCUMENT).find(DOCUMENT).unwrap() + 5;
    let half = body.collect().await.unwrap().to_bytes().slice(..half);
    let request = Request::from_parts(head, BodyExt::boxed(StreamBody::new(frames_sent)));
    let cut = tokio::spawn(client.request(request));
    frames.send(Ok(Frame::data(half))).await.unwrap();
    eventually("the file is being written", async || uploads.files().len() == 1).await;
    send(&call).await.expect_problem(409, "in-flight");
    frames.send(Err(io::ErrorKind::ConnectionReset.into())).await.unwrap();
    assert!(cut.await.unwrap().is_err());
    uploads.has_no_files().await;

    let first = eventually("the key is free", async || {
        let answer = send(&call).await;
        (answer.status != 409).then_some(answer)
    })
    .await
    .expect(201);
    assert!(!first.is_replay());
    let again = send(&passport(&path, "another").key("k-1")).await.expect(201);
    assert!(again.is_replay());
    assert_eq!(again.json(), first.json());
    let other = upload(&path, "b", form("b", "passport", "another picture")).key("k-1");
    send(&other).await.expect_problem(422, "key-reused");
    // What one version of HTTP began, the other replays.
    assert!(uploads.server.send(&call).await.expect(201).is_replay());
    assert_eq!((uploads.charged().await, uploads.files().len()), (1, 1));
}

fn file_name() -> String {
    format!("doc_{}", Uuid::new_v4().simple())
}

async fn what_was_never_finished_is_removed_at_the_start(store: &Store) {
    let directory = Directory::new();
    for folder in ["incoming", "documents"] {
        std::fs::create_dir(directory.path(folder)).unwrap();
        std::fs::write(directory.path(folder).join(file_name()), "left").unwrap();
        std::fs::write(directory.path(folder).join("somebody's own"), "kept").unwrap();
    }
    let _server = serve(store, &directory, &[]);
    let files = files_in(&directory.path(""));
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files.iter().all(|file| file.ends_with("somebody's own")));
}

async fn a_file_whose_row_was_committed_gets_its_place_at_the_start(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let call = passport(&path, "b").key("k-1");
    let document = uploads.server.send(&call).await.expect(201).json();
    let id = document["document_id"].as_str().unwrap();
    let place = uploads.directory.path("documents").join(id);
    eventually("the file has its place", async || place.exists()).await;
    let Uploads { server, directory } = uploads;
    server.signal("KILL");
    server.ended().await;
    // As if the process had died between the commit and the renaming.
    std::fs::rename(&place, directory.path("incoming").join(id)).unwrap();
    let server = serve(store, &directory, &[]);
    assert_eq!(std::fs::read_to_string(&place).unwrap(), DOCUMENT);
    assert_eq!(files_in(&directory.path("")).len(), 1);
    let replay: Answer = server.send(&call).await;
    assert_eq!(replay.expect(201).json(), document);
}

async fn a_server_that_starts_leaves_the_uploads_of_another_alone(store: &Store) {
    let uploads = Uploads::on(store, &[]);
    let path = uploads.session().await;
    let whole = passport(&path, "b").key("k-1").on_the_wire();
    let half = whole.find(DOCUMENT).unwrap() + 5;
    let mut connection = uploads.server.connect(&whole[..half]).await;
    eventually("the file is being written", async || uploads.files().len() == 1).await;
    let other = serve(store, &uploads.directory, &[]);
    assert_eq!(uploads.files().len(), 1);
    connection.write_all(&whole.as_bytes()[half..]).await.unwrap();
    let answer = head_of(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let listed = other.send(&Call::get(&path).from("sk_test_acme")).await.expect(200);
    assert_eq!(listed.json()["documents"].as_array().unwrap().len(), 1);
    assert_eq!(uploads.files().len(), 1);
}

/// A server on PostgreSQL, where each commit of a document waits for a lock.
struct Waiting {
    uploads: Uploads,
    proxy: Proxy,
    /// The session that holds the lock until it is closed.
    holder: PgConnection,
}

const WAITING: &str = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) \
     WHERE NOT granted AND locktype = $1 AND datname = current_database()";

impl Waiting {
    async fn start() -> Option<Self> {
        let postgres = Postgres::shared()?;
        let url = tokio::task::spawn_blocking(|| postgres.create_database())
            .await
            .unwrap();
        let proxy = Proxy::start(postgres.port()).await;
        let database = url.rsplit_once('/').unwrap().1;
        let store = Store::at(postgres.url_through(proxy.port(), database));
        let uploads = Uploads::on(&store, &[]);

        let mut holder = PgConnection::connect(&url).await.unwrap();
        let wait_at_commit = "
            CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON idv_documents
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait();
            SELECT pg_advisory_lock(1);";
        sqlx::raw_sql(wait_at_commit).execute(&mut holder).await.unwrap();
        Some(Self { uploads, proxy, holder })
    }

    /// Lets the commit proceed. The row and its file are there in the end.
    async fn keeps_the_document(self, path: &str) {
        self.holder.close().await.unwrap();
        let uploads = &self.uploads;
        eventually("the row is committed", async || uploads.list(path).await.len() == 1).await;
        let id = uploads.list(path).await[0]["document_id"].as_str().unwrap().to_owned();
        let place = uploads.directory.path("documents").join(id);
        eventually("the file has its place", async || place.exists()).await;
        assert_eq!((uploads.files().len(), uploads.charged().await), (1, 1));
    }

    async fn commit_without_its_client(mut self) {
        let path = self.uploads.session().await;
        let connection = self.uploads.server.connect(&passport(&path, "b").on_the_wire()).await;
        a_commit_waits(&mut self.holder).await;
        drop(connection);
        // The server notices soon, and must not take the document for lost.
        for _ in 0..50 {
            assert!(self.uploads.list(&path).await.is_empty());
            assert_eq!(self.uploads.files().len(), 1);
        }
        self.keeps_the_document(&path).await;
    }

    async fn commit_without_its_connection(mut self) {
        let path = self.uploads.session().await;
        let call = passport(&path, "b");
        let cutting = async {
            a_commit_waits(&mut self.holder).await;
            self.proxy.cut_all().await;
        };
        let (answer, ()) = tokio::join!(self.uploads.server.send(&call), cutting);
        answer.expect_error(503);
        wait_for(
            &mut self.holder,
            "the server waits for the transaction",
            "transactionid",
        )
        .await;
        self.keeps_the_document(&path).await;
    }
}

async fn a_commit_waits(holder: &mut PgConnection) {
    wait_for(holder, "a commit waits", "advisory").await;
}

/// Waits until a session of this database waits for such a lock.
async fn wait_for(holder: &mut PgConnection, what: &str, lock: &str) {
    eventually(what, async || {
        let waiting = sqlx::query_scalar::<_, i64>(WAITING).bind(lock);
        waiting.fetch_one(&mut *holder).await.unwrap() == 1
    })
    .await;
}
