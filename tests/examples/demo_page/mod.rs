//! The example's demonstration page, in a real headless Chromium, by its own controls.

mod browser;
mod page;
mod server;
mod webdriver;

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::directory::Directory;

use self::browser::Browser;
use self::page::Page;
use self::server::Server;

/// Runs a test on a fresh server and a fresh tab, if there is a browser.
async fn on_the_page(server_options: &[&str], test: impl AsyncFnOnce(&Page<'_>, &mut Server)) {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let mut server = Server::start(server_options);
    let page = Page::open(&browser, &server.origin).await;
    test(&page, &mut server).await;
    page.no_other_origin_was_asked().await;
    page.no_script_failed().await;
}

#[tokio::test]
async fn a_double_press_is_charged_once() {
    on_the_page(&["--provider-latency", "500ms"], async |page, server| {
        page.double_click("#verify").await;
        page.has("the second press has got the answer", 1, "[data-outcome=replayed]")
            .await;
        page.settled().await;
        assert_eq!(page.attempts("[data-outcome=executed][data-status='201']").await, 1);
        // The second press found the first one in flight, and came back by itself when told to; as
        // often as that took.
        let requests = page.attempts("").await;
        let in_flight = page.attempts("[data-outcome=in-flight][data-status='409']").await;
        assert_eq!(requests, 1 + in_flight + 1);
        assert_eq!(page.attempts(":not([data-key=A])").await, 0, "one intent, one key");
        assert_eq!(page.sessions().await.len(), 1, "one answer");
        page.sums_are(1, requests, 1).await;
        page.bill_is_the_servers(server, "acme", 1).await;

        page.click("#new").await;
        page.click("#verify").await;
        page.has("another intent runs", 1, "[data-key=B][data-outcome=executed]")
            .await;
        page.sums_are(2, requests + 1, 2).await;
        page.bill_is_the_servers(server, "acme", 2).await;
    })
    .await;
}

#[tokio::test]
async fn after_a_cut_a_retry_with_the_same_key_costs_nothing() {
    on_the_page(&[], async |page, server| {
        assert!(page.is_disabled("#retry").await, "there is nothing to retry");
        page.click("#cut").await;
        page.has("the connection is cut", 1, "[data-outcome=cut]").await;
        page.click("#retry").await;
        page.has("the retry has got the answer", 1, "[data-outcome=replayed]")
            .await;
        page.settled().await;
        assert_eq!(page.attempts("[data-outcome=executed]").await, 0, "nobody heard it");
        let requests = page.attempts("").await;
        assert_eq!(page.outcome(1).await, "cut");
        for number in 2..requests {
            assert_eq!(page.outcome(number).await, "in-flight");
        }
        assert_eq!(page.outcome(requests).await, "replayed");
        page.sums_are(1, requests, 1).await;
        page.bill_is_the_servers(server, "acme", 1).await;

        page.click("#retry-new").await;
        page.has("a new key is a new operation", 1, "[data-key=B][data-outcome=executed]")
            .await;
        page.bill_is_the_servers(server, "acme", 2).await;
        assert_eq!(page.text("#sum-charges").await, "2");
    })
    .await;
}

#[tokio::test]
async fn a_person_can_cut_what_is_in_flight() {
    on_the_page(&["--wait", "30s", "--provider-latency", "5s"], async |page, server| {
        page.click("#verify").await;
        page.click(".cutter").await;
        page.has("the connection is cut", 1, "[data-outcome=cut]").await;
        page.click("#retry").await;
        page.has("the retry waited for the answer", 1, "[data-outcome=replayed]")
            .await;
        assert_eq!(page.attempts("").await, 2);
        page.bill_is_the_servers(server, "acme", 1).await;
    })
    .await;
}

/// `FormData` has another boundary with each attempt.
#[tokio::test]
async fn contract_8_5_an_upload_that_was_cut_is_stored_once_by_its_retry() {
    let directory = Directory::new();
    let path = directory.path("");
    let files = |folder: &str| -> Vec<PathBuf> {
        let Ok(folder) = fs::read_dir(path.join(folder)) else {
            return Vec::new();
        };
        folder.map(|entry| entry.unwrap().path()).collect()
    };
    on_the_page(&["--data-dir", path.to_str().unwrap()], async |page, server| {
        assert!(page.is_disabled("#upload").await, "there is no session");
        page.click("#verify").await;
        page.has("it ran", 1, "[data-outcome=executed]").await;
        let session = page.sessions().await.pop_first().unwrap();
        page.click("#upload").await;
        page.has("the connection is cut", 1, "[data-key=B][data-outcome=cut]")
            .await;
        page.until("the server keeps nothing of it", async || files("incoming").is_empty())
            .await;
        assert_eq!(files("documents").len(), 0);
        page.bill_is_the_servers(server, "acme", 1).await;

        page.click("#retry").await;
        page.has(
            "the retry ran",
            1,
            "[data-key=B][data-outcome=executed][data-status='201']",
        )
        .await;
        page.click("#retry").await;
        page.has("a further one is replayed", 1, "[data-key=B][data-outcome=replayed]")
            .await;
        page.settled().await;
        page.click("#other-body").await;
        page.has(
            "another form is refused",
            1,
            "[data-outcome=refused][data-status='422']",
        )
        .await;
        page.bill_is_the_servers(server, "acme", 2).await;
        assert_eq!(page.text("#bill-total").await, "$1.70");

        let documents = server.documents(&session).await;
        let [document] = &documents[..] else {
            panic!("{documents:?}")
        };
        page.until("the file has its place", async || {
            files("documents").len() == 1 && files("incoming").is_empty()
        })
        .await;
        let content = fs::read(&files("documents")[0]).unwrap();
        let digest: String = Sha256::digest(&content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(document["sha256"], digest);
        assert_eq!(document["bytes"], 12 * 1024 * 1024);
        assert_eq!(content.len(), 12 * 1024 * 1024);
        assert_eq!(document["file_name"], "passport.jpg");
    })
    .await;
}

#[tokio::test]
async fn another_body_under_an_old_key_is_refused() {
    on_the_page(&[], async |page, server| {
        page.click("#verify").await;
        page.has("it ran", 1, "[data-outcome=executed]").await;
        page.click("#other-body").await;
        page.has("it is refused", 1, "[data-outcome=refused][data-status='422']")
            .await;
        assert!(page.text("[data-attempt='2'] .note").await.contains("key-reused"));
        page.sums_are(1, 2, 1).await;
        page.bill_is_the_servers(server, "acme", 1).await;

        page.click("#retry").await;
        page.has("the first answer is what it was", 1, "[data-outcome=replayed]")
            .await;
        page.bill_is_the_servers(server, "acme", 1).await;
    })
    .await;
}

#[tokio::test]
async fn of_fifty_duplicates_one_runs() {
    on_the_page(&[], async |page, server| {
        page.click("#verify").await;
        page.has("it ran", 1, "[data-outcome=executed]").await;
        page.bill_is_the_servers(server, "acme", 1).await;
        page.click("#burst").await;
        page.has("fifty attempts are drawn", 50, "[data-key=B]").await;
        page.settled().await;
        assert_eq!(page.attempts("[data-key=B][data-outcome=executed]").await, 1);
        let others = "[data-key=B]:is([data-outcome=in-flight], [data-outcome=replayed])";
        assert_eq!(page.attempts(others).await, 49);
        page.sums_are(2, 51, 2).await;
        page.bill_is_the_servers(server, "acme", 2).await;

        page.click(".burst-line button").await;
        page.fits("with the fifty unfolded").await;
    })
    .await;
}

#[tokio::test]
async fn a_failure_frees_the_key() {
    on_the_page(&[], async |page, server| {
        page.choose("#workflow", "wkf_flaky").await;
        page.click("#verify").await;
        page.has("it failed", 1, "[data-outcome=failed][data-status='503']")
            .await;
        page.sums_are(1, 1, 0).await;
        page.bill_is_the_servers(server, "acme", 0).await;
        page.click("#retry").await;
        page.has("the retry ran", 1, "[data-key=A][data-outcome=executed]")
            .await;
        page.sums_are(1, 2, 1).await;
        page.bill_is_the_servers(server, "acme", 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_report_that_was_too_large_to_store_is_told_with_its_session() {
    on_the_page(&[], async |page, server| {
        page.choose("#workflow", "wkf_large_report").await;
        page.click("#verify").await;
        page.has("it ran", 1, "[data-outcome=executed]").await;
        page.click("#retry").await;
        page.has("the retry is refused", 1, "[data-outcome=refused][data-status='409']")
            .await;
        let note = page.text("[data-attempt='2'] .note").await;
        assert!(
            note.contains("Its result is at /v1/verification/sessions/vs_"),
            "{note}"
        );
        assert_eq!(page.sessions().await.len(), 1, "both attempts tell the same session");
        page.bill_is_the_servers(server, "acme", 1).await;
    })
    .await;
}

#[tokio::test]
async fn keys_are_each_accounts_own() {
    on_the_page(&[], async |page, server| {
        page.click("#verify").await;
        page.has("it ran", 1, "[data-outcome=executed]").await;
        page.click("#other-account").await;
        page.has("it ran for the other, too", 2, "[data-outcome=executed]")
            .await;
        assert_eq!(page.sessions().await.len(), 2);
        page.sums_are(2, 2, 2).await;
        page.bill_is_the_servers(server, "acme", 1).await;
        page.choose("#account", "acm").await;
        page.bill_is_the_servers(server, "acm", 1).await;
    })
    .await;
}

#[tokio::test]
async fn the_keyboard_alone_is_enough() {
    on_the_page(&["--provider-latency", "500ms"], async |page, server| {
        let until = async |id: &str, key: &str| {
            for _ in 0..40 {
                page.press(key).await;
                let (focused, outline) = page.focus().await;
                // The browser's own outline is `auto`; the page's is wider, and always drawn.
                assert_eq!(outline, "solid 3px", "on {focused}");
                if focused == id {
                    return;
                }
            }
            panic!("no {id} within reach");
        };
        const TAB: &str = "\u{e004}";
        const ENTER: &str = "\u{e007}";
        until("verify", TAB).await;
        page.press(ENTER).await;
        page.press(" ").await;
        page.has("the second press has got the answer", 1, "[data-outcome=replayed]")
            .await;
        until("cut", TAB).await;
        page.press(ENTER).await;
        page.has("the connection is cut", 1, "[data-outcome=cut]").await;
        until("retry", TAB).await;
        page.press(" ").await;
        page.has("the retry has got the answer", 1, "[data-key=B][data-outcome=replayed]")
            .await;
        page.settled().await;
        page.bill_is_the_servers(server, "acme", 2).await;
        let said = page.text("#status").await;
        assert!(said.contains("key B, replayed (201)"), "{said}");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_and_may_come_back() {
    on_the_page(&[], async |page, server| {
        page.click("#verify").await;
        page.has("it ran", 1, "[data-outcome=executed]").await;
        page.bill_is_the_servers(server, "acme", 1).await;
        assert!(!page.is_shown("#gone").await);
        server.kill();
        page.click("#retry").await;
        page.has("there is no answer", 1, "[data-outcome=lost]").await;
        page.until("the page says so", async || page.is_shown("#gone").await)
            .await;
        page.click("#ask-again").await;
        page.until("it is still gone", async || {
            page.text("#status").await.contains("still not responding")
        })
        .await;
        assert!(page.is_shown("#gone").await);
        page.fits("with the server gone").await;

        server.restart();
        page.click("#ask-again").await;
        page.until("it is back", async || !page.is_shown("#gone").await).await;
        page.bill_is_the_servers(server, "acme", 0).await;
    })
    .await;
}

#[tokio::test]
async fn it_fits_a_phone() {
    on_the_page(&[], async |page, _| {
        page.becomes_a_phone().await;
        page.fits("at first").await;
        page.click("#cut").await;
        page.has("the connection is cut", 1, "[data-outcome=cut]").await;
        page.click("#verify").await;
        page.has("it ran", 1, "[data-outcome=executed]").await;
        page.click("#other-body").await;
        page.has("it is refused", 1, "[data-outcome=refused]").await;
        page.click("#burst").await;
        page.has("fifty attempts are drawn", 50, "[data-key=C]").await;
        page.settled().await;
        page.click("#reference summary").await;
        page.fits("after some use").await;
    })
    .await;
}

#[tokio::test]
async fn what_people_type_is_text() {
    on_the_page(&[], async |page, _| {
        let name = "<img src=x onerror=alert(1)>'";
        page.run("document.querySelector('#user').value = ''", &[]).await;
        page.type_into("#user", name).await;
        page.click("#verify").await;
        page.has("it ran", 1, "[data-outcome=executed]").await;
        assert_eq!(page.count("img").await, 0);
        assert!(page.text(".op .title").await.contains(name));
        let command = page.text("#curl").await;
        // As a shell reads it, it is one word: the request's body.
        let body = json!({ "user_id": name, "workflow_id": "wkf_kyc_full" }).to_string();
        let quoted = body.replace('\'', r"'\''");
        assert!(command.ends_with(&format!("-d '{quoted}'")), "{command}");
    })
    .await;
}

/// `scripts/picture` keeps the picture, as `docs/images/page.png`.
#[tokio::test]
async fn the_picture_of_the_readme_can_be_taken() {
    on_the_page(&["--provider-latency", "500ms"], async |page, server| {
        page.double_click("#verify").await;
        page.has("the second press has got the answer", 1, "[data-outcome=replayed]")
            .await;
        page.click("#cut").await;
        page.has("the connection is cut", 1, "[data-outcome=cut]").await;
        page.click("#retry").await;
        page.has("the retry has got the answer", 2, "[data-outcome=replayed]")
            .await;
        page.click("#other-body").await;
        page.has("another body is refused", 1, "[data-outcome=refused]").await;
        page.settled().await;
        page.bill_is_the_servers(server, "acme", 2).await;

        let picture = page.picture().await;
        assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n"), "no PNG");
        assert!(picture.len() < 200_000, "{} bytes", picture.len());
        if let Some(file) = std::env::var_os("PAGE_PICTURE") {
            std::fs::write(file, picture).unwrap();
        }
    })
    .await;
}

/// That the other tests would see it.
#[tokio::test]
async fn what_goes_wrong_in_the_page_is_in_the_log() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Server::start(&[]);
    let page = Page::open(&browser, &server.origin).await;
    let script = "
        setTimeout(() => { throw new Error('a script fails'); });
        console.warn('a warning');
        new Image().src = 'http://127.0.0.1:1/elsewhere';
        try { document.body.innerHTML = '<p>markup</p>' } catch { document.title = 'no markup' }";
    page.run(script, &[]).await;
    let mut log = String::new();
    page.until("all is in the log", async || {
        for entry in browser.session.log().await {
            log += &entry.to_string();
        }
        ["a script fails", "a warning", "127.0.0.1:1/elsewhere", "TrustedHTML"]
            .iter()
            .all(|part| log.contains(part))
    })
    .await;
    assert_eq!(page.text("title").await, "no markup");
}
