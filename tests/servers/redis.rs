//! A Redis server of a test's own.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A private `redis-server` or `valkey-server` on a free port of 127.0.0.1, with a directory of its
/// own. It keeps nothing on disk unless it is told to, and ends with this value.
pub struct Redis {
    binary: PathBuf,
    directory: PathBuf,
    port: u16,
    args: Vec<String>,
    child: Child,
}

#[allow(dead_code, reason = "each test file uses some of it")]
impl Redis {
    /// `None` if there is no such program, which is said; a panic instead if
    /// `IDEMPOTENCY_REQUIRE_SERVERS` is 1.
    pub fn start() -> Option<Self> {
        Self::start_with::<&str>(&[])
    }

    /// With further arguments, which count more than the usual ones.
    pub fn start_with<S: AsRef<str>>(args: &[S]) -> Option<Self> {
        let Some(binary) = binary() else {
            let required = std::env::var_os("IDEMPOTENCY_REQUIRE_SERVERS").is_some_and(|value| value == "1");
            assert!(!required, "neither redis-server nor valkey-server is on the PATH");
            eprintln!("skipped: neither redis-server nor valkey-server is on the PATH");
            return None;
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "idempotency-redis-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let args: Vec<String> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        // Another process may take the port between its choice and its use.
        for _ in 0..10 {
            let port = free_port();
            let mut child = spawn(&binary, &directory, port, &args);
            if answers(&mut child, port) {
                return Some(Self {
                    binary,
                    directory,
                    port,
                    args,
                    child,
                });
            }
        }
        panic!("the Redis server does not start; see {}", directory.display());
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it from doing anything, its connections staying open.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// As a crash.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port, in the same directory. Data is kept if it was started
    /// with `--appendonly yes`.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.binary, &self.directory, self.port, &self.args);
        assert!(
            answers(&mut self.child, self.port),
            "the Redis server does not start again"
        );
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    ["redis-server", "valkey-server"]
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
}

/// One that nothing listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // A cluster node's bus takes the port 10000 above.
    let port = listener.local_addr().unwrap().port();
    if port > 55_000 { free_port() } else { port }
}

fn spawn(binary: &Path, directory: &Path, port: u16, args: &[String]) -> Child {
    let log = std::fs::File::create(directory.join("log")).unwrap();
    let port = port.to_string();
    let usual = [
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--daemonize",
        "no",
        "--dir",
    ];
    Command::new(binary)
        .args(usual)
        .arg(directory)
        .args(args.iter().map(OsStr::new))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Waits until it answers in any way; `false` if it ends before.
fn answers(child: &mut Child, port: u16) -> bool {
    use std::io::{Read, Write};
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if let Ok(mut stream) = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut answer = [0; 256];
            if stream.write_all(b"PING\r\n").is_ok()
                && let Ok(length) = stream.read(&mut answer)
                && length > 0
                && !answer.starts_with(b"-LOADING")
            {
                // Another server on this port, taken meanwhile, is told by our child's end.
                std::thread::sleep(Duration::from_millis(5));
                return child.try_wait().unwrap().is_none();
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}
