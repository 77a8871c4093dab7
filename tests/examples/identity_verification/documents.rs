//! Documents, on every store: streamed to a file that is there if and only if the document is.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::process::Server;
use super::request::{Answer, BILLING, Call};
use super::stores::Store;
use crate::support::directory::Directory;
use crate::support::eventually;

mod each {
    use super::super::stores::tests;

    tests!(memory, sqlite, postgres, redis: {
        a_form_is_taken_once_and_its_retry_may_have_another_boundary,
        a_raw_picture_is_taken_once,
        what_is_refused_leaves_no_file_and_no_charge,
        an_upload_that_is_cut_leaves_no_file_and_its_retry_is_taken,
        files_of_documents_that_are_not_there_are_removed_at_the_start,
        of_uploads_through_a_bad_network_each_is_taken_once,
    });
}

const ACME: &str = "sk_test_acme";

/// A server, and where its documents are.
struct Sandbox {
    server: Server,
    directory: Directory,
    documents: String,
}

impl Sandbox {
    async fn new(store: &Store) -> Self {
        let directory = Directory::new();
        let server = Self::server(store, &directory);
        let session = server
            .send(&Call::session("usr_1", "wkf_kyc_full").key("session"))
            .await;
        let location = session.expect(201).header("location").unwrap().to_owned();
        Self {
            server,
            directory,
            documents: format!("{location}/documents"),
        }
    }

    fn server(store: &Store, directory: &Directory) -> Server {
        let path = directory.path("data");
        store.server(&["--max-upload", "100000", "--data-dir", path.to_str().unwrap()])
    }

    fn files(&self, of: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path("data").join(of)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    async fn listed(&self) -> Vec<Value> {
        let list = self
            .server
            .send(&Call::get(&self.documents).from(ACME))
            .await
            .expect(200);
        list.json()["documents"].as_array().unwrap().clone()
    }

    /// The charges for documents.
    async fn charged(&self) -> Vec<Value> {
        let bill = self
            .server
            .send(&Call::get(BILLING).from(ACME))
            .await
            .expect(200)
            .json();
        let charges = bill["charges"].as_array().unwrap().clone();
        let is_document = |charge: &Value| charge["operation"] == "document";
        charges.into_iter().filter(is_document).collect()
    }

    /// There is this document and no other, its file has that content, and it was charged for once.
    async fn assert_one(&self, answer: &Answer, content: &str) {
        let document = answer.json();
        let id = document["document_id"].as_str().unwrap();
        assert_eq!(document["bytes"], content.len());
        let digest: String = Sha256::digest(content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(document["sha256"], digest);
        assert_eq!(self.listed().await, std::slice::from_ref(&document));
        let files = self.files("documents");
        assert_eq!(files.len(), 1);
        assert!(files[0].ends_with(Path::new(id)));
        assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), content);
        let charge = json!({ "operation": "document", "reference": id, "amount_cents": 20 });
        assert_eq!(self.charged().await, [charge]);
        let shown = Call::get(answer.header("location").unwrap()).from(ACME);
        assert_eq!(self.server.send(&shown).await.expect(200).json(), document);
    }

    async fn assert_none(&self) {
        assert_eq!(self.listed().await, Vec::<Value>::new());
        assert_eq!(self.charged().await, Vec::<Value>::new());
        assert_eq!(self.files("documents"), Vec::<PathBuf>::new());
    }

    fn form(&self, boundary: &str, kind: &str, content: &str) -> Call {
        let parts = [
            format!("Content-Disposition: form-data; name=\"kind\"\r\n\r\n{kind}"),
            format!(
                "Content-Disposition: form-data; name=\"file\"; filename=\"p.jpg\"\r\nContent-Type: image/jpeg\r\n\r\n{content}"
            ),
        ];
        let parts = parts.map(|part| format!("--{boundary}\r\n{part}\r\n"));
        Call::post(&self.documents, format!("{}--{boundary}--\r\n", parts.concat()))
            .from(ACME)
            .header("content-type", &format!("multipart/form-data; boundary={boundary}"))
    }

    fn raw(&self, query: &str, content_type: &str, content: &str) -> Call {
        Call::post(&format!("{}{query}", self.documents), content)
            .from(ACME)
            .header("content-type", content_type)
    }
}

async fn a_form_is_taken_once_and_its_retry_may_have_another_boundary(store: &Store) {
    let sandbox = Sandbox::new(store).await;
    let content = "a picture\r\n--not-the-boundary".repeat(1000);
    let first = sandbox.form("one", "passport", &content).key("k");
    let first = sandbox.server.send(&first).await.expect(201);
    let document = first.json();
    assert_eq!(
        (&document["kind"], &document["file_name"]),
        (&json!("passport"), &json!("p.jpg"))
    );
    let retry = sandbox.form("----WebKitFormBoundaryA", "passport", &content).key("k");
    let retry = sandbox.server.send(&retry).await.expect(201);
    assert!(retry.is_replay());
    assert_eq!(retry.body, first.body);
    for other in [
        sandbox.form("one", "selfie", &content),
        sandbox.form("one", "passport", "another picture"),
    ] {
        let other = sandbox.server.send(&other.key("k")).await;
        other.expect_problem(422, "key-reused");
    }
    // The key of another operation of this account, which is not streamed.
    let reused = sandbox.form("one", "passport", &content).key("session");
    sandbox.server.send(&reused).await.expect_problem(422, "key-reused");
    let reused = Call::session("usr_1", "wkf_kyc_full").key("k");
    sandbox.server.send(&reused).await.expect_problem(422, "key-reused");
    sandbox.assert_one(&first, &content).await;
}

async fn a_raw_picture_is_taken_once(store: &Store) {
    let sandbox = Sandbox::new(store).await;
    let call = sandbox.raw("?kind=selfie", "image/png", "pixels").key("k");
    let first = sandbox.server.send(&call).await.expect(201);
    assert_eq!(first.json()["file_name"], Value::Null);
    assert_eq!(first.json()["kind"], "selfie");
    assert!(sandbox.server.send(&call).await.expect(201).is_replay());
    let other = sandbox.raw("?kind=passport", "image/png", "pixels").key("k");
    sandbox.server.send(&other).await.expect_problem(422, "key-reused");
    sandbox.assert_one(&first, "pixels").await;
}

async fn what_is_refused_leaves_no_file_and_no_charge(store: &Store) {
    let sandbox = Sandbox::new(store).await;
    let large = "x".repeat(100_001);
    let refused = [
        (sandbox.form("b", "driving_licence", "x"), 422),
        (sandbox.raw("", "image/png", "x"), 422),
        (sandbox.raw("?kind=cat", "image/png", "x"), 422),
        (sandbox.raw("?kind=selfie", "text/plain", "x"), 415),
        (sandbox.raw("", "multipart/form-data; boundary=b", "--b--"), 422),
        (sandbox.raw("", "multipart/form-data; boundary=b", "no form"), 400),
        (sandbox.raw("?kind=selfie", "image/png", &large), 413),
        (sandbox.form("b", "selfie", &large), 413),
        (sandbox.form("b", "selfie", &large.repeat(2)), 413),
        (sandbox.form("b", "selfie", "x").from("sk_test_globex"), 404),
    ];
    for (number, (call, status)) in refused.into_iter().enumerate() {
        for call in [call.clone(), call.key(&format!("k{number}"))] {
            let answer = sandbox.server.send(&call).await;
            assert_eq!(answer.status.as_u16(), status, "{call:.300?} {answer:?}");
        }
    }
    let damaged = sandbox.raw("?kind=selfie", "image/png", "x").key("damaged");
    let damaged = damaged.header(
        "content-digest",
        "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:",
    );
    sandbox
        .server
        .send(&damaged)
        .await
        .expect_problem(400, "digest-mismatch");
    sandbox.assert_none().await;
    // Each key is free.
    let call = sandbox.form("b", "selfie", "x").key("k0");
    let first = sandbox.server.send(&call).await.expect(201);
    sandbox.assert_one(&first, "x").await;
}

async fn an_upload_that_is_cut_leaves_no_file_and_its_retry_is_taken(store: &Store) {
    let sandbox = Sandbox::new(store).await;
    let content = "x".repeat(50_000);
    let call = sandbox.form("b", "selfie", &content).key("k");
    let text = call.on_the_wire();
    for cut in [text.find("\r\n\r\n").unwrap() + 4, 1000, 30_000, text.len() - 1] {
        let mut connection = sandbox.server.connect(&text[..cut]).await;
        connection.shutdown().await.unwrap();
        drop(connection);
    }
    // As long as the server has not noticed.
    let first = eventually("the upload is taken", async || {
        let answer = sandbox.server.send(&call).await;
        (answer.status.as_u16() != 409).then_some(answer)
    })
    .await;
    let first = first.expect(201);
    assert!(!first.is_replay());
    sandbox.assert_one(&first, &content).await;
    assert!(sandbox.server.send(&call).await.expect(201).is_replay());
}

async fn files_of_documents_that_are_not_there_are_removed_at_the_start(store: &Store) {
    let sandbox = Sandbox::new(store).await;
    let call = sandbox.form("b", "selfie", "pixels").key("k");
    let first = sandbox.server.send(&call).await.expect(201);
    let Sandbox { server, directory, .. } = sandbox;
    server.signal("KILL");
    drop(server);
    // As after a crash between the file's names, and before its document was committed.
    let data = directory.path("data");
    let dead = data.join("incoming").join("of-a-dead-process");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("doc_half"), "ha").unwrap();
    std::fs::write(dead.join("doc_lost"), "lost").unwrap();
    std::fs::hard_link(dead.join("doc_lost"), data.join("documents").join("doc_lost")).unwrap();
    let restarted = Sandbox {
        server: Sandbox::server(store, &directory),
        directory,
        documents: sandbox.documents,
    };
    assert!(!dead.exists());
    // What is in memory is gone with the process, and so are its files.
    if store.url == "memory" {
        assert_eq!(restarted.files("documents"), Vec::<PathBuf>::new());
    } else {
        restarted.assert_one(&first, "pixels").await;
        assert!(restarted.server.send(&call).await.expect(201).is_replay());
    }
    // Its own directory and its lock.
    assert_eq!(restarted.files("incoming").len(), 2);
}

/// Uploads that are cut at any byte, or whose answer is lost, until one attempt gets through.
async fn of_uploads_through_a_bad_network_each_is_taken_once(store: &Store) {
    const OPERATIONS: usize = 40;
    let sandbox = Sandbox::new(store).await;
    let mut dice = fastrand::Rng::with_seed(15);
    for number in 0..OPERATIONS {
        let content = format!("{number} ").repeat(dice.usize(1..10_000));
        loop {
            // Another boundary for each attempt, as browsers and curl make them.
            let boundary = format!("b{:x}", dice.u64(..));
            let call = sandbox
                .form(&boundary, "selfie", &content)
                .key(&format!("upload-{number}"));
            let text = call.on_the_wire();
            match dice.usize(..3) {
                0 => {
                    let mut connection = sandbox.server.connect(&text[..dice.usize(..text.len())]).await;
                    let _ = connection.shutdown().await;
                }
                // Whole, and nobody waits for the answer.
                1 => drop(sandbox.server.connect(&text).await),
                _ => {
                    let answer = eventually("an attempt gets through", async || {
                        let answer = sandbox.server.send(&call).await;
                        (answer.status.as_u16() != 409).then_some(answer)
                    })
                    .await
                    .expect(201);
                    assert_eq!(answer.json()["bytes"], content.len());
                    break;
                }
            }
        }
    }
    assert_eq!(sandbox.listed().await.len(), OPERATIONS);
    assert_eq!(sandbox.charged().await.len(), OPERATIONS);
    assert_eq!(sandbox.files("documents").len(), OPERATIONS);
}
