//! A test's own PgBouncer, in front of a PostgreSQL server.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use super::postgres::{PASSWORD, Postgres, USER};
use super::process::{self, PATIENCE, User, Watchdog};

/// A `pgbouncer` in transaction mode on a free port of 127.0.0.1, with a directory of its own. It
/// ends with this value or this process.
pub struct PgBouncer {
    directory: PathBuf,
    port: u16,
    version: (u32, u32),
    child: Child,
    watchdog: Watchdog,
}

impl PgBouncer {
    /// Starts PgBouncer. If it is not installed, prints that and returns `None`. `PGBOUNCER` names
    /// a program other than the one in `PATH`.
    pub fn start(server: &Postgres) -> Option<Self> {
        let named = std::env::var_os("PGBOUNCER").map(PathBuf::from);
        let Some(program) = named.or_else(|| process::in_path("pgbouncer")) else {
            eprintln!("PgBouncer is not installed: tests that need it are skipped");
            return None;
        };
        // As in `PgBouncer 1.18.0`.
        let version = process::run(process::command(&program, None).arg("--version"));
        let mut numbers = version
            .split_whitespace()
            .nth(1)?
            .split('.')
            .map(|number| number.parse().unwrap());
        let version = (numbers.next()?, numbers.next()?);
        let user = User::instead_of_root(&["postgres", "nobody"]);
        let directory = process::scratch(&process::on_disk(), "idempotency-pgbouncer", user);
        let mut watchdog = Watchdog::new(&directory, "QUIT");
        let users = directory.join("users.txt");
        fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n")).unwrap();
        let settings = directory.join("pgbouncer.ini");
        let port = process::free_port();
        // PgBouncer keeps prepared statements in version 1.21 and later.
        let prepared = if version >= (1, 21) {
            "max_prepared_statements = 200"
        } else {
            ""
        };
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={USER} password={PASSWORD}\n\
             [pgbouncer]\nlisten_addr = {}\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 4\n\
             ignore_startup_parameters = extra_float_digits\n{prepared}\n",
            server.port(),
            Ipv4Addr::LOCALHOST,
            users.display(),
        );
        fs::write(&settings, text).unwrap();
        process::give(&users, user);
        process::give(&settings, user);
        let log = File::create(directory.join("log")).unwrap();
        let child = process::command(&program, user)
            .arg(&settings)
            .current_dir(&directory)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        watchdog.watch(Some(&child));
        let mut bouncer = Self {
            directory,
            port,
            version,
            child,
            watchdog,
        };
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let runs = bouncer.child.try_wait().unwrap().is_none();
            assert!(
                runs && started.elapsed() < PATIENCE,
                "PgBouncer does not start:\n{}",
                bouncer.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
        Some(bouncer)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it keeps its clients' prepared statements.
    pub fn keeps_prepared_statements(&self) -> bool {
        self.version >= (1, 21)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // Whatever error occurred, there is nothing more to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.watchdog.watch(None);
    }
}
