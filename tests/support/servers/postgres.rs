//! The tests' own PostgreSQL server.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::process::{self, PATIENCE, User, Watchdog};

/// The superuser of every server here. Over TCP, the server asks this user for [`PASSWORD`].
pub const USER: &str = "postgres";

/// No log, error or `Debug` output may show it.
pub const PASSWORD: &str = "pa55w0rd-never-to-be-shown";

/// What one test needs and no more, because every test process may have a server.
const LEAN: &[(&str, &str)] = &[
    ("max_connections", "100"),
    ("shared_buffers", "16MB"),
    ("min_wal_size", "4MB"),
    ("max_wal_size", "64MB"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    // In the data directory, which is removed whatever happens to the server.
    ("dynamic_shared_memory_type", "mmap"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("timezone", "UTC"),
];

/// Does not wait for the disk, and uses memory if there is room. Committed data survives a kill of
/// the server nevertheless, because the kernel has it by then. A crash of the machine would lose
/// it.
const FAST: &[(&str, &str)] = &[("fsync", "off"), ("full_page_writes", "off")];

const REPLICATED: &[(&str, &str)] = &[
    ("wal_level", "replica"),
    ("max_wal_senders", "4"),
    // After the primary was down.
    ("wal_retrieve_retry_interval", "100ms"),
];

/// A running server with a directory and a port of its own on 127.0.0.1.
///
/// It ends at once when this value is dropped or this process ends.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    user: Option<User>,
    directory: PathBuf,
    port: u16,
    settings: Vec<String>,
    databases: AtomicU32,
    server: Mutex<Server>,
}

#[derive(Debug)]
struct Server {
    process: Option<Child>,
    watchdog: Watchdog,
}

impl Postgres {
    /// Starts a server. If PostgreSQL is not installed, prints that and returns `None`, or panics
    /// if `IDEMPOTENCY_REQUIRE_SERVERS=1`.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// Like [`Postgres::start`], but on a disk, and with a production server's waits for the disk.
    pub fn start_durable() -> Option<Self> {
        Self::start_in(process::on_disk, &[])
    }

    /// Like [`Postgres::start`], but with the test's own settings, such as `max_connections`.
    pub fn start_with(settings: &[(&str, &str)]) -> Option<Self> {
        let settings: Vec<_> = FAST.iter().chain(settings).copied().collect();
        Self::start_in(process::in_memory, &settings)
    }

    /// Like [`Postgres::start`], but the server can have a [standby](Postgres::standby).
    pub fn start_replicated() -> Option<Self> {
        Self::start_with(REPLICATED)
    }

    fn start_in(place: fn() -> PathBuf, settings: &[(&str, &str)]) -> Option<Self> {
        let Some(programs) = programs() else {
            process::missing("PostgreSQL");
            return None;
        };
        let user = User::instead_of_root(&["postgres", "nobody"]);
        let template = template(&programs, user);
        let settings = LEAN
            .iter()
            .chain(settings)
            .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")])
            .collect();
        let postgres = Self::made(programs, user, &place(), settings);
        process::copy(&template, &postgres.directory.join("data"), user).unwrap();
        Some(postgres.started())
    }

    /// A server that has neither data nor a process yet.
    fn made(programs: PathBuf, user: Option<User>, place: &Path, settings: Vec<String>) -> Self {
        let directory = process::scratch(place, "idempotency-pg", user);
        let watchdog = Watchdog::new(&directory, "QUIT");
        Self {
            programs,
            user,
            directory,
            port: 0,
            settings,
            databases: AtomicU32::new(0),
            server: Mutex::new(Server {
                process: None,
                watchdog,
            }),
        }
    }

    fn started(mut self) -> Self {
        let mut attempts = 0;
        loop {
            self.port = process::free_port();
            match self.launch() {
                Ok(()) => return self,
                // Another process may have taken the port since it was found free.
                Err(log) if log.contains("could not bind") && attempts < 5 => attempts += 1,
                Err(log) => panic!("PostgreSQL does not start:\n{log}"),
            }
        }
    }

    /// Starts another server that follows this one. From now on, this server acknowledges no commit
    /// before the other one has it.
    ///
    /// This server must have been [started for it](Postgres::start_replicated).
    pub fn standby(&self) -> Self {
        let standby = Self::made(
            self.programs.clone(),
            self.user,
            self.directory.parent().unwrap(),
            self.settings.clone(),
        );
        let mut copy = standby.program("pg_basebackup", self.user);
        copy.args([
            "--checkpoint=fast",
            "--no-sync",
            "--write-recovery-conf",
            "-U",
            USER,
            "-h",
        ])
        .arg(&self.directory)
        .args(["-p", &self.port.to_string(), "-D"])
        .arg(standby.directory.join("data"));
        process::run(&mut copy);
        let standby = standby.started();
        // Of this server alone, since the other has its copy of the settings.
        self.alter_system("SET synchronous_standby_names = '*'");
        process::wait_until("commits wait for the standby", || {
            self.sql("postgres", "SELECT sync_state FROM pg_stat_replication") == "sync"
        });
        standby
    }

    /// Runs `ALTER SYSTEM`, and lets the server read its settings again.
    pub fn alter_system(&self, what: &str) {
        self.sql("postgres", &format!("ALTER SYSTEM {what}"));
        self.reload();
    }

    /// Lets the server read its settings again.
    pub fn reload(&self) {
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// Makes a standby a server that takes writes, and waits until it does.
    pub fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote(true, 120)"), "t");
    }

    /// The server that the tests of this process share. Each test has its own database. It is not
    /// for tests that pause or kill it.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: LazyLock<Option<Postgres>> = LazyLock::new(Postgres::start);
        SHARED.as_ref()
    }

    /// Starts the process and waits until it answers. Returns its log if it ends instead.
    fn launch(&self) -> Result<(), String> {
        let mut server = self.server();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .unwrap();
        let data = self.directory.join("data");
        let mut process = self
            .program("postgres", self.user)
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&self.directory)
            .args(["-h", &Ipv4Addr::LOCALHOST.to_string(), "-p", &self.port.to_string()])
            .args(&self.settings)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        server.watchdog.watch(Some(&process));
        let started = Instant::now();
        while !ready(&data, process.id()) {
            if process.try_wait().unwrap().is_some() {
                server.watchdog.watch(None);
                return Err(self.log());
            }
            if started.elapsed() > PATIENCE {
                process::kill(&mut process);
                server.watchdog.watch(None);
                return Err(format!("not ready in {PATIENCE:?}\n{}", self.log()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        server.process = Some(process);
        Ok(())
    }

    /// Creates an empty database, and returns its URL.
    ///
    /// Like [`Postgres::sql`], [`Postgres::kill`] and the other calls that take a moment, this
    /// blocks the thread. In an asynchronous test, do not call it while something else on the same
    /// thread must continue.
    pub fn create_database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of a database, with user and password.
    pub fn url(&self, database: &str) -> String {
        self.url_through(self.port, database)
    }

    /// The URL of a database through another port, such as a proxy's.
    pub fn url_through(&self, port: u16, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@{}:{port}/{database}", Ipv4Addr::LOCALHOST)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL on its own connection, and returns the rows: one line each, with `|` between the
    /// columns. Panics if the SQL fails.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = self.program("psql", None);
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h"])
            .arg(&self.directory)
            .args(["-p", &self.port.to_string(), "-U", USER, "-d", database, "-c", sql]);
        process::run(&mut psql).trim_end().to_owned()
    }

    /// Halts the server with all its connections, as on a machine that hangs: the kernel still
    /// accepts connections for the server, but nobody answers.
    pub fn pause(&self) {
        process::stop(self.server().running());
    }

    /// Ends a pause.
    pub fn resume(&self) {
        process::resume(self.server().running());
    }

    /// Kills the server with all its connections, without warning (`SIGKILL`), paused or not.
    pub fn kill(&self) {
        let mut server = self.server();
        process::kill(server.running());
        server.process = None;
        server.watchdog.watch(None);
    }

    /// Starts the server again, on the same port and with the same data. If it is running, kills it
    /// first.
    pub fn restart(&self) {
        let runs = self.server().process.is_some();
        if runs {
            self.kill();
        }
        if let Err(log) = self.launch() {
            panic!("PostgreSQL does not start again:\n{log}");
        }
    }

    /// The end of the server's log.
    pub fn log(&self) -> String {
        const END: usize = 8 * 1024;
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(END)..]).into_owned()
    }

    /// The server's process ID, while it runs.
    pub fn process(&self) -> Option<u32> {
        self.server().process.as_ref().map(Child::id)
    }

    /// The directory in which the server keeps everything. It is removed with the server.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn program(&self, name: &str, user: Option<User>) -> Command {
        program(&self.programs, name, user, &self.directory)
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    fn running(&mut self) -> &mut Child {
        self.process.as_mut().expect("the server was killed")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut server = self.server();
        if let Some(mut process) = server.process.take() {
            // Immediate shutdown, even if it is paused.
            process::signal("QUIT", &[process.id()]);
            process::resume(&process);
            // It may have ended on its own.
            let _ = process.wait();
            server.watchdog.watch(None);
        }
    }
}

/// The directory with the server's programs.
fn programs() -> Option<PathBuf> {
    let has_all = |programs: &PathBuf| {
        ["initdb", "postgres", "psql"]
            .iter()
            .all(|program| programs.join(program).is_file())
    };
    // `PATH` may have a link to this program alone.
    let in_path = process::in_path("initdb").and_then(|initdb| Some(initdb.canonicalize().ok()?.parent()?.to_owned()));
    in_path.filter(has_all).or_else(|| {
        if process::hidden() {
            return None;
        }
        // Debian puts the programs here, outside `PATH`.
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        versions
            .filter_map(|version| {
                let version = version.ok()?;
                let number: u32 = version.file_name().to_str()?.parse().ok()?;
                Some((number, version.path().join("bin")))
            })
            .filter(|(_, programs)| has_all(programs))
            .max()
            .map(|(_, programs)| programs)
    })
}

/// One of the programs, without an environment that would affect it.
fn program(programs: &Path, name: &str, user: Option<User>, directory: &Path) -> Command {
    let mut command = process::command(&programs.join(name), user);
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if text.starts_with("PG") || text.starts_with("LC_") || text == "LANG" {
            command.env_remove(&variable);
        }
    }
    command.env("LC_ALL", "C").current_dir(directory);
    command
}

/// Whether the server reports that it accepts connections: the eighth line of its lock file.
fn ready(data: &Path, process: u32) -> bool {
    let Ok(lock) = fs::read_to_string(data.join("postmaster.pid")) else {
        return false;
    };
    let mut lines = lock.lines().map(str::trim);
    lines.next() == Some(&process.to_string()) && lines.nth(6) == Some("ready")
}

/// A new cluster that no server has used yet, to copy, because making one takes seconds. It stays
/// in Cargo's build directory, one for each version of PostgreSQL.
fn template(programs: &Path, user: Option<User>) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let version = process::run(Command::new(programs.join("postgres")).arg("--version"));
    // As in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    let version = version.split_whitespace().nth(2).unwrap();
    // Increase the number at the end when the arguments of `initdb` change.
    let template = target.join(format!("postgres-{version}-1"));
    if template.exists() {
        return template;
    }
    fs::create_dir_all(target).unwrap();
    let _lock = process::lock(&target.join("postgres.lock"));
    if template.exists() {
        return template;
    }
    // A directory that the server's user can access.
    let directory = process::scratch(&process::in_memory(), "idempotency-pg", user);
    let _removed_at_the_end = Watchdog::new(&directory, "QUIT");
    let password = directory.join("password");
    fs::write(&password, PASSWORD).unwrap();
    process::give(&password, user);
    let data = directory.join("data");
    let mut initdb = program(programs, "initdb", user, &directory);
    initdb
        .arg("-D")
        .arg(&data)
        .arg("--pwfile")
        .arg(&password)
        .args(["-U", USER, "--auth-local=trust", "--auth-host=scram-sha-256"])
        .args(["--encoding=UTF8", "--locale=C", "--wal-segsize=1", "--no-sync"]);
    process::run(&mut initdb);
    let unfinished = target.join("postgres.unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).unwrap();
    }
    process::copy(&data, &unfinished, None).unwrap();
    fs::rename(&unfinished, &template).unwrap();
    template
}
