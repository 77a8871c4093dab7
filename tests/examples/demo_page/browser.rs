//! A headless Chromium of a test's own, and the driver that steers it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::webdriver::Session;

use crate::support::servers::process::{self, Watchdog};

/// It ends with this value, and whatever ends the test process.
pub(crate) struct Browser {
    pub(crate) session: Session,
    // Dropped in this order.
    _driver: Process,
    _chromium: Process,
}

impl Browser {
    /// `None` if it is not installed, which is said; a panic where servers are required.
    pub(crate) async fn start() -> Option<Self> {
        let [chromium, driver] = ["chromium", "chromedriver"].map(|program| {
            let path = process::in_path(program);
            if path.is_none() {
                process::missing(program);
            }
            path
        });
        let (chromium, port) = start_chromium(&chromium?);
        let (driver, origin) = start_driver(&driver?);
        // Started here and not by the driver, which would leave it behind if it were killed itself.
        let capabilities = json!({
            "goog:chromeOptions": { "debuggerAddress": format!("127.0.0.1:{port}") },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        Some(Self {
            session: Session::new(&origin, capabilities).await,
            _driver: driver,
            _chromium: chromium,
        })
    }
}

/// A process with a directory of its own, which is in its command line so that the watchdog knows it.
struct Process {
    child: Child,
    _watchdog: Watchdog,
}

impl Process {
    fn start(name: &str, program: &Path, configure: impl FnOnce(&mut Command, &Path)) -> (Self, PathBuf) {
        let directory = process::scratch(&process::on_disk(), name, None);
        let mut watchdog = Watchdog::new(&directory, "TERM");
        let mut command = process::command(program, None);
        command
            .env("HOME", &directory)
            .env("TMPDIR", &directory)
            .env_remove("XDG_CACHE_HOME")
            .env_remove("XDG_CONFIG_HOME")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        configure(&mut command, &directory);
        let child = command.spawn().unwrap();
        watchdog.watch(Some(&child));
        let process = Self {
            child,
            _watchdog: watchdog,
        };
        (process, directory)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

/// The browser, and the port that the driver finds it at.
fn start_chromium(program: &Path) -> (Process, u16) {
    let (chromium, directory) = Process::start("idempotency-chromium", program, |command, directory| {
        command
            .args(["--headless", "--window-size=1280,900", "--remote-debugging-port=0"])
            // Root's Chromium has no sandbox, and it meets nothing here but our own page.
            .args([
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-quic",
            ])
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", directory.display()))
            .arg("about:blank");
    });
    let mut port = None;
    process::wait_until("Chromium tells its port", || {
        let told = fs::read_to_string(directory.join("DevToolsActivePort")).unwrap_or_default();
        // The second line is there when the first one is whole.
        port = told.split_once('\n').and_then(|(port, _)| port.parse().ok());
        port.is_some()
    });
    (chromium, port.unwrap())
}

/// The driver, and the origin that it takes its commands at.
fn start_driver(program: &Path) -> (Process, String) {
    let (mut driver, _) = Process::start("idempotency-chromedriver", program, |command, directory| {
        command
            .arg("--port=0")
            .arg(format!("--log-path={}/log", directory.display()))
            .stdout(Stdio::piped());
    });
    let mut output = BufReader::new(driver.child.stdout.take().unwrap());
    let mut line = String::new();
    let port = loop {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the driver does not start");
        if let Some((_, port)) = line.trim_end().rsplit_once("successfully on port ") {
            break port.trim_end_matches('.').to_owned();
        }
    };
    // The pipe stays open, so that the driver can go on writing.
    driver.child.stdout = Some(output.into_inner());
    (driver, format!("http://127.0.0.1:{port}"))
}
