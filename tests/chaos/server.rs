//! A process of the example server that is started again whenever it ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::example::{program, without_options};
use crate::support::servers::process::{self, PATIENCE, Watchdog};

/// It ends when this is dropped, in whatever way.
pub struct Server {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
}

struct Shared {
    directory: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    state: Mutex<State>,
}

struct State {
    child: Option<Child>,
    address: Option<SocketAddr>,
    /// How often it was started.
    starts: u32,
    ends: bool,
    watchdog: Watchdog,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    pub fn start(options: &[&str], environment: &[(&str, &str)]) -> Self {
        let directory = process::scratch(&process::on_disk(), "idempotency-chaos-server", None);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                child: None,
                address: None,
                starts: 0,
                ends: false,
                watchdog: Watchdog::new(&directory, "KILL"),
            }),
            directory,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            environment: environment
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        });
        let supervised = shared.clone();
        Self {
            shared,
            supervisor: Some(thread::spawn(move || supervise(&supervised))),
        }
    }

    /// Where it listens, while it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.shared.state().address
    }

    /// Waits until it listens.
    pub async fn listening(&self) -> SocketAddr {
        let began = std::time::Instant::now();
        loop {
            if let Some(address) = self.address() {
                return address;
            }
            assert!(began.elapsed() < PATIENCE, "it does not start:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn starts(&self) -> u32 {
        self.shared.state().starts
    }

    pub fn kill(&self) {
        if let Some(child) = &mut self.shared.state().child {
            // It may have ended already.
            let _ = child.kill();
        }
    }

    pub fn halt(&self) {
        if let Some(child) = &self.shared.state().child {
            process::stop(child);
        }
    }

    pub fn resume(&self) {
        if let Some(child) = &self.shared.state().child {
            process::resume(child);
        }
    }

    pub fn log(&self) -> String {
        let log = fs::read(self.shared.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.state().ends = true;
        self.kill();
        // Its panic has been seen.
        let _ = self.supervisor.take().unwrap().join();
    }
}

fn supervise(shared: &Shared) {
    let program = program("identity_verification");
    loop {
        let Some(stdout) = spawn(shared, &program) else { return };
        let mut first_line = String::new();
        // It ends when the process does, at the latest.
        let read = BufReader::new(stdout).read_line(&mut first_line);
        let address = first_line
            .trim_end()
            .strip_prefix("listening on http://")
            .and_then(|address| address.parse().ok());
        if read.is_ok() {
            shared.state().address = address;
        }
        loop {
            let mut state = shared.state();
            if state.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                state.address = None;
                state.child = None;
                state.watchdog.watch(None);
                break;
            }
            drop(state);
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Nothing if it is to end.
fn spawn(shared: &Shared, program: &std::path::Path) -> Option<std::process::ChildStdout> {
    let mut state = shared.state();
    if state.ends {
        return None;
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(shared.directory.join("log"))
        .unwrap();
    let mut command = process::command(program, None);
    let mut child = without_options(&mut command)
        // For the watchdog.
        .arg0(shared.directory.join("identity_verification"))
        .args(&shared.options)
        .env("IDV_LISTEN", "127.0.0.1:0")
        .env("RUST_LOG", "info,tower_idempotency=debug")
        .env("RUST_BACKTRACE", "0")
        .envs(shared.environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let stdout = child.stdout.take();
    state.watchdog.watch(Some(&child));
    state.child = Some(child);
    state.starts += 1;
    stdout
}
