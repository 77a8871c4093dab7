//! A test's own Redis server.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use super::process::{self, PATIENCE, Watchdog};

/// A private `redis-server` or `valkey-server` on a free port of 127.0.0.1, with a directory of its
/// own. By default, it keeps nothing on disk. It ends with this value or this process.
pub struct Redis {
    binary: PathBuf,
    directory: PathBuf,
    port: u16,
    args: Vec<String>,
    /// The configuration of a Sentinel.
    sentinel: Option<String>,
    child: Option<Child>,
    watchdog: Watchdog,
}

impl Redis {
    /// Starts a server. If no such program is installed, prints that and returns `None`, or panics
    /// if `IDEMPOTENCY_REQUIRE_SERVERS=1`.
    pub fn start() -> Option<Self> {
        Self::start_with::<&str>(&[])
    }

    /// Starts a server with further arguments, which override the usual ones.
    pub fn start_with<S: AsRef<str>>(args: &[S]) -> Option<Self> {
        Self::start_as(args, None)
    }

    /// Starts a Sentinel that watches this primary under the name `mymaster`. `quorum` Sentinels
    /// must agree.
    pub fn sentinel_of(primary: &Self, quorum: u32) -> Option<Self> {
        let watched = format!(
            "sentinel monitor mymaster 127.0.0.1 {} {quorum}\n\
             sentinel down-after-milliseconds mymaster 1000\n\
             sentinel failover-timeout mymaster 6000\n",
            primary.port
        );
        Self::start_as::<&str>(&[], Some(watched))
    }

    fn start_as<S: AsRef<str>>(args: &[S], sentinel: Option<String>) -> Option<Self> {
        let Some(binary) = ["redis-server", "valkey-server"].into_iter().find_map(process::in_path) else {
            process::missing("Redis or Valkey");
            return None;
        };
        let directory = process::scratch(&process::on_disk(), "idempotency-redis", None);
        let watchdog = Watchdog::new(&directory, "KILL");
        let mut redis = Self {
            binary,
            directory,
            port: 0,
            args: args.iter().map(|arg| arg.as_ref().to_owned()).collect(),
            sentinel,
            child: None,
            watchdog,
        };
        // Another process may take the port between its choice and its use.
        for _ in 0..10 {
            redis.port = process::free_port();
            if redis.launch() {
                return Some(redis);
            }
        }
        panic!("the Redis server does not start:\n{}", redis.log());
    }

    /// Starts the process and waits until it answers. Returns `false` if it ends instead.
    fn launch(&mut self) -> bool {
        let log = File::create(self.directory.join("log")).unwrap();
        let mut command = process::command(&self.binary, None);
        if let Some(watched) = &self.sentinel {
            // A Sentinel writes what it learns into its configuration.
            let file = self.directory.join("sentinel.conf");
            fs::write(&file, watched).unwrap();
            command.arg(file).arg("--sentinel");
        } else {
            command.args(["--save", ""]).args(["--appendonly", "no"]);
        }
        let mut child = command
            .args(["--port", &self.port.to_string()])
            .args(["--bind", "127.0.0.1"])
            .args(["--daemonize", "no"])
            .arg("--dir")
            .arg(&self.directory)
            .args(&self.args)
            // The watchdog recognizes it by this, because the process title replaces the command
            // line.
            .current_dir(&self.directory)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.watchdog.watch(Some(&child));
        let answers = answers(&mut child, self.port);
        if answers {
            self.child = Some(child);
        } else {
            self.watchdog.watch(None);
        }
        answers
    }

    /// Makes this server a replica of another one, and waits until it has all the data.
    pub fn follow(&self, primary: &Self) {
        self.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
        process::wait_until("the replica is linked", || {
            self.command(&["INFO", "replication"]).contains("master_link_status:up")
        });
    }

    /// Hands over to a replica that has caught up, and becomes its replica. Writes wait meanwhile.
    pub fn hand_over_to(&self, replica: &Self) {
        let port = replica.port.to_string();
        // The server refuses while the replica is not linked, as after a restart.
        process::wait_until("the handing over begins", || {
            self.try_command(&["FAILOVER", "TO", "127.0.0.1", &port]).is_ok()
        });
        process::wait_until("the replica is the primary", || replica.is_a("master"));
    }

    /// Whether it says that it is a `master` or a `slave`. It may not answer: a Sentinel that gives it another
    /// role closes its connections, also the one that asks.
    pub fn is_a(&self, role: &str) -> bool {
        let info = self.try_command(&["INFO", "replication"]);
        info.is_ok_and(|info| info.lines().any(|line| line.strip_prefix("role:") == Some(role)))
    }

    /// The answer to a command on its own connection. Panics if the answer is an error.
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap()
    }

    fn try_command(&self, words: &[&str]) -> redis::RedisResult<String> {
        let mut connection = redis::Client::open(self.url())?.get_connection()?;
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process ID, while it runs.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The directory in which the server keeps everything. It is removed with the server.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Halts the server, with its connections staying open.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        process::signal(name, &[self.process().expect("the server was killed")]);
    }

    /// Kills the server, as in a crash.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
            self.watchdog.watch(None);
        }
    }

    /// Starts the server again on the same port, in the same directory. Data is kept if the server
    /// was started with `--appendonly yes`.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.launch(), "the Redis server does not start again:\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Uses `SIGKILL`, paused or not. Whatever error occurred, there is nothing more to do.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits until the server answers in any way. Returns `false` if it ends before that.
fn answers(child: &mut Child, port: u16) -> bool {
    use std::io::{Read, Write};
    let deadline = Instant::now() + PATIENCE;
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
                // If another server has taken this port in the meantime, our child ends.
                std::thread::sleep(Duration::from_millis(5));
                return child.try_wait().unwrap().is_none();
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    end(child);
    false
}
