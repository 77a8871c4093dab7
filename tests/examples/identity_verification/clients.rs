//! Clients that people have upload a form, and retry it: each builds it anew, with another boundary. A browser's
//! `FormData` does so in `demo_page`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::process::Server;
use super::request::{Call, SESSIONS};
use crate::support::directory::Directory;
use crate::support::servers::process::{in_path, missing};

const CONTENT: &[u8] = &[0xff; 100_000];

/// A server with a session, and a file to upload for it.
struct Uploads {
    server: Server,
    documents: String,
    url: String,
    file: PathBuf,
    _directory: Directory,
}

impl Uploads {
    async fn start() -> Self {
        let directory = Directory::new();
        let file = directory.path("passport.jpg");
        fs::write(&file, CONTENT).unwrap();
        let server = Server::start(&[]);
        let created = server.send(&Call::session("usr_1", "any")).await.expect(201).json();
        let documents = format!("{SESSIONS}/{}/documents", created["session_id"].as_str().unwrap());
        Self {
            url: format!("{}{documents}", server.origin),
            documents,
            server,
            file,
            _directory: directory,
        }
    }

    /// Three attempts were answered: the first ran, and the others were replayed.
    async fn assert_uploaded_once(&self, answers: &[(u16, bool)]) {
        assert_eq!(answers, [(201, false), (201, true), (201, true)]);
        let documents = self.server.documents(&self.documents).await;
        assert_eq!(documents.len(), 1, "{documents:?}");
        assert_eq!(documents[0]["bytes"], CONTENT.len());
        assert_eq!(documents[0]["file_name"], "passport.jpg");
    }
}

/// What a program says of each attempt: the status, and whether it was a replay.
fn said(command: &mut Command) -> Vec<(u16, bool)> {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let attempt = |line: &str| {
        let (status, replayed) = line.split_once(' ').unwrap();
        (status.parse().unwrap(), replayed == "true")
    };
    text.lines().map(attempt).collect()
}

#[tokio::test]
async fn contract_8_5_curl_retries_a_form_and_gets_the_first_answer() {
    let Some(curl) = in_path("curl") else {
        return missing("curl");
    };
    let uploads = Uploads::start().await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.extend(said(
            Command::new(&curl)
                .args(["--silent", "--show-error", "--output", "/dev/null"])
                .args(["--write-out", "%{http_code} %header{idempotency-replayed}\n"])
                .args(["--header", "Authorization: Bearer sk_test_acme"])
                .args(["--header", "Idempotency-Key: upload-1"])
                .args(["--form", "kind=passport"])
                .arg("--form")
                .arg(format!("file=@{};type=image/jpeg", uploads.file.display()))
                .arg(&uploads.url),
        ));
    }
    uploads.assert_uploaded_once(&answers).await;
}

/// A Python that has the package `requests`.
fn python() -> Option<PathBuf> {
    let has_requests = |python: &PathBuf| {
        let imported = Command::new(python).args(["-c", "import requests"]).output();
        imported.is_ok_and(|output| output.status.success())
    };
    // Debian's package is for Debian's Python.
    [
        in_path("python3"),
        in_path("python3").map(|_| "/usr/bin/python3".into()),
    ]
    .into_iter()
    .flatten()
    .find(has_requests)
}

#[tokio::test]
async fn contract_8_5_python_requests_retries_a_form_and_gets_the_first_answer() {
    const SCRIPT: &str = "
import requests, sys
url, path = sys.argv[1:]
headers = {'Authorization': 'Bearer sk_test_acme', 'Idempotency-Key': 'upload-1'}
for attempt in range(3):
    with open(path, 'rb') as file:
        files = {'file': ('passport.jpg', file, 'image/jpeg')}
        answer = requests.post(url, headers=headers, data={'kind': 'passport'}, files=files)
    print(answer.status_code, answer.headers.get('Idempotency-Replayed', ''))
";
    let Some(python) = python() else {
        return missing("the package requests of Python");
    };
    let uploads = Uploads::start().await;
    let answers = said(
        Command::new(python)
            .args(["-c", SCRIPT, &uploads.url])
            .arg(&uploads.file),
    );
    uploads.assert_uploaded_once(&answers).await;
}

#[tokio::test]
async fn contract_8_5_reqwest_retries_a_form_and_gets_the_first_answer() {
    use reqwest::multipart::{Form, Part};

    let uploads = Uploads::start().await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let file = Part::bytes(CONTENT)
            .file_name("passport.jpg")
            .mime_str("image/jpeg")
            .unwrap();
        let answer = reqwest::Client::new()
            .post(&uploads.url)
            .header("authorization", "Bearer sk_test_acme")
            .header("idempotency-key", "upload-1")
            .multipart(Form::new().text("kind", "passport").part("file", file))
            .send()
            .await
            .unwrap();
        let replayed = answer.headers().get("idempotency-replayed");
        answers.push((answer.status().as_u16(), replayed.is_some_and(|value| value == "true")));
    }
    uploads.assert_uploaded_once(&answers).await;
}
