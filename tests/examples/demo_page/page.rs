//! The page as a person has it: what can be pressed, and what can be seen.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use super::browser::Browser;
use super::server::Server;
use super::webdriver::Session;

use crate::support::servers::process::PATIENCE;

pub(crate) struct Page<'a> {
    session: &'a Session,
    origin: String,
}

impl<'a> Page<'a> {
    pub(crate) async fn open(browser: &'a Browser, origin: &str) -> Self {
        let page = Page {
            session: &browser.session,
            origin: origin.to_owned(),
        };
        page.session.navigate(&format!("{origin}/")).await;
        page.until("the bill is there", async || {
            page.text("#bill-count").await == "0 charges"
        })
        .await;
        page
    }

    pub(crate) async fn run(&self, script: &str, arguments: &[Value]) -> Value {
        self.session.execute(script, arguments).await
    }

    /// Asks now and again until the answer is yes.
    pub(crate) async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !condition().await {
            if began.elapsed() > PATIENCE {
                let seen = self.run("return document.querySelector('main').innerText", &[]).await;
                panic!("in vain: {what}; the page says:\n{}", seen.as_str().unwrap());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    // What a person does.

    /// Clicks on what is there, or soon will be.
    pub(crate) async fn click(&self, selector: &str) {
        self.until(selector, async || {
            // Away from the edges of a small screen, where the sums are.
            let script = "document.querySelector(arguments[0])?.scrollIntoView({ block: 'center' })";
            self.run(script, &[json!(selector)]).await;
            self.session.click(selector).await.is_ok()
        })
        .await;
    }

    pub(crate) async fn double_click(&self, selector: &str) {
        self.session.double_click(selector).await;
    }

    pub(crate) async fn choose(&self, list: &str, value: &str) {
        self.click(&format!("{list} option[value={value}]")).await;
    }

    pub(crate) async fn type_into(&self, selector: &str, text: &str) {
        self.session.type_into(selector, text).await;
    }

    pub(crate) async fn press(&self, key: &str) {
        self.session.press(key).await;
    }

    // What a person sees.

    pub(crate) async fn count(&self, selector: &str) -> u64 {
        let script = "return document.querySelectorAll(arguments[0]).length";
        self.run(script, &[json!(selector)]).await.as_u64().unwrap()
    }

    /// How many attempts are of that kind, as a selector tells it.
    pub(crate) async fn attempts(&self, kind: &str) -> u64 {
        self.count(&format!(".attempt{kind}")).await
    }

    /// Waits until so many attempts are of that kind.
    pub(crate) async fn has(&self, what: &str, attempts: u64, kind: &str) {
        self.until(what, async || self.attempts(kind).await == attempts).await;
    }

    /// Waits until no attempt is under way.
    pub(crate) async fn settled(&self) {
        self.has("nothing is under way", 0, "[data-outcome=pending]").await;
    }

    pub(crate) async fn text(&self, selector: &str) -> String {
        let script = "return document.querySelector(arguments[0]).textContent";
        self.run(script, &[json!(selector)]).await.as_str().unwrap().to_owned()
    }

    pub(crate) async fn outcome(&self, number: u64) -> String {
        let script = "return document.querySelector(`[data-attempt='${arguments[0]}']`).dataset.outcome";
        self.run(script, &[json!(number)]).await.as_str().unwrap().to_owned()
    }

    /// The sessions that answers have named.
    pub(crate) async fn sessions(&self) -> BTreeSet<String> {
        let script = "return [...document.querySelectorAll('[data-session]')].map((row) => row.dataset.session)";
        serde_json::from_value(self.run(script, &[]).await).unwrap()
    }

    pub(crate) async fn is_disabled(&self, selector: &str) -> bool {
        self.count(&format!("{selector}:disabled")).await > 0
    }

    pub(crate) async fn is_shown(&self, selector: &str) -> bool {
        let script = "return document.querySelector(arguments[0]).checkVisibility()";
        self.run(script, &[json!(selector)]).await.as_bool().unwrap()
    }

    /// The id of what has the focus, and how that is shown.
    pub(crate) async fn focus(&self) -> (String, String) {
        let script = "const style = getComputedStyle(document.activeElement);
            return [document.activeElement.id, `${style.outlineStyle} ${style.outlineWidth}`]";
        serde_json::from_value(self.run(script, &[]).await).unwrap()
    }

    // What must be so.

    pub(crate) async fn sums_are(&self, operations: u64, requests: u64, charges: u64) {
        let expected = [operations, requests, charges].map(|sum| sum.to_string());
        self.until(&format!("the sums are {expected:?}"), async || {
            let mut shown = Vec::new();
            for sum in ["#sum-operations", "#sum-requests", "#sum-charges"] {
                shown.push(self.text(sum).await);
            }
            shown == expected
        })
        .await;
    }

    /// That the bill shown is the server's, with so many charges on it.
    pub(crate) async fn bill_is_the_servers(&self, server: &Server, account: &str, charges: usize) {
        let script = "return [document.querySelector('#bill-account').textContent,
            document.querySelector('#bill-total').textContent,
            ...[...document.querySelectorAll('#charges li')].map((charge) => charge.dataset.reference).reverse()]";
        self.until(&format!("the bill has {charges} charges"), async || {
            let (references, cents) = server.bill(account).await;
            let mut expected = vec![account.to_owned(), format!("${}.{:02}", cents / 100, cents % 100)];
            expected.extend(references);
            let shown: Vec<String> = serde_json::from_value(self.run(script, &[]).await).unwrap();
            shown == expected && shown.len() == charges + 2
        })
        .await;
    }

    pub(crate) async fn becomes_a_phone(&self) {
        let screen = json!({ "width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": true });
        self.session
            .chromium("Emulation.setDeviceMetricsOverride", screen)
            .await;
    }

    /// What a screen of 1200 by 820 shows of the page, as a PNG.
    pub(crate) async fn picture(&self) -> Vec<u8> {
        let screen = json!({ "width": 1200, "height": 820, "deviceScaleFactor": 1, "mobile": false });
        self.session
            .chromium("Emulation.setDeviceMetricsOverride", screen)
            .await;
        let tidy =
            "document.documentElement.style.scrollbarWidth = 'none'; document.activeElement?.blur(); scrollTo(0, 0)";
        self.run(tidy, &[]).await;
        let picture = self
            .session
            .chromium("Page.captureScreenshot", json!({ "format": "png" }))
            .await;
        let data = picture["data"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD.decode(data).unwrap()
    }

    /// That nothing sticks out of a phone's screen, and that fingers find the controls.
    pub(crate) async fn fits(&self, when: &str) {
        self.becomes_a_phone().await;
        let script = "
            const name = (element) => `${element.tagName}#${element.id}.${element.className}`;
            const scrolls = (element) => element && (getComputedStyle(element).overflowX !== 'visible' || scrolls(element.parentElement));
            const shown = [...document.body.querySelectorAll('*')].filter((element) => element.checkVisibility());
            return {
                width: [innerWidth, document.documentElement.scrollWidth],
                outside: shown.filter((element) => element.getBoundingClientRect().right > innerWidth + .5 && !scrolls(element.parentElement)).map(name),
                small: shown.filter((element) => element.matches('button, select, input[type=text], summary, label.check') && element.getBoundingClientRect().height < 44).map(name),
            }";
        let found = self.run(script, &[]).await;
        let expected = json!({ "width": [360, 360], "outside": [], "small": [] });
        assert_eq!(found, expected, "{when}");
    }

    pub(crate) async fn no_other_origin_was_asked(&self) {
        let script = "return performance.getEntriesByType('resource').map((entry) => entry.name)";
        let asked: Vec<String> = serde_json::from_value(self.run(script, &[]).await).unwrap();
        assert!(!asked.is_empty());
        for url in asked {
            assert!(url.starts_with(&format!("{}/", self.origin)), "{url}");
        }
    }

    /// That the console shows nothing but what Chromium itself writes there of each answer that is
    /// not a success, of which the page is full by intent.
    pub(crate) async fn no_script_failed(&self) {
        let script = "return [...document.querySelectorAll('.attempt')].map((row) =>
            row.dataset.outcome === 'lost' ? 'net::ERR_' : `status of ${row.dataset.status} `)";
        let provoked: BTreeSet<String> = serde_json::from_value(self.run(script, &[]).await).unwrap();
        for entry in self.session.log().await {
            let message = entry["message"].as_str().unwrap();
            let expected = entry["source"] == "network" && provoked.iter().any(|status| message.contains(status));
            assert!(expected, "{entry}");
        }
    }
}
